"""What moving the shares costs: a dynamic run's time over a constant one's, in the product's own
loop without Ray.

usage: python tests/bench/dynamic_overhead.py [--quick]        (--quick: a few turns)

- ``dynamic_overhead_train``: VersaTune with training feedback, an adjustment every ``EVERY`` steps
  (once per epoch is the default, which is rarer), over a constant run that never adjusts. Its extra
  is reading the counts, the controller, the log, and moved shares.
- ``dynamic_overhead_held_out``: what a run with held-out feedback takes more than the constant one,
  over the time of ``Trainer.held_out()`` alone: 1 means that an adjustment costs the forward passes
  it is made of.

Both are to stay below their goals. Each run is a process; they take turns of ``EVERY`` steps and
one adjustment, about a second each, so that what else the machine does meets all alike. All records
have the same length: shares then change nothing about the work. A round's ratio is of the medians
over its turns. ``cpu`` in the detail is the same of the processes' CPU seconds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import common
import training

GOALS = {"train": 1.01, "held_out": 1.05}
EVERY, BATCH, LENGTH, RECORDS, HELD_OUT = 10, 16, 64, 400, 48
SHAPE = {
    "vocabulary": 1024,
    "hidden": 128,
    "layers": 4,
    "heads": 4,
    "intermediate": 344,
    "context": LENGTH,
}
ROUNDS, TURNS = 7, 12


def run(given: dict[str, Any]) -> Any:
    """A whole run of ``versatune_ray.training.loop``, whose runtime gives the turn away after the
    first step behind an adjustment.
    """
    import numpy as np
    import torch

    from versatune_ray.domains import DomainPaths, load_domains
    from versatune_ray.settings import Config, semantics
    from versatune_ray.training import loop
    from versatune_ray.training.controller import WeightController
    from versatune_ray.training.local import LocalRuntime

    folder, kind = Path(given["folder"]) / given["kind"], given["kind"]
    folder.mkdir()
    stores = given["stores"]
    config = Config.model_validate(
        {
            "model": {"path": given["model"]},
            "domains": dict(stores),
            "data": {"validation_fraction": 1.25 * HELD_OUT / RECORDS, "max_validation": HELD_OUT},
            "mixture": {
                "start": "uniform",
                "policy": "constant" if kind == "constant" else "versatune",
                "sigma": 0.2,
                "feedback": "held_out" if kind == "held_out" else "train",
            },
            "training": {
                "samples_per_epoch": 10**7 * BATCH,
                "batch_size": BATCH,
                "micro_batch_tokens": BATCH * LENGTH,
                "cpus_per_worker": 1,
                "adjust_every": 10**9 if kind == "constant" else EVERY,
                "checkpoint_every": 10**9,
            },
        }
    )
    names = list(stores)
    paths = {name: DomainPaths(Path(path), None) for name, path in stores.items()}
    data = list(load_domains(paths, config.data).values())
    stages = semantics.stages(
        config, names, [len(domain.train) for domain in data], None, "nats/token"
    )
    controller = WeightController(names, stages, np.full(len(names), 1.0), 60.0)
    job = loop.Job(config, given["model"], paths, stages, folder)
    torch.set_num_threads(1)
    if kind == "passes":
        from versatune_ray.training.model import load_model
        from versatune_ray.training.trainer import Trainer

        trainer = Trainer(load_model(given["model"]), data, stages[0].recipe, torch.device("cpu"))
        trainer.step(np.full(len(names), 1 / len(names)))
        while True:
            clock = Clock()
            trainer.held_out()
            clock.stop()

    class Runtime(LocalRuntime):
        clock = None

        def progress(self, step: int, note: str) -> None:
            if step % EVERY == 1:
                if self.clock is not None:
                    self.clock.stop()
                self.clock = Clock()

    loop.run(job, Runtime(job, controller, 0, 1, torch.device("cpu")))


class Clock:
    """From its making to ``stop``, which hands over."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        common.hand_over(
            {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
        )


def parent(quick: bool) -> None:
    import numpy as np

    rounds, turns = (2, 2) if quick else (ROUNDS, TURNS)
    rng = np.random.default_rng(0)
    domains = [
        [
            (
                rng.integers(1, SHAPE["vocabulary"], LENGTH).astype(np.int32),
                np.arange(LENGTH) >= LENGTH // 2,
            )
            for _ in range(RECORDS)
        ]
        for _ in training.DOMAINS
    ]
    sides = ("constant", "train", "held_out", "passes")
    ratios: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in GOALS}
    middle: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory(prefix="vtb") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        shape = training.random_llama(folder / "model", **SHAPE)
        given = {
            "stores": training.write_domains(folder / "stores", domains),
            "model": str(folder / "model"),
            "folder": scratch,
        }
        players = {
            side: stack.enter_context(common.Player(__file__, "run", given | {"kind": side}))
            for side in sides
        }
        for _ in range(rounds):
            took: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            for number in range(turns):
                # no side has two turns running, in which its data would still be in the caches
                first = number % len(sides)
                for side in sides[first:] + sides[:first]:
                    took[side].append(players[side].turn())
            for unit in ("wall", "cpu"):
                one = {side: statistics.median(each[unit] for each in took[side]) for side in sides}
                ratios["train"][unit].append(one["train"] / one["constant"])
                ratios["held_out"][unit].append((one["held_out"] - one["constant"]) / one["passes"])
                if unit == "wall":
                    for side in sides:
                        middle[side].append(one[side])
            common.note(", ".join(f"{side} {1000 * middle[side][-1]:.1f} ms" for side in sides))
    detail = {
        "unit": f"wall time of {EVERY} steps and one adjustment",
        "ms": {side: round(1000 * statistics.median(values), 1) for side, values in middle.items()},
        "model": shape,
        "records_held_out": HELD_OUT * len(training.DOMAINS),
        "rounds": rounds,
        "turns_per_round": turns,
    } | common.machine()
    for name, goal in GOALS.items():
        cpu = ratios[name]["cpu"]
        more = {
            "cpu": {
                "ratio": round(statistics.median(cpu), 3),
                "spread": [round(min(cpu), 3), round(max(cpu), 3)],
            }
        }
        common.report(
            f"dynamic_overhead_{name}", ratios[name]["wall"], goal, more | detail, lower=True
        )


if __name__ == "__main__":
    common.run(__doc__, parent, {"run": run})
