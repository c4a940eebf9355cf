"""What it costs that a token store is in S3 and larger than the disk: time of a step whose shards
are fetched ahead and dropped, over that with the same store in a local folder. Goal ≤ 1.05.

usage: python tests/bench/fetch_ahead.py [--quick]        (--quick: a few turns)

Both sides train the same model on the same samples in the same order, a shard at a time
(``data.shards_at_once: 1``), and take turns of a shard's steps. The server is one on this machine,
which shares its two cores with the steps: ``cpu`` in the detail is the ratio of the trainers' own
CPU seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
from tiny import byte_tokenizer
from training import random_llama

GOAL = 1.05
RECORDS, LENGTH, BATCH, SHARDS = 512, 64, 16, 12  # records of a shard; shards of a domain
SHAPE = {
    "vocabulary": 1024,
    "hidden": 128,
    "layers": 4,
    "heads": 4,
    "intermediate": 344,
    "context": LENGTH,
}
STEPS = 2 * RECORDS // BATCH  # of a shard of each of two domains
SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def train(given: dict[str, Any]) -> Any:
    import numpy as np
    import torch

    from versatune_ray.domains import load_domains, ranges
    from versatune_ray.domains.tokenizing import build_stores
    from versatune_ray.settings import location
    from versatune_ray.settings.loading import parse
    from versatune_ray.settings.recipe import Recipe
    from versatune_ray.training.model import load_model
    from versatune_ray.training.trainer import Trainer

    torch.set_num_threads(1)
    os.environ["VERSATUNE_WORK"] = given["work"]
    ranges.STEP = given["step"]
    config = parse(
        {
            "model": {"path": "x"},
            "domains": given["domains"],
            "data": {"shards_at_once": 1, "max_validation": 8},
        }
    )
    cache = location.root(location.resolve(given["storage"]))
    paths = build_stores(config, config.domains, given["tokenizer"], cache, distributed=False)
    data = list(load_domains(paths, config.data).values())
    fetched = {domain.train.store.is_fetched for domain in data}
    assert fetched == {given["storage"].startswith("s3://")}
    recipe = Recipe(10**6, BATCH, BATCH * LENGTH, 1e-4, 0.0, 0.0, 1.0, 0, shards_at_once=1)
    trainer = Trainer(load_model(given["model"]), data, recipe, torch.device("cpu"))
    shares = np.array([0.5, 0.5])
    trainer.step(shares)
    common.hand_over()
    while True:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            trainer.step(shares)
        common.hand_over({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu})


@contextmanager
def bucket() -> Iterator[str]:
    import pyarrow.fs

    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        place = f"endpoint_override=127.0.0.1:{int(server.stdout.readline())}&scheme=http"
        fs, _ = pyarrow.fs.FileSystem.from_uri(f"s3://bucket/?{place}&allow_bucket_creation=true")
        fs.create_dir("bucket")
        yield f"s3://bucket/store?{place}"
    finally:
        server.kill()
        server.wait()


def parent(quick: bool) -> None:
    with tempfile.TemporaryDirectory() as temp, bucket() as uri, ExitStack() as players:
        folder = Path(temp)
        rows = [
            json.dumps({"text": f"{n:07} " * (LENGTH // 8)}) for n in range(2 * RECORDS * SHARDS)
        ]
        half = len(rows) // 2
        for name, some in (("a", rows[:half]), ("b", rows[half:])):
            (folder / f"{name}.jsonl").write_text("\n".join(some))
        random_llama(folder / "model", **SHAPE)
        given = {
            "domains": {name: str(folder / f"{name}.jsonl") for name in "ab"},
            "tokenizer": byte_tokenizer(folder),
            "model": str(folder / "model"),
            "step": (folder / "a.jsonl").stat().st_size // SHARDS + 1,
        }
        sides = {
            name: players.enter_context(
                common.Player(
                    __file__, "train", given | {"work": str(folder / name), "storage": storage}
                )
            )
            for name, storage in (("far", uri), ("near", str(folder / "local")))
        }
        turns: list[dict[str, dict[str, float]]] = []
        for number in range(2 if quick else 16):
            order = ("far", "near") if number % 2 else ("near", "far")
            turns.append({name: sides[name].turn() for name in order})
            common.note(
                f"turn {number}: "
                + ", ".join(f"{n} {t['wall']:.2f} s" for n, t in turns[-1].items())
            )
    ratios = [turn["far"]["wall"] / turn["near"]["wall"] for turn in turns]
    cpu = statistics.median(turn["far"]["cpu"] / turn["near"]["cpu"] for turn in turns)
    detail = common.machine() | {"cpu": round(cpu, 3), "steps": len(turns) * STEPS}
    common.report("fetch_ahead", ratios, GOAL, detail, lower=True)


if __name__ == "__main__":
    common.run(__doc__, parent, {"train": train})
