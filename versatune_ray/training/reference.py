"""Reference losses (the mastery ceiling): per domain, the lowest loss of a small model tuned on
that domain alone.

Workers are long-lived actors that take one domain after another, so start-up is paid per worker and
not per domain. Where the run shards its model over workers, so many of them tune one domain
together: what does not fit on one GPU there does not fit here either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ray.domains import DomainPaths
from versatune_ray.runs.cache import have, key_of
from versatune_ray.settings import Config
from versatune_ray.settings.location import shown
from versatune_ray.settings.recipe import Execution, Unit


def reference_keys(
    fingerprint: str, paths: Mapping[str, DomainPaths], config: Config, unit: Unit, gpu: bool
) -> dict[str, dict[str, Any]]:
    """What the cached loss of each domain depends on."""
    settings, training, at_once = config.reference, config.training, config.data.shards_at_once
    others: dict[str, Any] = {} if at_once is None else {"shards_at_once": at_once}
    if training.optimizer != "adamw":
        others["optimizer"] = training.optimizer
    if Execution.of(training).in_bf16("cuda" if gpu else "cpu"):
        others["precision"] = "bf16"
    common = {
        "model": fingerprint,
        "settings": settings.deciding("losses", "model"),
        "micro_batch_tokens": training.micro_batch_tokens,
        "seed": config.seed,
        "unit": unit,
        **others,
    }
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

    settings = config.reference
    keys = reference_keys(fingerprint, paths, config, unit, gpu)

    class Worker:
        """A ``ReferenceWorker``, which the driver does not load."""

        def __init__(self, rank: int, world: int) -> None:
            from versatune_ray.training.reference_worker import ReferenceWorker

            self.rank = ReferenceWorker(
                paths, config, model_path, unit, cache, keys, gpu, rank, world
            )

        def meeting_point(self) -> str:
            return self.rank.meeting_point(ray.util.get_node_ip_address())

        def meet(self, address: str) -> None:
            self.rank.meet(address)

        def tune(self, name: str) -> None:
            self.rank.tune(name)

    def stored(name: str) -> dict[str, Any] | None:
        entry = cache / "reference" / key_of(keys[name])
        return json.loads((entry / "result.json").read_text()) if have(entry) else None

    missing = [name for name in paths if stored(name) is None]
    if missing:
        # No more actors than fit at once: one that waits for another's place would wait until all
        # domains are done.
        together = (
            config.training.least_and_most[0]
            if Execution.of(config.training).kind(
                "cuda" if gpu else "cpu", config.training.least_and_most[0]
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
        try:
            for group in groups if together > 1 else ():
                address = ray.get(group[0].meeting_point.remote())
                ray.get([worker.meet.remote(address) for worker in group])
            in_turn(groups, missing)
        finally:
            for worker in (worker for group in groups for worker in group):
                ray.kill(worker)
    domains = {name: stored(name) for name in paths}
    return {
        "domains": domains,
        "model": shown(model_path),
        "unit": unit,
        "measure": settings.measure,
    }, not missing


def in_turn(groups: Sequence[Sequence[Any]], names: Sequence[str]) -> None:
    """Have every name tuned by all workers of a group, by whichever group is free.

    Raises:
        Exception: what a worker raises, at once: the others of its group wait for it.
    """
    import ray

    left, free = list(names), list(range(len(groups)))
    busy: dict[Any, int] = {}  # by what is awaited of a worker, its group
    while left or busy:
        while left and free:
            name, group = left.pop(0), free.pop(0)
            busy |= {worker.tune.remote(name): group for worker in groups[group]}
        (done, *_), _ = ray.wait(list(busy))
        ray.get(done)
        group = busy.pop(done)
        if group not in busy.values():
            free.append(group)
