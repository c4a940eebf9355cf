"""Reference losses (the mastery ceiling): per domain, the lowest loss of a small model tuned on
that domain alone.

Workers are long-lived actors that take one domain after another, so start-up is paid per worker and
not per domain. Where the run shards its model over workers, so many of them tune one domain
together: what does not fit on one GPU there does not fit here either.
"""

from __future__ import annotations

import json
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
from versatune_ray.runs.cache import cached, have, key_of, write_json
from versatune_ray.runs.storage import fetch
from versatune_ray.settings import Config, Reference
from versatune_ray.settings.location import shown
from versatune_ray.settings.recipe import Execution, Recipe, Unit
from versatune_ray.training.attention import choose
from versatune_ray.training.model import fill, load_model
from versatune_ray.training.parallel import in_bf16, kind_of
from versatune_ray.training.trainer import Trainer


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
    empty = kind_of(execution, device, world) == "fsdp"
    model = load_model(
        model_path,
        config.model.trust_remote_code,
        choose(execution.attention, device, in_bf16(execution, device)),
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


def reference_keys(
    fingerprint: str, paths: Mapping[str, DomainPaths], config: Config, unit: Unit
) -> dict[str, dict[str, Any]]:
    """What the cached loss of each domain depends on."""
    settings = config.reference
    common = {
        "model": fingerprint,
        "settings": settings.deciding("losses", "model"),
        "micro_batch_tokens": config.training.micro_batch_tokens,
        "seed": config.seed,
        "unit": unit,
    } | ({} if config.training.optimizer == "adamw" else {"optimizer": config.training.optimizer})
    # Every domain's validation may remove records from any domain's training set: all the stores
    # are part of each key.
    stores = {name: path.key for name, path in paths.items()}
    return {
        name: common | {"domain": name, "stores": stores, "data": config.data.split(name)}
        for name in paths
    }


def reference_losses(
    model_path: str,
    fingerprint: str,
    paths: Mapping[str, DomainPaths],
    config: Config,
    unit: Unit,
    cache: Path,
    *,
    gpu: bool,
) -> tuple[dict[str, Any], bool]:
    """All domains in one go; each domain is cached by itself. Returns the content of
    ``losses.json``, and whether all were cached.
    """
    import ray

    from versatune_ray.runtime.cluster import fitting
    from versatune_ray.runtime.progress import Bar

    settings = config.reference
    keys = reference_keys(fingerprint, paths, config, unit)

    class Worker:
        """One rank of a group that tunes one domain after another; imports, data and cores are set
        up once.
        """

        def __init__(self, rank: int, world: int) -> None:
            torch.set_num_threads(settings.cpus)
            self.rank, self.world = rank, world
            self.data = load_domains(paths, config.data)
            self.device = torch.device("cuda", 0) if gpu else torch.device("cpu")

        def meeting_point(self) -> str:
            with socket.socket() as free:
                free.bind(("", 0))
                return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

        def meet(self, address: str) -> None:
            backend = "cpu:gloo,cuda:nccl" if gpu else "gloo"
            timeout = timedelta(seconds=config.training.exchange_timeout)
            dist.init_process_group(
                backend, init_method=address, rank=self.rank, world_size=self.world, timeout=timeout
            )

        def tune(self, name: str) -> str:
            with Bar(f"reference {name}", 1, "step") as bar:

                def progress(step: int, steps: int, loss: float) -> None:
                    if self.rank == 0:
                        bar.to(step, f"held-out {loss:.3f}", steps)

                def measure() -> dict[str, Any]:
                    place = self.device, progress, self.rank, self.world
                    return tune_alone(
                        fetch(model_path), self.data[name], settings, config, unit, *place
                    )

                def build(work: Path) -> None:
                    self.all_ranks(True)
                    write_json(work / "result.json", measure())

                if self.rank == 0:
                    _, there = cached(cache, "reference", keys[name], build)
                    if there:  # by another run, meanwhile
                        self.all_ranks(False)
                elif self.all_ranks(None):
                    measure()
            return name

        def all_ranks(self, begin: bool | None) -> Any:
            """What rank 0 says: whether there is something to measure."""
            said = [begin]
            if self.world > 1:
                dist.broadcast_object_list(said)
            return said[0]

    def stored(name: str) -> dict[str, Any] | None:
        entry = cache / "reference" / key_of(keys[name])
        return json.loads((entry / "result.json").read_text()) if have(entry) else None

    missing = [name for name in paths if stored(name) is None]
    if missing:
        # No more actors than fit at once: one that waits for another's place would wait until all
        # domains are done.
        together = (
            config.training.least_and_most[0]
            if kind_of(
                Execution.of(config.training),
                torch.device("cuda" if gpu else "cpu"),
                config.training.least_and_most[0],
            )
            == "fsdp"
            else 1
        )
        room = fitting(
            together * min(settings.workers, len(missing)), settings.cpus, gpu, config.device
        )
        together = min(together, room)
        options = {"num_cpus": settings.cpus, "num_gpus": int(gpu)}
        groups = [
            [
                ray.remote(Worker).options(**options).remote(rank, together)
                for rank in range(together)
            ]
            for _ in range(room // together)
        ]
        for group in groups if together > 1 else ():
            address = ray.get(group[0].meeting_point.remote())
            ray.get([worker.meet.remote(address) for worker in group])
        pool = ray.util.ActorPool(groups)

        def tune(group: list[Any], name: str) -> Any:
            first, *_ = (worker.tune.remote(name) for worker in group)
            return first

        for _ in pool.map_unordered(tune, missing):
            pass
        for worker in (worker for group in groups for worker in group):
            ray.kill(worker)
    domains = {name: stored(name) for name in paths}
    return {
        "domains": domains,
        "model": shown(model_path),
        "unit": unit,
        "measure": settings.measure,
    }, not missing
