"""Reference losses (the mastery ceiling): per domain, the lowest loss of a small model tuned on that domain alone.

Workers are long-lived actors that take one domain after another, so start-up is paid per worker and not per domain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from versatune_ray.cache import cached, have, key_of, write_json
from versatune_ray.domains import DomainData, DomainPaths, Records, load_domains
from versatune_ray.settings import Config, Reference
from versatune_ray.storage import fetch, shown
from versatune_ray.training.core import Tuner
from versatune_ray.training.model import load_model
from versatune_ray.training.recipe import Recipe, Unit


def tune_alone(
    model_path: str, domain: DomainData, settings: Reference, config: Config, unit: Unit, device: torch.device, progress: Any
) -> dict[str, Any]:
    """Tune on one domain; returns ``curve`` (per epoch: held_out, train), and the lowest ``loss`` with its ``epoch``.

    Epoch 0 is the untuned model: where tuning only hurts, that is the ceiling. Stops after ``patience`` epochs without a new lowest
    loss, which can only come later by chance once a small model overfits.
    """
    torch.manual_seed(config.seed)
    records = domain.train
    size = min(len(records), settings.max_records or len(records))
    if size < len(records):
        records = Records(records.store, records.indices[np.sort(np.argsort(records.hashes, kind="stable")[:size])])
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
    )
    tuner = Tuner(load_model(model_path, config.model.trust_remote_code), [domain], recipe, device)
    curve: list[dict[str, Any]] = []

    def measure(epoch: int) -> None:
        held_out = tuner.held_out()
        train, _, _ = tuner.take_counts()
        train_loss = float(train.nats[0] / train.count[0]) if train.count[0] else None
        curve.append({"epoch": epoch, "held_out": float(held_out.nats[0] / held_out.count[0]), "train": train_loss})

    def lowest() -> dict[str, Any]:
        counted = [point for point in curve if point[settings.measure] is not None]
        return min(counted, key=lambda point: point[settings.measure], default=curve[0])

    measure(0)
    for epoch in range(1, settings.epochs + 1):
        for step in range(steps_per_epoch):
            tuner.step(np.ones(1))
            progress((epoch - 1) * steps_per_epoch + step + 1, recipe.steps, curve[-1]["held_out"])
        measure(epoch)
        if epoch - lowest()["epoch"] >= settings.patience:
            break
    best = lowest()
    return {"curve": curve, "loss": best[settings.measure], "epoch": best["epoch"]}


def reference_losses(
    model_path: str, fingerprint: str, paths: Mapping[str, DomainPaths], config: Config, unit: Unit, cache: Path, *, gpu: bool
) -> tuple[dict[str, Any], bool]:
    """All domains in one go; each domain is cached by itself. Returns the content of ``losses.json``, and whether all were cached."""
    import ray

    from versatune_ray.cluster import fitting
    from versatune_ray.progress import Bar

    settings = config.reference
    common = {
        "model": fingerprint,
        "settings": settings.model_dump(exclude={"losses", "model", "workers", "cpus"}),
        "micro_batch_tokens": config.training.micro_batch_tokens,
        "seed": config.seed,
        "unit": unit,
    }
    # Every domain's validation may remove records from any domain's training set: all the stores are part of each key.
    stores = {name: [folder and folder.name for folder in pair] for name, pair in paths.items()}
    keys = {name: common | {"domain": name, "stores": stores, "data": config.data.split(name)} for name in paths}

    class Worker:
        """Imports, data and cores are set up once; then one domain after another."""

        def __init__(self) -> None:
            torch.set_num_threads(settings.cpus)
            self.data = load_domains(paths, config.data)
            self.device = torch.device("cuda" if gpu else "cpu")

        def tune(self, name: str) -> str:
            with Bar(f"reference {name}", 1, "step") as bar:

                def progress(step: int, steps: int, loss: float) -> None:
                    bar.to(step, f"held-out {loss:.3f}", steps)

                def build(work: Path) -> None:
                    result = tune_alone(fetch(model_path), self.data[name], settings, config, unit, self.device, progress)
                    write_json(work / "result.json", result)

                cached(cache, "reference", keys[name], build)
            return name

    def stored(name: str) -> dict[str, Any] | None:
        entry = cache / "reference" / key_of(keys[name])
        return json.loads((entry / "result.json").read_text()) if have(entry) else None

    missing = [name for name in paths if stored(name) is None]
    if missing:
        # No more actors than fit at once: one that waits for another's place would wait until all domains are done.
        count = fitting(min(settings.workers, len(missing)), settings.cpus, gpu, config.device)
        workers = [ray.remote(Worker).options(num_cpus=settings.cpus, num_gpus=int(gpu)).remote() for _ in range(count)]
        pool = ray.util.ActorPool(workers)
        for _ in pool.map_unordered(lambda actor, name: actor.tune.remote(name), missing):
            pass
        for worker in workers:
            ray.kill(worker)
    domains = {name: stored(name) for name in paths}
    return {"domains": domains, "model": shown(model_path), "unit": unit, "measure": settings.measure}, not missing
