"""CoFiTune (arXiv 2404.10306): which layers and modules should move for a domain, and which of
their units others need.

Coarse, a tree of fine-tunings: ranges of layers, whole; of the best one its groups of modules; of
the best group its projections. Only the best branch is expanded, and the best of all trials is what
``best.yaml`` has. Fine: unit importance on general data, for the soft mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ray.domains import DomainPaths, load_domains
from versatune_ray.errors import UserError
from versatune_ray.pipeline import Run
from versatune_ray.runs.cache import cached
from versatune_ray.runs.folder import Step, say
from versatune_ray.runs.storage import push
from versatune_ray.settings import CoFiTune, Config, Trainable, nearest, semantics
from versatune_ray.tuning.plan import name_of, with_artefacts
from versatune_ray.tuning.results import write_results
from versatune_ray.tuning.sweep import check_objective
from versatune_ray.tuning.trial import Failure
from versatune_ray.tuning.trials import finish, run_trials

LAYERS, MODULES = "training.trainable.layers", "training.trainable.modules"
Changes = dict[str, Any]


def check_cofitune(config: Config) -> None:
    """Everything about the search that can be wrong before anything is computed.

    Raises:
        UserError: no targets to gain on, an unknown general domain, or one that is a target.
    """
    names = semantics.domain_names(config)
    check_objective(config, names)
    for name in config.cofitune.general:
        if name not in names:
            raise UserError(f"cofitune.general: unknown domain {name!r}; {nearest(name, names)}")
        if name in config.mixture.targets:
            raise UserError(
                f"cofitune.general: {name!r} is a target; importance is for what should stay"
            )


def cofitune(run: Run) -> Path:
    """Run what is missing of the search, measure importance, and leave ``sweep/best.yaml``; returns
    the report.

    Raises:
        Incomplete: some trials failed; the search went on without them.
    """
    config, settings = run.prepare(), run.given_config.cofitune
    _check_model(run, settings)
    shared = with_artefacts(
        run, {"every trial": config}, config.mixture.targets, config.sweep.objective
    )
    failed: dict[str, Failure] = {}

    def train(children: Mapping[str, Changes]) -> dict[str, float]:
        failed.update(run_trials(run, shared, children, "cofitune", settings.concurrency))
        return {
            name: one["objectives"]["score"]
            for name in children
            if (one := shared.outcome(name)) is not None
            and math.isfinite(one["objectives"]["score"])
        }

    search(settings, train)
    more = (
        {"training.soft_mask": [str(file) for file in importance(run, shared.stores)]}
        if settings.general
        else {}
    )
    write_results(run, shared, [LAYERS, MODULES], failed, more)
    return finish(run, failed)


def _check_model(run: Run, settings: CoFiTune) -> None:
    """Whether the model has every part of the tree, before any of it is trained."""
    from versatune_ray.training.model import check_parts

    whole = [Trainable(layers=layers) for layers in settings.layers]
    parts = [
        Trainable(modules=names)
        for group, projections in settings.modules.items()
        for names in ([group], *projections)
    ]
    check_parts(run.model(), [*whole, *parts], run.given_config.model.trust_remote_code)


def search(
    settings: CoFiTune, train: Callable[[Mapping[str, Changes]], Mapping[str, float]]
) -> list[Changes]:
    """Walk down the tree; returns the best of each level that was reached.

    Args:
        train: does fine-tunings, name → changes; returns the scores of those that ended well, by
            name.
    """
    left = math.inf if settings.trials is None else settings.trials
    best: list[Changes] = []

    def expand(level: str, children: Sequence[Changes]) -> bool:
        """Train a level and note its best; whether there was one."""
        nonlocal left
        listed = {
            name_of(changes): changes for changes in children[: int(min(left, len(children)))]
        }
        left -= len(listed)
        if len(listed) < len(children):
            say(
                "cofitune",
                f"{level}: cofitune.trials leaves out {len(children) - len(listed)} of "
                f"{len(children)}",
            )
        scores = train(listed) if listed else {}
        if not scores:
            return False
        name = max(scores, key=lambda name: scores[name])
        best.append(listed[name])
        say("cofitune", f"{level}: best is {_label(listed[name])} (score {scores[name]:.4f})")
        return True

    if expand("layers", [{LAYERS: layers, MODULES: []} for layers in settings.layers]):
        layers = best[0]
        if expand("modules", [layers | {MODULES: [group]} for group in settings.modules]):
            (group,) = best[1][MODULES]
            expand("projections", [layers | {MODULES: names} for names in settings.modules[group]])
    return best


def _label(changes: Changes) -> str:
    return f"layers {changes[LAYERS]}" + (
        f", {' + '.join(changes[MODULES])}" if changes[MODULES] else ""
    )


def importance(run: Run, stores: Mapping[str, DomainPaths]) -> list[Path]:
    """A file of unit importance per general domain, in the run's folder; measured once per model,
    records and settings.
    """
    import ray

    config, settings = run.prepare(), run.given_config.cofitune
    files: list[Path] = []

    def measure() -> Step:
        reused = True
        for name in settings.general:
            key = {
                "model": run.fingerprint(),
                "domain": name,
                # Every domain's validation may remove records from any domain's training set: all
                # the stores are part of the key.
                "stores": {one: paths.key for one, paths in stores.items()},
                "data": config.data.split(name),
                "batch": config.training.micro_batch_tokens,
                "records": settings.records,
                "dropout": settings.dropout,
                "seed": config.seed,
            }

            def write(work: Path, name: str = name) -> None:
                task = ray.remote(_measure).options(
                    num_cpus=config.training.cpus_per_worker, num_gpus=1 if run.gpu() else 0
                )
                from safetensors.torch import save

                (work / "importance.safetensors").write_bytes(
                    save(ray.get(task.remote(config, run.model(), stores, name, run.gpu())))
                )

            folder, there = cached(config.cache_folder, "importance", key, write)
            reused = reused and there
            file = run.folder.path / "cofitune" / f"importance-{name}.safetensors"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes((folder / "importance.safetensors").read_bytes())
            push(file)
            files.append(file)
        return Step(files, reused)

    run.folder.step("unit importance", measure)
    return files


def _measure(
    config: Config, model: str, paths: Mapping[str, DomainPaths], name: str, gpu: bool
) -> dict[str, Any]:
    """Unit importance on the training records of one domain, on a worker."""
    import numpy as np
    import torch

    from versatune_ray.mixture import fixed_subset
    from versatune_ray.runs.storage import fetch
    from versatune_ray.runtime.progress import Bar
    from versatune_ray.training.batching import padded_rows
    from versatune_ray.training.importance import unit_importance
    from versatune_ray.training.model import load_model

    torch.set_num_threads(config.training.cpus_per_worker)
    domain, settings = load_domains(paths, config.data)[name], config.cofitune
    indices = fixed_subset(
        len(domain.train), min(settings.records, len(domain.train)), config.seed, 0
    )
    # Two forward passes are held at once, so each gets half of the tokens of a micro-batch; records
    # of like length go together.
    batches = padded_rows(domain.train.lengths[indices], config.training.micro_batch_tokens // 2)
    records = [
        [np.asarray(domain.train[int(index)][0], dtype=np.int64) for index in indices[batch]]
        for batch in batches
    ]
    loaded = load_model(str(fetch(model)), config.model.trust_remote_code).to(
        "cuda" if gpu else "cpu"
    )
    with Bar(f"importance {name}", len(indices), "record") as bar:
        return unit_importance(loaded, records, settings.dropout, config.seed, bar.to)
