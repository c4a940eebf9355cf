"""The plan's estimate of memory against what a step on this GPU really takes: 1.5B in full, 7B with
LoRA, 7B in full with small states.

usage: bash tests/gpu/run fit        two minutes on an H100; one JSON line per run: estimate over
peak, within 15 %
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CARD, DEVICE, GPU, SHAPES, domains, note, qwen, random_weights, report

from versatune_ray.settings import Training
from versatune_ray.settings.loading import parse
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.attention import choose
from versatune_ray.training.memory import GIB, estimate, room_on
from versatune_ray.training.model import begin_adapters, load_model, with_frozen
from versatune_ray.training.trainer import Trainer

ROW = 4096 if GPU else 128
RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("qwen2.5-1.5b", {"compile": False}),
    ("qwen2.5-1.5b", {"compile": True}),
    ("qwen2.5-1.5b", {"activation_checkpointing": "full"}),
    ("qwen2.5-7b", {"lora": {"rank": 16}}),
    ("qwen2.5-7b", {"optimizer": "adamw_8bit", "activation_checkpointing": "full"}),
    ("qwen2.5-7b", {"optimizer": "adamw_bf16", "activation_checkpointing": "full"}),
)


def take(path: str, training: Training, data: Any) -> float:
    """Most bytes allocated in two steps of two full rows each."""
    model = with_frozen(
        load_model(path, attention=choose("auto", DEVICE, GPU), empty=True), training, 0
    )
    recipe = Recipe(
        100,
        2,
        ROW,
        1e-5,
        warmup=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=0,
        optimizer=training.optimizer,
    )
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(model, data, recipe, DEVICE, execution=Execution.of(training))
    random_weights(model)
    begin_adapters(model, 0)
    for _ in range(2):
        trainer.step(np.full(len(data), 1 / len(data)))
    return float(torch.cuda.max_memory_allocated()) if GPU else float("nan")


def main() -> int:
    failed = 0
    if not GPU:
        note("no GPU here: a tiny shape, to see that the code runs; nothing is measured")
    with tempfile.TemporaryDirectory(prefix="vtg") as folder:
        for shape, way in (
            RUNS if GPU else tuple(("tiny", way) for _, way in RUNS if not way.get("compile"))
        ):
            path = Path(folder) / shape
            if not path.exists():
                qwen(shape, Path(folder))
            data = domains(
                Path(folder) / f"data-{len(list(Path(folder).iterdir()))}",
                [[ROW] * 8] * 2,
                SHAPES[shape]["vocab_size"],
                prompt=0.0,
            )
            training = parse(
                {"training": way | {"micro_batch_tokens": ROW, "parallel": "fsdp"}}
            ).training
            shaped = with_frozen(
                load_model(str(path), attention=choose("auto", DEVICE, GPU), empty=True),
                training,
                0,
            )
            wanted = estimate(shaped, training, 1, DEVICE.type)
            detail = {
                "way": way,
                "card": CARD,
                "estimate": str(wanted),
                "room_gib": round(room_on(DEVICE) / GIB, 1),
            }
            if wanted.total > room_on(DEVICE):
                report(
                    f"fit: {shape}",
                    ratio=None,
                    goal=0.15,
                    holds=None,
                    detail=detail | {"left out": "the estimate says that it does not fit"},
                )
                continue
            try:
                peak = take(str(path), training, data)
            except torch.cuda.OutOfMemoryError as error:
                report(
                    f"fit: {shape}",
                    ratio=None,
                    goal=0.15,
                    holds=False,
                    detail=detail | {"error": str(error)[:200]},
                )
                failed += 1
                continue
            ratio = wanted.total / peak if GPU else None
            holds = abs(ratio - 1) <= 0.15 if ratio is not None else None
            failed += holds is False
            report(
                f"fit: {shape}",
                ratio=ratio,
                goal=0.15,
                holds=holds,
                detail=detail | {"peak_gib": round(peak / GIB, 2) if GPU else None},
            )
            gc.collect()
            if GPU:
                torch.cuda.empty_cache()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
