"""Model FLOPs utilisation of ``Tuner.step`` on one GPU: random Qwen2.5-1.5B and 7B, full fine-tuning in bf16, packed rows of 4,096 tokens.

usage: python tests/bench/gpu_mfu.py [--quick]        (--quick: fewer steps, 1.5B only; without a GPU a tiny shape, and no figure)

Counted is what the model has to compute, forward and backward: 6 operations per parameter of the decoder and token, causal attention
within each sample, and the head on response tokens alone; not what activation checkpointing computes again, and no filling of rows.
Divided by the GPU's dense bf16 peak. Lengths are log-normal (median 400 tokens, most 4,096), 59 % of a sample is prompt.

Needs 16 bytes per parameter on the GPU: 25 GB for the 1.5B, 122 GB and activation checkpointing for the 7B. A shape that does not fit
is left out and named. Without a GPU a plain run says so and ends well.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import training

GOAL = 0.5
PEAK = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12}  # dense bf16, by name
QWEN = {
    "vocab_size": 151_936,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32_768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": QWEN
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": QWEN
    | {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
TINY = QWEN | {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
ROW, BATCH = 4096, 64  # tokens per row; samples per step, about 8 rows
STEPS, WARM = 8, 3


def train(given: dict[str, Any]) -> Any:
    """Steps of one shape; seconds of each after the warm-up, what they computed, and peak memory."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from versatune_ray.training.attention import IMPLEMENTATION, choose
    from versatune_ray.training.core import Tuner, model_size
    from versatune_ray.training.recipe import Recipe, Setup

    device = torch.device("cuda" if given["gpu"] else "cpu")
    setup = Setup(attention=given["attention"], activation_checkpointing=given["checkpointing"], compile=given["compile"])
    config = Qwen2Config(**given["shape"])
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=IMPLEMENTATION[choose(setup.attention, device)]
        )
    data = training.read_domains(given["stores"], held_out=1)
    recipe = Recipe(
        steps=1000,
        batch_size=given["batch"],
        micro_batch_tokens=given["row"],
        learning_rate=1e-5,
        warmup=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=0,
    )
    parameters, _, width = model_size(model)
    head = model.get_output_embeddings().weight.numel()
    tuner = Tuner(model, data, recipe, device, setup=setup)
    squares = 0.0
    collate = tuner._mine

    def noted(samples: Any) -> Any:
        nonlocal squares
        squares = sum(float(sample.records.lengths[sample.index]) ** 2 for sample in samples)
        return collate(samples)

    tuner._mine = noted  # type: ignore[method-assign]
    steps = []
    for number in range(given["warm"] + given["steps"]):
        before = int(tuner.tokens.sum())
        if given["gpu"]:
            torch.cuda.synchronize()
        began = time.perf_counter()
        tuner.step(np.full(len(data), 1 / len(data)))
        if given["gpu"]:
            torch.cuda.synchronize()
        if number >= given["warm"]:
            work = 6.0 * parameters * tuner.tokens_done + 6.0 * width * squares + 6.0 * head * (int(tuner.tokens.sum()) - before)
            steps.append({"seconds": time.perf_counter() - began, "flop": work, "tokens": tuner.tokens_done})
    peak = torch.cuda.max_memory_allocated() if given["gpu"] else None
    return {"steps": steps, "parameters": parameters + head, "peak_gib": peak and round(peak / 2**30, 1), "attention": tuner.attention}


def parent(quick: bool) -> None:
    import numpy as np
    import torch

    gpu = torch.cuda.is_available()
    if not gpu and not quick:
        common.note("gpu_mfu: no GPU here; it needs one with 40 GB (1.5B) or 140 GB (7B), CUDA, and torch built for it. Nothing measured.")
        return
    name = torch.cuda.get_device_name() if gpu else "no GPU: a tiny shape, to see that the code runs"
    peak = next((rate for part, rate in PEAK.items() if part in name), None)
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else 0
    shapes = {"qwen2.5-1.5b": SHAPES["qwen2.5-1.5b"]} if quick else SHAPES
    row, batch = (ROW, BATCH) if gpu else (128, 4)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="vtb") as scratch:
        for shape, sizes in (shapes if gpu else {"tiny": TINY}).items():
            lengths = np.clip(rng.lognormal(np.log(400 if gpu else 24), 0.9, (2, 256 if gpu else 16)), 16, row).astype(int)
            domains = [
                [(rng.integers(1, sizes["vocab_size"], n).astype(np.int32), np.arange(n) >= 0.59 * n) for n in one] for one in lengths
            ]
            large = shape.endswith("7b")
            if gpu and 16 * (8e9 if large else 1.6e9) > memory:
                common.note(f"{shape}: left out, its weights, gradients and AdamW take more than the {memory / 2**30:.0f} GiB of {name}")
                continue
            given = {
                "stores": training.write_domains(Path(scratch) / shape, domains, ["one", "two"]),
                "shape": sizes,
                "gpu": gpu,
                "row": row,
                "batch": batch,
                "attention": "auto" if gpu else "sdpa",
                "checkpointing": large or not gpu,
                "warm": WARM if gpu else 1,
                "steps": 3 if quick else STEPS,
            }
            for compiled in (False, True) if gpu and not quick else (False,):
                found, _ = common.side(__file__, "train", given | {"compile": compiled}, timeout=900)
                steps = found.pop("steps")
                seconds = sum(step["seconds"] for step in steps)
                detail = found | {
                    "gpu": name,
                    "row_tokens": row,
                    "samples_per_step": batch,
                    "activation_checkpointing": given["checkpointing"],
                    "compile": compiled,
                    "tokens_per_s": round(sum(step["tokens"] for step in steps) / seconds),
                    "tflops": round(sum(step["flop"] for step in steps) / seconds / 1e12, 3),
                    "peak_tflops": peak and peak / 1e12,
                }
                title = f"gpu_mfu_{shape}" + ("_compiled" if compiled else "")
                if peak is None:
                    line = {"name": title, "ratio": None, "spread": None, "goal": GOAL, "holds": None, "detail": detail}
                    print(json.dumps(line), flush=True)
                else:
                    common.report(title, [step["flop"] / step["seconds"] / peak for step in steps], GOAL, detail)


if __name__ == "__main__":
    common.run(__doc__, parent, {"train": train})
