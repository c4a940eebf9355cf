"""Methods × seeds on one model and data: the papers' tables, with intervals and differences seed by
seed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from versatune_ray.errors import UserError
from versatune_ray.evaluation.choices import chance, load_choices
from versatune_ray.evaluation.scores import standard_error
from versatune_ray.pipeline import Run
from versatune_ray.runs.cache import cached, key_of, write_json
from versatune_ray.runs.comparisons import StudyTable, trial_name
from versatune_ray.runs.storage import push
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.idle import idle
from versatune_ray.tuning.plan import Plan, check_differ, leaves, with_artefacts
from versatune_ray.tuning.study_tables import NOTE, above_chance, absent, study_tables
from versatune_ray.tuning.trial import where_it_is_fast
from versatune_ray.tuning.trials import finish, run_trials


def check_study(config: Config) -> None:
    """Everything about a study that can be wrong before anything is computed.

    Raises:
        UserError: no methods, an unknown baseline, key or value, one that does nothing or is not a
            method's to change, or a reference to a method that does not exist or refers on.
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
    folder, times = Counter(trial_name(name, 0) for name in settings.chosen).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"study.methods: {times} names differ in signs only and would share the folder "
            f"{folder}; use other letters"
        )
    members: dict[str, Config] = {}
    for name, changes in settings.chosen.items():
        source = _source(changes)
        if source is not None and (
            source not in settings.chosen or _source(settings.chosen[source]) is not None
        ):
            raise UserError(
                f"study.methods.{name}: mixture.trajectory: '@{source}' is no method that is "
                f"trained by itself"
            )
        if "seed" in changes:
            raise UserError(f"study.methods.{name}: seed: study.seeds has the seeds of all methods")
        changed = Plan(config).config(trial_name(name, 0), alone(changes))
        semantics.check(changed, semantics.domain_names(changed))
        if source is None:
            members[f"study.methods.{name}"] = changed
        given = [f"{key}." for key in leaves(alone(changes))]
        for key, why in idle(changed).items():
            if any(one.startswith(f"{key}.") for one in given) and _differs(config, changed, key):
                raise UserError(
                    f"study.methods.{name}: {key} does nothing there: {why}; leave it out"
                )
    check_differ(members)


def _differs(config: Config, changed: Config, key: str) -> bool:
    if key.startswith("stages."):  # one of a list, which has no such attribute
        return False
    get = attrgetter(key)
    return bool(get(config) != get(changed))


def study(run: Run) -> Path:
    """Run what is missing of the study; returns the report.

    Raises:
        Incomplete: some runs failed; the tables have the others.
    """
    config, settings = run.given_config, run.given_config.study
    listed = trials_of(config)
    configs = {
        f"study.methods.{name}": Plan(config).config("check", alone(changes))
        for name, changes in settings.chosen.items()
    }
    # before anything is made: a broken record is told at once
    choices = load_choices(config)
    shared = with_artefacts(run, configs, config.mixture.targets, {"gain": 1.0})
    shared = replace(shared, choices=choices)
    first = {trial: changes for trial, changes in listed.items() if _source(changes) is None}
    failed = run_trials(run, shared, first, "study", settings.concurrency)
    then = {
        trial: changes
        | {
            "mixture.trajectory": str(
                shared.trials
                / trial_name(source, changes["seed"])
                / "finetune"
                / "adjustments.jsonl"
            )
        }
        for trial, changes in listed.items()
        if (source := _source(changes)) is not None
        and shared.outcome(trial_name(source, changes["seed"])) is not None
    }
    if then:
        failed |= run_trials(run, shared, then, "study", settings.concurrency)
    _write_tables(run, shared, _before(run, shared))
    return finish(run, failed)


def trials_of(config: Config) -> dict[str, dict[str, Any]]:
    """What every run of a study changes, by name."""
    return {
        trial_name(name, seed): dict(changes) | {"seed": seed}
        for name, changes in config.study.chosen.items()
        for seed in config.study.seeds
    }


def _source(changes: Mapping[str, Any]) -> str | None:
    """The method whose average mixture this one is trained on."""
    value = changes.get("mixture.trajectory")
    return value[1:] if isinstance(value, str) and value.startswith("@") else None


def alone(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What a method changes, as far as it is known before the method that it refers to is trained:
    in place of that one's average mixture uniform shares.
    """
    if _source(changes) is None:
        return dict(changes)
    found = {key: value for key, value in changes.items() if key != "mixture.trajectory"}
    if found.get("mixture.start") == "trajectory":
        found["mixture.start"] = "uniform"
    return found


def _before(run: Run, shared: Plan) -> dict[str, float]:
    """Accuracy of the base model in multiple choice, per domain that has some; measured once."""
    if not shared.choices:
        return {}
    model, remote = run.model(), run.given_config.model.trust_remote_code
    asked = key_of({"choices": shared.choices})
    # read: without it, what a tokenizer begins a text with was left out
    parts = {"model": run.fingerprint(), "choices": asked, "gpu": run.gpu(), "read": "whole"}

    def measure(work: Path) -> None:
        from versatune_ray.evaluation.likely import likely_accuracy

        found = where_it_is_fast(run, likely_accuracy, model, shared.choices, remote, run.gpu())
        write_json(work / "accuracy.json", found)

    folder, _ = cached(run.cache, "choices", parts, measure)
    found: dict[str, float] = json.loads((folder / "accuracy.json").read_text(encoding="utf-8"))
    return found


def _write_tables(run: Run, shared: Plan, before: Mapping[str, float] | None = None) -> None:
    """``study/tables.md``, ``tables.json`` and one CSV per table, of what is done. ``before``: the
    base's accuracy in multiple choice.
    """
    settings = run.given_config.study
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for method in settings.chosen:
        outcomes = {seed: shared.outcome(trial_name(method, seed)) for seed in settings.seeds}
        found[method] = {seed: one for seed, one in outcomes.items() if one is not None}
    asked = {name: len(questions) for name, questions in shared.questions.items()}
    names = run.domain_names()
    chances = {name: chance(some) for name, some in shared.choices.items()}
    tables = study_tables(
        found, names, run.unit(), shared.targets, settings.baseline, asked, chances
    )
    missing = absent(found, settings.seeds, names, asked)
    if before:
        n = {name: sum(map(len, some)) for name, some in shared.choices.items()}
        parts = (
            f"{name} {points:+.1f} ± {100 * standard_error(before[name], n[name]):.1f} ({n[name]})"
            for name, points in above_chance(before, chances).items()
        )
        missing.append(
            f"Before training, in points above chance with one standard error (questions): "
            f"{', '.join(parts)}."
        )
    folder = run.folder.path / "study"
    folder.mkdir(exist_ok=True)
    (folder / "tables.md").write_text(
        "\n".join([NOTE, *missing])
        + "\n"
        + "".join(f"\n**{one.title}**\n\n{one.markdown()}\n" for one in tables),
        encoding="utf-8",
    )
    run.folder.write(StudyTable.FILE, [asdict(one) for one in tables])
    for number, one in enumerate(tables, 1):
        (folder / f"table_{number}.csv").write_text(one.csv(), encoding="utf-8")
    for file in folder.iterdir():
        push(file)
    print("\n" + (folder / "tables.md").read_text(encoding="utf-8"), flush=True)
