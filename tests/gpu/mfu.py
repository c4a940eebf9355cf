"""How fast training is on this GPU: full fine-tuning of random Qwen2.5-1.5B and 7B in packed rows
of 4,096 tokens, eager and compiled.

usage: bash tests/gpu/run mfu        about four minutes on an H100; one JSON line per shape and way,
and a table of where the time goes

``mfu`` counts what the model has to compute (PaLM, appendix B): 6 operations per weight that a
token meets, the head among them, and causal attention within each sample; ``hfu`` also what
recomputing computes again. Over the card's dense bf16 peak. Lengths are log-normal, median 400
tokens; every token but a sample's first trains. A way that the plan's estimate says will not fit
gives way to one with a smaller optimizer, and is named. Without a GPU a tiny shape runs once, to
see that the code does.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import CARD, DEVICE, GPU, SHAPES, domains, note, qwen, random_weights, report

from versatune_ray.settings.loading import parse
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.attention import choose
from versatune_ray.training.memory import GIB, estimate, room_on
from versatune_ray.training.metrics import Work, peak_flops
from versatune_ray.training.model import load_model
from versatune_ray.training.trainer import Trainer

ROW, BATCH = (4096, 64) if GPU else (128, 4)
WARM, STEPS = (3, 6) if GPU else (1, 2)
GOAL = {"qwen2.5-1.5b": 0.45, "qwen2.5-7b": 0.50}
# In the order of what one would rather have; the first that fits is measured.
WAYS: dict[str, tuple[dict[str, Any], ...]] = {
    "qwen2.5-1.5b": ({},),
    "qwen2.5-7b": (
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "full", "optimizer": "adamw_8bit"},
        {"activation_checkpointing": "full", "optimizer": "adamw_bf16"},
    ),
    "tiny": ({},),
}


def fitting(path: str, ways: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    for way in ways:
        training = parse({"training": way | {"micro_batch_tokens": ROW}}).training
        wanted = estimate(
            load_model(path, attention=choose("auto", DEVICE, GPU), empty=True),
            training,
            1,
            DEVICE.type,
        )
        if wanted.total <= room_on(DEVICE):
            return way
        note(
            f"{Path(path).name} {way}: left out, {wanted} do not fit into "
            f"{room_on(DEVICE) / GIB:.1f} GiB"
        )
    raise MemoryError(f"{Path(path).name} does not fit on {CARD}")


def measure(path: str, way: dict[str, Any], compiled: bool, data: Any) -> None:
    shape = Path(path).name
    training = parse(
        {"training": way | {"micro_batch_tokens": ROW, "compile": compiled, "parallel": "fsdp"}}
    ).training
    execution = Execution.of(training)
    recipe = Recipe(
        1000,
        BATCH,
        ROW,
        1e-5,
        warmup=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=0,
        optimizer=training.optimizer,
    )
    model = load_model(path, attention=choose("auto", DEVICE, GPU), empty=True)
    trainer = Trainer(model, data, recipe, DEVICE, execution=execution)
    random_weights(model)
    work, shares = Work.of(model), np.full(len(data), 1 / len(data))
    peak, steps = peak_flops(CARD) or float("nan"), []
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    for number in range(WARM + STEPS):
        _wait()
        began = time.perf_counter()
        trainer.step(shares, ahead=True)
        _wait()
        assert trainer.last is not None
        if number >= WARM:
            flops, tokens = (
                work.flops(trainer.last.lengths, trainer.last.responses),
                int(trainer.last.lengths.sum()),
            )
            steps.append((time.perf_counter() - began, flops, tokens))
    rates = [flops / seconds / peak for seconds, flops, _ in steps]
    seconds = sum(one[0] for one in steps)
    again = 4 / 3 if execution.activation_checkpointing == "full" else 1.0
    report(
        f"mfu: {shape}{', compiled' if compiled else ''}",
        ratio=statistics.median(rates),
        spread=[min(rates), max(rates)],
        goal=GOAL.get(shape),
        holds=statistics.median(rates) >= GOAL[shape] if GPU else None,
        detail=way
        | {
            "card": CARD,
            "torch": torch.__version__,
            "hfu": statistics.median(rates) * again,
            "tokens_per_s": round(sum(one[2] for one in steps) / seconds),
            "tflops": round(sum(one[1] for one in steps) / seconds / 1e12, 2),
            "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 1) if GPU else None,
            "samples_per_step": BATCH,
            "row_tokens": ROW,
        },
    )
    if compiled:
        print(_where_the_time_goes(trainer, shares), file=sys.stderr, flush=True)


def _where_the_time_goes(trainer: Trainer, shares: Any) -> str:
    kinds = [
        torch.profiler.ProfilerActivity.CPU,
        *([torch.profiler.ProfilerActivity.CUDA] if GPU else []),
    ]
    with torch.profiler.profile(activities=kinds) as profile:
        trainer.step(shares)
        _wait()
    key = "self_device_time_total" if GPU else "self_cpu_time_total"
    table: str = profile.key_averages().table(sort_by=key, row_limit=12, max_name_column_width=60)
    return table


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def main() -> int:
    if not GPU:
        note("no GPU here: a tiny shape, to see that the code runs; nothing is measured")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="vtg") as folder:
        for shape in ("qwen2.5-1.5b", "qwen2.5-7b") if GPU else ("tiny",):
            path = qwen(shape, Path(folder))
            lengths = np.clip(
                rng.lognormal(np.log(400 if GPU else 24), 0.9, (2, 256 if GPU else 16)), 16, ROW
            ).astype(int)
            data = domains(
                Path(folder) / f"{shape}-data",
                lengths.tolist(),
                SHAPES[shape]["vocab_size"],
                prompt=0.0,
            )
            try:
                way = fitting(path, WAYS[shape])
                for compiled in (False, True) if GPU else (False,):
                    measure(path, way, compiled, data)
                    gc.collect()
                    if GPU:
                        torch.cuda.empty_cache()
            # the other shape is wanted all the same
            except (MemoryError, torch.cuda.OutOfMemoryError) as error:
                report(
                    f"mfu: {shape}",
                    ratio=None,
                    goal=GOAL.get(shape),
                    holds=False,
                    detail={"error": str(error)[:300]},
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
