"""A reference loss on one rank: tuning on one domain alone. No Ray here."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from versatune_ray.domains import CopiedRecords, DomainData, DomainPaths, Records, load_domains
from versatune_ray.mixture import LossSums
from versatune_ray.runs.cache import cached, write_json
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.progress import Bar
from versatune_ray.settings import Config, Reference
from versatune_ray.settings.recipe import Execution, Recipe, Unit
from versatune_ray.training.attention import choose
from versatune_ray.training.model import fill, load_model
from versatune_ray.training.trainer import Trainer

_MADE_ELSEWHERE = timedelta(days=1)  # longest wait for another job that makes the same loss


class ReferenceWorker:
    """One rank of a group that tunes one domain after another; imports, data and cores are set up
    once.

    Args:
        keys: what the loss of each domain depends on, for ``cache``.
    """

    def __init__(
        self,
        paths: Mapping[str, DomainPaths],
        config: Config,
        model: str,
        unit: Unit,
        cache: Path,
        keys: Mapping[str, Mapping[str, Any]],
        gpu: bool,
        rank: int,
        world: int,
    ) -> None:
        torch.set_num_threads(config.reference.cpus)
        self._config, self._model, self._unit = config, model, unit
        self._cache, self._keys = cache, keys
        self._rank, self._world = rank, world
        self._data = load_domains(paths, config.data)
        self._device = torch.device("cuda", 0) if gpu else torch.device("cpu")
        self._patient: dist.ProcessGroup | None = None

    def meeting_point(self, host: str) -> str:
        """A free port on this machine, for the group."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{host}:{free.getsockname()[1]}"

    def meet(self, address: str) -> None:
        backend = "cpu:gloo,cuda:nccl" if self._device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=self._config.training.exchange_timeout)
        dist.init_process_group(
            backend, init_method=address, rank=self._rank, world_size=self._world, timeout=timeout
        )
        # where another job makes the same loss, the first rank waits for it, and they for this one
        self._patient = dist.new_group(timeout=_MADE_ELSEWHERE, backend="gloo")

    def tune(self, name: str) -> None:
        """Measure a domain's reference loss and leave it in the cache, unless it is there."""
        with Bar(f"reference {name}", 1, "step") as bar:

            def progress(step: int, steps: int, loss: float) -> None:
                if self._rank == 0:
                    bar.to(step, f"held-out {loss:.3f}", steps)

            def measure() -> dict[str, Any]:
                return tune_alone(
                    fetch(self._model),
                    self._data[name],
                    self._config.reference,
                    self._config,
                    self._unit,
                    self._device,
                    progress,
                    self._rank,
                    self._world,
                )

            def build(work: Path) -> None:
                self._all_ranks(True)
                write_json(work / "result.json", measure())

            if self._rank == 0:
                _, there = cached(self._cache, "reference", self._keys[name], build)
                if there:  # by another run, meanwhile
                    self._all_ranks(False)
            elif self._all_ranks(None):
                measure()

    def _all_ranks(self, begin: bool | None) -> Any:
        """What rank 0 says: whether there is something to measure."""
        said = [begin]
        if self._world > 1:
            dist.broadcast_object_list(said, group=self._patient)
        return said[0]


def tune_alone(
    model_path: str,
    domain: DomainData,
    settings: Reference,
    config: Config,
    unit: Unit,
    device: torch.device,
    progress: Any,
    rank: int = 0,
    world: int = 1,
) -> dict[str, Any]:
    """Tune on one domain; returns ``curve`` (per epoch: held_out, train), and the lowest ``loss``
    with its ``epoch``.

    Attention, precision and sharding are those of the run (``config.training``). The answer is the
    same on every rank.

    Epoch 0 is the untuned model: where tuning only hurts, that is the ceiling. Stops after
    ``patience`` epochs without a new lowest loss, which can only come later by chance once a small
    model overfits.
    """
    torch.manual_seed(config.seed)
    records, at_once = domain.train, config.data.shards_at_once
    size = min(len(records), settings.max_records or len(records))
    if size < len(records):
        kind, at_once = (Records if at_once is None else CopiedRecords), None
        records = kind(
            records.store,
            records.indices[np.sort(np.argsort(records.hashes, kind="stable")[:size])],
        )
        domain = DomainData(domain.name, records, domain.validation, domain.counts)
    steps_per_epoch = max(1, round(size / settings.batch_size))
    recipe = Recipe(
        steps=steps_per_epoch * settings.epochs,
        batch_size=settings.batch_size,
        micro_batch_tokens=config.training.micro_batch_tokens,
        learning_rate=settings.learning_rate,
        warmup=0.03,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=config.seed,
        unit=unit,
        optimizer=config.training.optimizer,
        shards_at_once=at_once,
    )
    execution = Execution.of(config.training)
    # fewer ranks than the run has
    if execution.shard_over is not None and world % execution.shard_over:
        execution = replace(execution, shard_over=None)
    empty = execution.kind(device.type, world) == "fsdp"
    model = load_model(
        model_path,
        config.model.trust_remote_code,
        choose(execution.attention, device, execution.in_bf16(device.type)),
        empty=empty,
    )
    trainer = Trainer(model, [domain], recipe, device, rank, world, execution)
    if empty:
        fill(model, model_path)
    curve: list[dict[str, Any]] = []

    def whole(part: LossSums) -> LossSums:
        return sum(trainer.parallel.gather(part), LossSums.zeros(1))

    def measure(epoch: int) -> None:
        held_out = whole(trainer.held_out())
        train = whole(trainer.take_counts()[0])
        train_loss = float(train.nats[0] / train.count[0]) if train.count[0] else None
        curve.append(
            {
                "epoch": epoch,
                "held_out": float(held_out.nats[0] / held_out.count[0]),
                "train": train_loss,
            }
        )

    def lowest() -> dict[str, Any]:
        counted = [point for point in curve if point[settings.measure] is not None]
        return min(counted, key=lambda point: point[settings.measure], default=curve[0])

    measure(0)
    for epoch in range(1, settings.epochs + 1):
        for step in range(steps_per_epoch):
            trainer.step(np.ones(1))
            progress((epoch - 1) * steps_per_epoch + step + 1, recipe.steps, curve[-1]["held_out"])
        measure(epoch)
        if epoch - lowest()["epoch"] >= settings.patience:
            break
    best = lowest()
    return {"curve": curve, "loss": best[settings.measure], "epoch": best["epoch"]}
