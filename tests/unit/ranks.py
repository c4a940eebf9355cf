"""What every rank of ``test_training_ranks.py`` does: two beside each other, or one in the test
itself.
"""

from __future__ import annotations

import ctypes
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from versatune_ray.domains import DomainPaths, load_domains
from versatune_ray.settings import Data, Lora, Trainable, Training
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.attention import Kind
from versatune_ray.training.checkpoint import Checkpoints
from versatune_ray.training.gradients import measure
from versatune_ray.training.model import begin_adapters, fill, load_model, with_frozen
from versatune_ray.training.trainable import read_importance
from versatune_ray.training.trainer import Trainer

SHARES = np.array([0.7, 0.3])
STEPS, CUT = 4, 2  # steps of a run, and where a checkpoint is taken


def case(given: dict[str, Any], rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Train with the settings of ``given``: a checkpoint after ``CUT`` steps, or from one
    (``load``); what was seen on the way.
    """
    torch.set_num_threads(1)
    data = list(
        load_domains(
            {name: DomainPaths(*map(Path, pair[:2])) for name, pair in given["paths"].items()},
            Data(),
        ).values()
    )
    variant = given.get("variant", "")
    kept = 0.5 if "kept" in variant else 0.0
    recipe = Recipe(
        STEPS, batch_size=8, micro_batch_tokens=given.get("micro", 60), learning_rate=1e-2,
        warmup=0.1, weight_decay=0.01,
        max_grad_norm=1.0, seed=3, optimizer=given.get("optimizer", "adamw"), kl=kept, l2=kept,
    )  # fmt: skip
    execution, empty = Execution(**given.get("execution", {})), given.get("empty", False)
    kind: Kind = "sdpa" if execution.attention == "sdpa" else "padded"
    model = load_model(given["model"], attention=kind, empty=empty)
    lora = Lora(rank=4) if "lora" in variant else Lora()
    trainable = (
        Trainable(layers="1", modules=["q_proj", "ffn"]) if "masked" in variant else Trainable()
    )
    importance = read_importance([given["importance"]] if "masked" in variant else [])
    model = with_frozen(model, Training(lora=lora, trainable=trainable), 0)
    base = (
        load_model(given["model"], attention=kind, empty=empty)
        if kept and lora.rank is None
        else None
    )
    trainer = Trainer(
        model,
        data,
        recipe,
        torch.device("cpu"),
        rank,
        world,
        execution,
        importance=importance,
        base=base,
    )
    if empty:
        fill(model, given["model"], frozen_only=bool(given.get("load")) and not kept)
        begin_adapters(model, 0)
        trainer.remember_base()
        if base is not None:
            fill(base, given["model"])
    checkpoints = Checkpoints(trainer)
    if given.get("load"):
        checkpoints.load(Path(given["load"]))
    found: dict[str, Any] = {
        "kind": trainer.parallel.kind,
        "held_out": [],
        "first": trainer.steps_done,
    }
    saved = None
    # what torchao compiles for every shape anew is the same numbers
    torch.compiler.set_stance("force_eager")
    while trainer.steps_done < STEPS:
        if not trainer.steps_done % 2:
            found["held_out"].append(trainer.held_out().nats.tolist())
        trainer.step(SHARES)
        if trainer.steps_done == CUT and given.get("save"):
            saved = checkpoints.save(Path(given["save"]))
    if saved is not None:
        saved.result()
    found["held_out"].append(trainer.held_out().nats.tolist())
    train, samples, tokens = trainer.take_counts()
    found |= {
        "train": train.nats.tolist(),
        "count": train.count.tolist(),
        "samples": samples.tolist(),
        "tokens": tokens.tolist(),
    }
    told = measure(trainer, 5, variances=True, held_out=True)
    found["products"] = told.products.tolist()
    found["variances"], found["with_held_out"] = told.variances.tolist(), told.held_out.tolist()
    weights = checkpoints.weights()
    if rank == 0 and given.get("weights"):
        torch.save(weights, given["weights"])
    return found


def loading(given: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """Bytes that this rank's memory of its own grew by at most, from before a model is loaded until
    it can train.
    """
    # What this process inherits and nobody uses would be taken again, and no growth be seen.
    ctypes.CDLL(None).malloc_trim(0)
    ended, most = threading.Event(), [before := _own()]

    def look() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], _own())

    looking = threading.Thread(target=look)
    looking.start()
    model = load_model(given["model"], empty=True)
    data = list(
        load_domains(
            {name: DomainPaths(*map(Path, pair[:2])) for name, pair in given["paths"].items()},
            Data(),
        ).values()
    )
    recipe = Recipe(
        1, 8, 60, learning_rate=1e-2, warmup=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=0
    )
    trainer = Trainer(
        model, data, recipe, torch.device("cpu"), rank, world, Execution(parallel="fsdp")
    )
    fill(model, given["model"])
    ended.set()
    looking.join()
    whole = sum(
        parameter.numel() * parameter.element_size() for parameter in trainer.model.parameters()
    )
    return {"grown": most[0] - before, "whole": whole}


def _own() -> int:
    """Resident memory that no file is behind, in bytes."""
    status = Path("/proc/self/status").read_text()
    return (
        int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))
        * 1024
    )


def run_cases(cases: list[dict[str, Any]], file: str) -> None:
    """All of ``cases``, one after another, on this rank of several; what they found goes to
    ``FILE.RANK``.
    """
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    results = [(loading if given.get("loading") else case)(given, rank, world) for given in cases]
    Path(f"{file}.{rank}").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()
