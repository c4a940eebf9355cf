"""Tokenising ten times the records: peak memory of the driver, and of the largest worker, over that
at one time, goal ≤ 1.1.

Ray Data on two CPUs writes stores of 30,000 and of 300,000 synthetic chats of some 200 characters,
in shards of 1 MiB, so that there are many on both sides. Ten million bytes and a hundred are little
beside what a process needs to begin; that nothing grows with the records is what the figure says.
``VERSATUNE_BENCH_RECORDS`` gives another number of records for the larger side.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
from tiny import byte_tokenizer


def side(given: dict[str, Any]) -> dict[str, Any]:
    from versatune_ray.domains import TokenStore, ranges, tokenizing
    from versatune_ray.settings.loading import parse

    folder = Path(tempfile.mkdtemp())
    (folder / "tokenizer").mkdir()
    tokenizer, law = byte_tokenizer(folder / "tokenizer"), folder / "law.jsonl"
    answer = "an answer of some words " * 5
    with law.open("w") as file:
        for number in range(given["records"]):
            row = {"prompt": f"What is {number}?", "completion": f"{number}: {answer}"}
            file.write(json.dumps(row) + "\n")
    config = parse({"model": {"path": "x"}, "domains": {"a": str(law), "b": str(law)}})
    ranges.STEP = 1 << 20
    tokenizing._FEW = 0
    with common.ray_session(2):
        paths = tokenizing.build_stores(config, config.domains, tokenizer, folder / "cache")
    store = TokenStore(paths["a"].train)
    return {"records": len(store), "shards": len(store.meta["shards"])}


def parent(quick: bool) -> None:
    most = 5000 if quick else int(os.environ.get("VERSATUNE_BENCH_RECORDS", 300_000))
    peaks, stores = [], []
    for records in (most // 10, most):
        common.note(f"{records} records")
        answer, watch = common.side(__file__, "store", {"records": records}, 3600, 0.1)
        stores.append(answer)
        peaks.append(watch.peaks())
    for kind, name in (("driver", "driver"), ("map tasks", "largest worker")):
        few, many = (peak[kind] for peak in peaks)
        detail = {"MiB": [few >> 20, many >> 20], "stores": stores} | common.machine()
        common.report(f"store_growth, {name}", [many / few], 1.1, detail, lower=True)


if __name__ == "__main__":
    common.run(__doc__, parent, {"store": side})
