"""Tokenising killed at 70 % of its shards: the work of the second run over that of a whole one,
goal ≤ 0.35.

Work is CPU seconds of ``build_stores``, which finds the finished shards, writes the others and
makes the store of both, in a process that has made another store before: what a first one imports
is no work of tokenising. The killed run is ended by SIGKILL after its fourteenth of twenty shards.
All of it in one process without Ray, whose start would hide what is measured; its tasks call the
same function. Shards are of 256 KiB, so that a moment suffices for each.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import common
from tiny import byte_tokenizer

from versatune_ray.domains import ranges, tasks, tokenizing
from versatune_ray.settings.loading import parse

_SHARDS, _KILLED = 20, 14


def build(given: dict[str, Any]) -> float:
    """CPU seconds."""
    ranges.STEP = given["step"]
    config = parse({"model": {"path": "x"}, "domains": {"a": given["law"], "b": given["law"]}})
    began = time.process_time()
    tokenizing.build_stores(
        config, config.domains, given["tokenizer"], Path(given["cache"]), distributed=False
    )
    return time.process_time() - began


def warm(given: dict[str, Any]) -> None:
    file = Path(given["cache"]).with_suffix(".warm.jsonl")
    file.write_text(json.dumps({"prompt": "q?", "completion": "a"}) + "\n")
    build(given | {"law": str(file), "cache": f"{given['cache']}.warm"})


def whole(given: dict[str, Any]) -> None:
    warm(given)
    while True:
        common.hand_over(build(given))
        shutil.rmtree(given["cache"])


def killed(given: dict[str, Any]) -> None:
    write, done = tasks.write, []

    def counted(*args: Any) -> Any:
        if len(done) == _KILLED:
            common.hand_over()
        done.append(write(*args))
        return done[-1]

    tasks.write = counted
    build(given)


def second(given: dict[str, Any]) -> None:
    warm(given)
    write, done = tasks.write, []

    def counted(*args: Any) -> Any:
        began = time.process_time()
        report = write(*args)
        done.append(time.process_time() - began)
        return report

    tasks.write = counted
    seconds = build(given)
    common.hand_over({"seconds": seconds, "shards": len(done), "found": sorted(done)[:_KILLED]})


def parent(quick: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer").mkdir()
        step = 1 << (14 if quick else 18)
        given = {
            "tokenizer": byte_tokenizer(folder / "tokenizer"),
            "law": str(folder / "law.jsonl"),
            "step": step,
        }
        answer = "an answer of some words " * 20
        row = len(json.dumps({"prompt": "0000000?", "completion": answer})) + 1
        rows = (
            json.dumps({"prompt": f"{n:07}?", "completion": answer}) + "\n"
            for n in range(_SHARDS * step // row)
        )
        Path(given["law"]).write_text("".join(rows))
        ratios, found = [], []
        with common.Player(__file__, "whole", given | {"cache": str(folder / "w")}) as player:
            everything = [player.ready]
            for number in range(1 if quick else 3):
                mine = given | {"cache": str(folder / str(number))}
                with common.Player(__file__, "killed", mine):
                    pass  # killed where it hands over
                with common.Player(__file__, "second", mine) as again:
                    found.append(again.ready)
                everything.append(player.turn())
                ratios.append(2 * found[-1]["seconds"] / sum(everything[-2:]))
        detail = {
            "seconds": {"whole": everything, "second": [one["seconds"] for one in found]},
            "shards": found[-1]["shards"],
            "of a shard that was there": max(found[-1]["found"]),
        } | common.machine()
        common.report("resume_tokenising", ratios, 0.35, detail, lower=True)


if __name__ == "__main__":
    common.run(__doc__, parent, {"whole": whole, "killed": killed, "second": second})
