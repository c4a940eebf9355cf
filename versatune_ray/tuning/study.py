"""Methods × seeds on one model and data: the papers' tables, with intervals and differences seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from versatune_ray.errors import Incomplete, UserError
from versatune_ray.pipeline import Run
from versatune_ray.settings import Config
from versatune_ray.training import plan as training_plan
from versatune_ray.tuning.trials import Plan, run_trials, with_artefacts


def check(config: Config) -> None:
    """Everything about a study that can be wrong before anything is computed.

    Raises:
        UserError: no methods, an unknown baseline, key or value, or a reference to a method that does not exist or refers on.
    """
    settings = config.study
    if not settings.methods:
        raise UserError("study.methods: missing; name at least one, for example study.methods.uniform={mixture.start: uniform}")
    if settings.baseline not in settings.methods:
        raise UserError(f"study.baseline: {settings.baseline!r} is no method; valid: {', '.join(settings.methods)}")
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise UserError(f"study.seeds: name each seed once; found {settings.seeds}")
    for name, changes in settings.methods.items():
        source = _source(changes)
        if source is not None and (source not in settings.methods or _source(settings.methods[source]) is not None):
            raise UserError(f"study.methods.{name}: mixture.trajectory: '@{source}' is no method that is trained by itself")
        changed = Plan(config).config(_trial(name, 0), {key: value for key, value in changes.items() if source is None})
        training_plan.check(changed, training_plan.domain_names(changed))


def study(run: Run) -> Path:
    """Run what is missing of the study; returns the report.

    Raises:
        Incomplete: some runs failed; the tables have the others.
    """
    config, settings = run.config, run.config.study
    listed = {_trial(name, seed): dict(changes) | {"seed": seed} for name, changes in settings.methods.items() for seed in settings.seeds}
    alone = [{key: value for key, value in changes.items() if _source(changes) is None} for changes in settings.methods.values()]
    targets = tuple(config.mixture.targets)
    shared = Plan(with_artefacts(run, [Plan(config).config("check", changes) for changes in alone]), targets)
    first = {trial: changes for trial, changes in listed.items() if _source(changes) is None}
    failed = run_trials(shared, first, "study", settings.concurrency)
    then = {
        trial: changes | {"mixture.trajectory": str(shared.trials / _trial(source, changes["seed"]) / "finetune" / "adjustments.jsonl")}
        for trial, changes in listed.items()
        if (source := _source(changes)) is not None and shared.outcome(_trial(source, changes["seed"])) is not None
    }
    if then:
        failed |= run_trials(shared, then, "study", settings.concurrency)
    # tables
    if failed:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:3])
        raise Incomplete(f"{len(failed)} of {len(listed)} runs failed ({told}); the same command tries them again")
    return run.report()


def _trial(method: str, seed: int) -> str:
    return f"{method}-{seed}"


def _source(changes: Mapping[str, Any]) -> str | None:
    """The method whose average mixture this one is trained on."""
    value = changes.get("mixture.trajectory")
    return value[1:] if isinstance(value, str) and value.startswith("@") else None
