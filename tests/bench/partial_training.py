"""What frozen parts save, and what a soft mask on the update costs (CoFiTune).

usage: python tests/bench/partial_training.py [--quick]        (--quick: smaller steps, two rounds)

The same random Llama and records for all sides, which take turns of one optimizer step
(``Trainer.step``):

- ``full``: everything trains; ``part``: up_proj and down_proj of the second quarter of the layers;
- ``full_masked``, ``part_masked``: the same under a soft mask on every projection.

Ratios: ``soft_mask_full`` and ``soft_mask_part``: time of a masked step over an unmasked one at
equal trainable parameters (goal 1.03).
``partial_time``: a step of ``part`` over one of ``full``. ``partial_memory``: what optimizer state
and gradients take, the same way, bytes (those of the masked sides, with what the mask keeps, are in
the detail).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import training

MAX_LENGTH, RECORDS, BATCH = 512, 200, 64
SHAPE = {
    "vocabulary": 2048,
    "hidden": 256,
    "layers": 8,
    "heads": 8,
    "intermediate": 688,
    "context": MAX_LENGTH,
}
ROUNDS, WARM = 10, 1
QUICK = {"rounds": 2, "batch": 8}
SIDES = ("full", "full_masked", "part", "part_masked")


def steps(given: dict[str, Any]) -> Any:
    """Seconds of the steps of every side, in turns, and the bytes that its optimizer, gradients and
    mask hold.
    """
    import numpy as np
    import torch

    from versatune_ray.settings import Trainable, Training
    from versatune_ray.settings.recipe import Recipe
    from versatune_ray.training.model import load_model, with_frozen
    from versatune_ray.training.trainer import Trainer

    torch.set_num_threads(1)
    data = training.read_domains(given["stores"], held_out=1)
    recipe = Recipe(
        10_000,
        given["batch"],
        2048,
        learning_rate=1e-4,
        warmup=0.0,
        weight_decay=0.1,
        max_grad_norm=1.0,
        seed=0,
    )
    tuners: dict[str, Trainer] = {}
    for side in SIDES:
        part = (
            Trainable(layers="25%-50%", modules=["up_proj", "down_proj"])
            if side.startswith("part")
            else Trainable()
        )
        model = with_frozen(load_model(given["model"]), Training(trainable=part), 0)
        linear = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
        generator = torch.Generator().manual_seed(0)
        importance = {
            name: torch.rand(module.out_features, generator=generator)
            for name, module in linear.items()
        }  # type: ignore[arg-type, call-overload]
        tuners[side] = Trainer(
            model,
            data,
            recipe,
            torch.device("cpu"),
            importance=importance if side.endswith("masked") else None,
        )
    shares, found = np.full(len(data), 1 / len(data)), {side: [] for side in SIDES}  # type: ignore[var-annotated]
    for number in range(given["rounds"] + WARM):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            began = time.perf_counter()
            tuners[side].step(shares)
            if number >= WARM:
                found[side].append(time.perf_counter() - began)
    held = {}
    for side, trainer in tuners.items():
        handle = trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_, side=side: held.update(
                {
                    side: sum(
                        one.grad.nbytes
                        for group in optimizer.param_groups
                        for one in group["params"]
                        if one.grad is not None
                    )
                }
            )
        )
        trainer.step(shares)
        handle.remove()
        held[side] += sum(
            value.nbytes for values in trainer.optimizer.state.values() for value in values.values()
        )
        held[side] += sum(
            values.nbytes
            for _, *kept in (trainer._mask._masked if trainer._mask else ())
            for values in kept
        )
    return {"seconds": found, "bytes": held}


def parent(quick: bool) -> None:
    rounds, batch = (QUICK["rounds"], QUICK["batch"]) if quick else (ROUNDS, BATCH)
    with tempfile.TemporaryDirectory(prefix="vtb") as scratch:
        folder = Path(scratch)
        domains, records = training.encoded(RECORDS, MAX_LENGTH, SHAPE["vocabulary"])
        shape = training.random_llama(folder / "model", **SHAPE)
        given = {
            "stores": training.write_domains(folder / "stores", domains),
            "model": str(folder / "model"),
            "rounds": rounds,
            "batch": batch,
        }
        found, _ = common.side(__file__, "steps", given, timeout=1800)
    seconds, held = found["seconds"], found["bytes"]
    median = {side: round(statistics.median(times), 3) for side, times in seconds.items()}
    detail = {
        "records": records,
        "model": shape,
        "rounds": rounds,
        "batch": batch,
        "seconds_per_step": median,
    } | common.machine()

    def ratios(one: str, other: str) -> list[float]:
        return [mine / theirs for mine, theirs in zip(seconds[one], seconds[other], strict=True)]

    common.report("soft_mask_full", ratios("full_masked", "full"), 1.03, detail, lower=True)
    common.report("soft_mask_part", ratios("part_masked", "part"), 1.03, detail, lower=True)
    common.report("partial_time", ratios("part", "full"), 1.0, detail, lower=True)
    common.report(
        "partial_memory", [held["part"] / held["full"]], 1.0, {"bytes": held} | detail, lower=True
    )


if __name__ == "__main__":
    common.run(__doc__, parent, {"steps": steps})
