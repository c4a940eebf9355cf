"""Search over ε, δ, σ, or any other key."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from versatune_ray.errors import UserError
from versatune_ray.pipeline import Run
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.idle import idle
from versatune_ray.settings.tuning import BY_ACCURACY, Sweep
from versatune_ray.tuning.plan import Plan, check_differ, name_of, with_artefacts
from versatune_ray.tuning.pruning import between_marks, scheduler, stages_of
from versatune_ray.tuning.results import outcomes, write_results
from versatune_ray.tuning.trials import finish, run_trials

_MOST_CHECKED = 200  # combinations, at some milliseconds each


def check_sweep(config: Config) -> None:
    """Everything about a sweep that can be wrong before anything is computed.

    Raises:
        UserError: an unknown key, a value out of range, a range where a grid needs values, a key
            by which trials cannot differ, or an objective without targets.
    """
    settings = config.sweep
    if not settings.space:
        raise UserError(
            "sweep.space: empty; name a key and its values, for example "
            "sweep.space.mixture.sigma=[0.5,1,2]"
        )
    shared = _plan(config)
    for key, values in settings.space.items():
        if isinstance(values, Mapping) and settings.search == "grid":
            raise UserError(
                f"sweep.space.{key}: a grid needs a list of values; sweep.search=random or optuna "
                f"takes a range"
            )
        if f"{key}.".startswith("training.keep.replay."):
            raise UserError(
                f"sweep.space.{key}: a sweep's trials share the same records; compare such runs "
                f"as methods of a study, by jobs/study.py"
            )
    nothing: list[dict[str, str]] = []
    members: dict[str, Config] = {}
    for changes in _combinations(settings):
        changed = shared.config("check", changes)
        semantics.check(changed, semantics.domain_names(changed))
        nothing.append(idle(changed))
        for key, values in settings.space.items():
            if isinstance(values, list) and values.count(changes[key]) > 1:
                raise UserError(f"sweep.space.{key}: {changes[key]!r} is there more than once")
        members[_called(changes)] = changed
    for key in settings.space:
        if all(key in one for one in nothing):
            raise UserError(
                f"sweep.space.{key}: trials would not differ by it: {nothing[0][key]}; leave it out"
            )
    check_differ(members)
    check_objective(config, semantics.domain_names(config))


def check_objective(config: Config, names: Sequence[str]) -> None:
    """Whether every trial can be scored.

    Raises:
        UserError: ``sweep.objective`` wants targets, other domains, questions or benchmarks that
            are not there.
    """
    aims, targets = (
        [name for name, weight in config.sweep.objective.items() if weight],
        config.mixture.targets,
    )
    if needy := [aim for aim in aims if aim not in ("gain", "accuracy")]:
        if not targets:
            raise UserError(
                f"sweep.objective: {needy[0]} needs mixture.targets; name the domains to expand, "
                f"or weigh gain alone"
            )
        if set(names) <= set(targets):
            raise UserError(
                f"mixture.targets: every domain is one, so that {needy[0]} has nothing to compare; "
                f"leave one out"
            )
    measured = [aim for aim in aims if aim in BY_ACCURACY]
    if measured and config.sweep.prune:
        raise UserError(
            f"sweep.prune: {measured[0]} is measured at the end of a trial, so none can be stopped "
            f"early by it"
        )
    asked = {name for name, domain in config.domains.items() if domain.questions} | set(
        config.evaluation.benchmarks
    )
    of = {
        "accuracy": asked,
        "target_accuracy": asked & set(targets),
        "other_accuracy": asked - set(targets),
    }
    for aim in measured if config.domains else ():  # the microworld has questions for every domain
        if not of[aim]:
            raise UserError(
                f"sweep.objective: {aim} needs domains.NAME.questions or "
                f"evaluation.benchmarks.NAME; no such domain has any"
            )


def sweep(run: Run) -> Path:
    """Run what is missing of the sweep; returns the report.

    Raises:
        Incomplete: some trials failed; the others are in the table.
    """
    config, settings = run.given_config, run.given_config.sweep
    alternatives = {
        _called(changes): _plan(config).config("check", changes)
        for changes in _combinations(settings)
    }
    shared = with_artefacts(run, alternatives, config.mixture.targets, settings.objective)
    search, stopping = None, None
    listed: dict[str, dict[str, Any]] = {}
    if settings.search in ("grid", "random"):
        combinations = (
            _grid(settings) if settings.search == "grid" else _random(settings, config.seed)
        )
        listed = {name_of(changes): changes for changes in combinations}
    else:
        known = {
            name: one
            for name, one in outcomes(shared, settings.space)
            if _within(one["changes"], settings) and (settings.prune or one["pruned_at"] is None)
        }
        listed = {name: one["changes"] for name, one in known.items()}
        search = _optuna(settings, config.seed, list(known.values()))
    more = 0 if search is None else max(0, settings.trials - len(listed))
    if settings.prune:
        # of one of the trials: the configuration itself need not be one that trains
        every = between_marks(stages_of(next(iter(alternatives.values())), shared.stores))
        shared, stopping = replace(shared, marks=every), scheduler(every, settings.grace)
    failed = run_trials(
        run,
        shared,
        listed,
        "sweep",
        settings.concurrency,
        search=search,
        more=more,
        scheduler=stopping,
    )
    write_results(run, shared, list(settings.space), failed)
    return finish(run, failed)


def _combinations(settings: Sweep) -> Iterator[dict[str, Any]]:
    """What trials will change, as a whole, since one key may need another: all combinations of
    values and of the ends of ranges, or, of very many, those that have every value.
    """
    space = {
        key: [values["min"], values["max"]] if isinstance(values, Mapping) else list(values)
        for key, values in settings.space.items()
    }
    if math.prod(map(len, space.values())) <= _MOST_CHECKED:
        for values in itertools.product(*space.values()):
            yield dict(zip(space, values, strict=True))
        return
    for place in range(max(map(len, space.values()))):
        yield {key: values[place % len(values)] for key, values in space.items()}


def _called(changes: Mapping[str, Any]) -> str:
    return f"sweep.space: {', '.join(f'{key}={value!r}' for key, value in changes.items())}"


def _plan(config: Config) -> Plan:
    return Plan(config, targets=tuple(config.mixture.targets), weights=config.sweep.objective)


def _grid(settings: Sweep) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*settings.space.values()):
        yield dict(zip(settings.space, values, strict=True))


def _random(settings: Sweep, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    for _ in range(settings.trials):
        yield {key: _draw(values, rng) for key, values in settings.space.items()}


def _draw(values: Any, rng: np.random.Generator) -> Any:
    if not isinstance(values, Mapping):
        return values[int(rng.integers(len(values)))]
    low, high = float(values["min"]), float(values["max"])
    value = (
        float(np.exp(rng.uniform(np.log(low), np.log(high))))
        if values.get("log")
        else float(rng.uniform(low, high))
    )
    return float(f"{value:.6g}")


def _optuna(settings: Sweep, seed: int, known: Sequence[Mapping[str, Any]]) -> Any:
    """Optuna, told of what the trials with ``known`` outcomes found."""
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    def domain(values: Any) -> Any:
        if not isinstance(values, Mapping):
            return tune.choice(values)
        return (tune.loguniform if values.get("log") else tune.uniform)(
            float(values["min"]), float(values["max"])
        )

    def inside(key: str, value: Any) -> Any:
        limits = settings.space[key]  # a value rounded to six digits may lie just beyond
        return (
            min(max(value, limits["min"]), limits["max"]) if isinstance(limits, Mapping) else value
        )

    aims = (
        {"score": 1.0}
        if settings.search == "optuna"
        else {name: weight for name, weight in settings.objective.items() if weight}
    )
    space = OptunaSearch.convert_search_space(
        {key: domain(values) for key, values in settings.space.items()}
    )
    storage, name = optuna.storages.InMemoryStorage(), "sweep"
    directions: list[Literal["maximize", "minimize"]] = [
        "maximize" if weight > 0 else "minimize" for weight in aims.values()
    ]
    before = optuna.create_study(storage=storage, study_name=name, directions=directions)
    for one in known:
        if one["pruned_at"] is None and np.isfinite([one["objectives"][aim] for aim in aims]).all():
            params = {key: inside(key, value) for key, value in one["changes"].items()}
            before.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions=space,
                    values=[one["objectives"][aim] for aim in aims],
                )
            )
    modes = [direction[:3] for direction in directions]
    metric, mode = (list(aims), modes) if len(aims) > 1 else (next(iter(aims)), modes[0])
    return OptunaSearch(
        space, metric=metric, mode=mode, storage=storage, study_name=name, seed=seed + len(known)
    )


def _within(changes: Mapping[str, Any], settings: Sweep) -> bool:
    """Whether the space has these values."""
    return all(_is_in(changes[key], values) for key, values in settings.space.items())


def _is_in(value: Any, values: Any) -> bool:
    if not isinstance(values, Mapping):
        return value in values
    # drawn values are rounded to six digits
    slack = 1e-5 * max(abs(values["min"]), abs(values["max"]))
    return bool(values["min"] - slack <= value <= values["max"] + slack)
