"""Start of a job whose token stores are cached: sources of 20 GB over sources of 20 MB, goal ≤ 1.2.

Timed is what a start does with records: it looks for the sources, tells whether they changed, finds
the stores, and opens and splits them. The file of 20 GB is sparse, and the store under its key is a
stand-in: a copy of that of the 20 MB. What grows with the number of records, opening aside the
split, is therefore the same on both sides, and the figure says that sources are not read.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
from tiny import byte_tokenizer

from versatune_ray.domains import load_domains, tokenizing
from versatune_ray.settings.loading import parse

_LARGE, _SMALL = 20 << 30, 20 << 20


def side(given: dict[str, Any]) -> None:
    tree = {"model": {"path": "unused"}, "domains": {"law": given["law"], "code": given["code"]}}
    config = parse(tree)
    args = (config, config.domains, given["tokenizer"], Path(given["cache"]))
    if given["like"]:

        def copy(missing: Any, *_: Any) -> None:
            for job in missing:
                shutil.copytree(given["like"], job.folder)

        tokenizing._build = copy
    built = tokenizing.build_stores(*args, distributed=False)
    common.hand_over(str(built["law"].train))
    while True:
        took = []
        for _ in range(5):  # the least of a few: others work on this machine
            began = time.perf_counter()
            load_domains(tokenizing.build_stores(*args, distributed=False), config.data)
            took.append(time.perf_counter() - began)
        common.hand_over(min(took))


def parent(quick: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer").mkdir()
        given = {
            "tokenizer": byte_tokenizer(folder / "tokenizer"),
            "cache": str(folder / "cache"),
            "code": str(folder / "code.jsonl"),
            "law": str(folder / "small.jsonl"),
            "like": "",
        }
        answer = "a" * 500
        rows = (
            json.dumps({"prompt": f"{n}?", "completion": f"{n} {answer}"}) + "\n"
            for n in range((_SMALL >> (6 if quick else 0)) // 540)
        )
        Path(given["law"]).write_text("".join(rows))
        Path(given["code"]).write_text('{"text": "x"}\n{"text": "y"}\n')
        large = folder / "large.jsonl"
        large.touch()
        os.truncate(large, _LARGE)
        with common.Player(__file__, "start", given) as builder:
            other = given | {"law": str(large), "like": builder.ready}
        pairs = []
        with (
            common.Player(__file__, "start", given) as small,
            common.Player(__file__, "start", other) as big,
        ):
            for player in (small, big):
                player.turn()
            for number in range(2 if quick else 20):
                first, second = (big, small) if number % 2 else (small, big)
                one, two = first.turn(), second.turn()
                pairs.append((one, two) if number % 2 else (two, one))
        seconds = {
            "20 GB": sorted(a for a, _ in pairs)[len(pairs) // 2],
            "20 MB": sorted(b for _, b in pairs)[len(pairs) // 2],
        }
        detail = {"seconds": seconds} | common.machine()
        common.report("start_on_hit", [a / b for a, b in pairs], 1.2, detail, lower=True)


if __name__ == "__main__":
    common.run(__doc__, parent, {"start": side})
