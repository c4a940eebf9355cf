"""Methods × seeds on one model and data: the papers' tables, with intervals and differences seed by
seed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from versatune_ray.errors import Incomplete, UserError
from versatune_ray.pipeline import Run
from versatune_ray.runs.storage import push
from versatune_ray.settings import Config, semantics
from versatune_ray.tuning.objectives import achieved
from versatune_ray.tuning.tables import Table, table
from versatune_ray.tuning.trials import Failure, Plan, finish, run_trials, told, with_artefacts

Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # method → seed → outcome


def check_study(config: Config) -> None:
    """Everything about a study that can be wrong before anything is computed.

    Raises:
        UserError: no methods, an unknown baseline, key or value, or a reference to a method that
            does not exist or refers on.
    """
    settings = config.study
    if not settings.methods:
        raise UserError(
            "study.methods: missing; name at least one, for example "
            "study.methods.uniform={mixture.start: uniform}"
        )
    if settings.baseline not in settings.chosen:
        raise UserError(
            f"study.baseline: {settings.baseline!r} is no method; valid: "
            f"{', '.join(settings.chosen)}"
        )
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise UserError(f"study.seeds: name each seed once; found {settings.seeds}")
    folder, times = Counter(_trial(name, 0) for name in settings.chosen).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"study.methods: {times} names differ in signs only and would share the folder "
            f"{folder}; use other letters"
        )
    for name, changes in settings.chosen.items():
        source = _source(changes)
        if source is not None and (
            source not in settings.chosen or _source(settings.chosen[source]) is not None
        ):
            raise UserError(
                f"study.methods.{name}: mixture.trajectory: '@{source}' is no method that is "
                f"trained by itself"
            )
        changed = Plan(config).config(
            _trial(name, 0), {key: value for key, value in changes.items() if source is None}
        )
        semantics.check(changed, semantics.domain_names(changed))


def study(run: Run) -> Path:
    """Run what is missing of the study; returns the report.

    Raises:
        Incomplete: some runs failed; the tables have the others.
    """
    config, settings = run.given_config, run.given_config.study
    listed = {
        _trial(name, seed): dict(changes) | {"seed": seed}
        for name, changes in settings.chosen.items()
        for seed in settings.seeds
    }
    alone = [
        {key: value for key, value in changes.items() if _source(changes) is None}
        for changes in settings.chosen.values()
    ]
    configs = [Plan(config).config("check", changes) for changes in alone]
    shared = with_artefacts(run, configs, config.mixture.targets, {"gain": 1.0})
    first = {trial: changes for trial, changes in listed.items() if _source(changes) is None}
    failed = run_trials(run, shared, first, "study", settings.concurrency)
    then = {
        trial: changes
        | {
            "mixture.trajectory": str(
                shared.trials / _trial(source, changes["seed"]) / "finetune" / "adjustments.jsonl"
            )
        }
        for trial, changes in listed.items()
        if (source := _source(changes)) is not None
        and shared.outcome(_trial(source, changes["seed"])) is not None
    }
    if then:
        failed |= run_trials(run, shared, then, "study", settings.concurrency)
    _write_tables(run, shared, failed)
    return finish(run, failed)


def _trial(method: str, seed: int) -> str:
    """Name of a run and its folder."""
    return f"{re.sub('[^A-Za-z0-9.]+', '-', method).strip('-.') or 'method'}-{seed}"


def _source(changes: Mapping[str, Any]) -> str | None:
    """The method whose average mixture this one is trained on."""
    value = changes.get("mixture.trajectory")
    return value[1:] if isinstance(value, str) and value.startswith("@") else None


def _write_tables(run: Run, shared: Plan, failed: Mapping[str, Failure]) -> None:
    """``study/tables.md`` and one CSV per table: final held-out losses, accuracies, and for
    expansion what each epoch won and lost.
    """
    settings = run.given_config.study
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for method in settings.chosen:
        outcomes = {seed: shared.outcome(_trial(method, seed)) for seed in settings.seeds}
        found[method] = {seed: one for seed, one in outcomes.items() if one is not None}
    if not found[settings.baseline]:
        raise Incomplete(
            f"no run of the baseline {settings.baseline!r} is done; failed: {told(failed)}"
        )
    names = run.domain_names()
    tables = [
        _table(
            f"Held-out loss after training ({run.unit()}, lower is better)",
            found,
            "after",
            names,
            settings.baseline,
            1,
            3,
        )
    ]
    if all(one["accuracy"] for seeds in found.values() for one in seeds.values()):
        tables.append(
            _table(
                "Exact match of greedy answers (%, higher is better)",
                found,
                "accuracy",
                names,
                settings.baseline,
                100,
                1,
            )
        )
    if shared.targets:
        parts = {
            method: {
                seed: {k: 100 * v for k, v in one["objectives"].items()}
                for seed, one in seeds.items()
            }
            for method, seeds in found.items()
        }
        title = (
            f"Expansion to {', '.join(shared.targets)} (relative change of the held-out loss, %)"
        )
        tables.append(
            table(
                title,
                parts,
                ["target_gain", "forgetting", "gain"],
                "forgetting",
                settings.baseline,
                2,
            )
        )
        tables += _epoch_tables(found, shared.targets, settings.baseline)
    folder = run.folder.path / "study"
    folder.mkdir(exist_ok=True)
    note = (
        "Means over seeds with 95 % intervals (Student's t); differences are paired by seed, in "
        "bold where the interval leaves 0 out.\n"
    )
    (folder / "tables.md").write_text(
        note + "".join(f"\n**{one.title}**\n\n{one.markdown()}\n" for one in tables),
        encoding="utf-8",
    )
    run.folder.write("study/tables.json", [asdict(one) for one in tables])
    for number, one in enumerate(tables, 1):
        (folder / f"table_{number}.csv").write_text(one.csv(), encoding="utf-8")
    for file in folder.iterdir():
        push(file)
    print("\n" + (folder / "tables.md").read_text(encoding="utf-8"), flush=True)


def _epoch_tables(found: Found, targets: Sequence[str], baseline: str) -> list[Table]:
    """What the targets gained and the others lost up to the end of each epoch (Figures 2 and 4 of
    the paper).
    """
    epochs = min(len(one["by_epoch"]) for seeds in found.values() for one in seeds.values())
    titles = {
        "target_gain": f"Gain of {', '.join(targets)} by epoch (%)",
        "forgetting": "Forgetting of the other domains by epoch (%)",
    }
    return [
        table(
            title,
            {
                method: {
                    seed: {
                        f"epoch {number}": 100 * achieved(one["before"], losses, targets)[objective]
                        for number, losses in enumerate(one["by_epoch"], 1)
                    }
                    for seed, one in seeds.items()
                }
                for method, seeds in found.items()
            },
            [f"epoch {number}" for number in range(1, epochs + 1)],
            f"epoch {epochs}",
            baseline,
            2,
        )
        for objective, title in titles.items()
        if epochs > 1
    ]


def _table(
    title: str,
    found: Found,
    key: str,
    names: Sequence[str],
    baseline: str,
    scale: float,
    digits: int,
) -> Table:
    values = {
        method: {
            seed: {name: scale * one[key][name] for name in names}
            | {"mean": scale * sum(one[key][name] for name in names) / len(names)}
            for seed, one in seeds.items()
        }
        for method, seeds in found.items()
    }
    return table(title, values, [*names, "mean"], "mean", baseline, digits)
