"""The tables of a study, from what its runs left: final held-out losses, greedy accuracies, and for
expansion what each epoch won and lost. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from versatune_ray.runs.thresholds import AMONG_ALL
from versatune_ray.tuning.objectives import achieved
from versatune_ray.tuning.tables import Table, Values, table

Found = Mapping[str, Mapping[int, Mapping[str, Any]]]  # method → seed → outcome

NOTE = (
    "Means over seeds with 95 % intervals (Student's t; Wilson's where every answer of every seed "
    "was right, or wrong). Differences are paired by seed, in bold where p < 0.05 by itself, and "
    f"with {AMONG_ALL} where that holds for all methods of the table together (Holm). All runs "
    "start from one base model, and share its detection and reference losses: what is told apart "
    "is told apart on it."
)


def study_tables(
    found: Found,
    names: Sequence[str],
    unit: str,
    targets: Sequence[str],
    baseline: str,
    asked: Mapping[str, int],
    chances: Mapping[str, float] | None = None,
) -> list[Table]:
    """All tables of which there is anything.

    Args:
        found: outcomes of the runs that are done; a method may have none.
        names: the domains.
        unit: of the losses.
        asked: questions per domain that has some.
        chances: accuracy of guessing, per domain that has multiple choice.
    """
    tables = [
        _per_domain(
            f"Held-out loss after training ({unit}, lower is better)",
            found,
            "after",
            names,
            baseline,
            3,
        )
    ]
    if asked:
        tables.append(
            _per_domain(
                "Greedy accuracy after training (%, higher is better)",
                found,
                "accuracy",
                [name for name in names if name in asked],
                baseline,
                1,
                {name: asked[name] for name in names if name in asked},
            )
        )
    if chances:
        title = "Multiple choice after training (points above chance, higher is better)"
        tables.append(_above_chance(title, found, chances, baseline))
    if targets:
        title = f"Expansion to {', '.join(targets)} (relative change of the held-out loss, %)"
        parts = _each(
            found, lambda one: {key: 100 * value for key, value in one["objectives"].items()}
        )
        columns = ["target_gain", "forgetting", "gain"]
        tables.append(table(title, parts, columns, "forgetting", baseline, 2))
        tables += _per_epoch(found, targets, baseline)
    tables.append(_beside_training(found, baseline))
    return [one for one in tables if any(one.rows.values())]


def absent(found: Found, seeds: Sequence[int], names: Sequence[str], asked: Any) -> list[str]:
    """What the tables do not have, in sentences."""
    told = [
        f"Not done: {method}, seed{'s' if len(left) > 1 else ''} {', '.join(map(str, left))}."
        for method, done in found.items()
        if (left := [seed for seed in seeds if seed not in done])
    ]
    silent = [name for name in names if name not in asked]
    if asked and silent:
        told.append(f"No accuracy of {', '.join(silent)}: no questions there.")
    return told


def _each(found: Found, values: Any) -> Values:
    return {
        method: {seed: values(one) for seed, one in seeds.items()}
        for method, seeds in found.items()
    }


def _per_domain(
    title: str,
    found: Found,
    key: str,
    names: Sequence[str],
    baseline: str,
    digits: int,
    asked: Mapping[str, int] | None = None,
) -> Table:
    """A column per domain and their mean, which only runs with all of them have; accuracies, where
    there are questions that were ``asked``, in percent.
    """
    whole = 1.0 if asked is None else 100.0

    def values(one: Mapping[str, Any]) -> dict[str, float]:
        measured = one[key] or {}
        row = {name: whole * measured[name] for name in names if name in measured}
        return row | ({"mean": sum(row.values()) / len(row)} if len(row) == len(names) else {})

    questions = None if asked is None else {**asked, "mean": sum(asked.values())}
    columns = [*names, "mean"]
    return table(
        title,
        _each(found, values),
        columns,
        "mean",
        baseline,
        digits,
        asked=questions,
        whole=whole,
    )


def _above_chance(title: str, found: Found, chances: Mapping[str, float], baseline: str) -> Table:
    """A column per domain with multiple choice and their mean, which only runs with all of them
    have.
    """

    def values(one: Mapping[str, Any]) -> dict[str, float]:
        row = above_chance(one.get("choices") or {}, chances)
        return row | ({"mean": sum(row.values()) / len(row)} if len(row) == len(chances) else {})

    return table(title, _each(found, values), [*chances, "mean"], "mean", baseline, 1)


def above_chance(accuracies: Mapping[str, float], chances: Mapping[str, float]) -> dict[str, float]:
    """Points above guessing, per domain."""
    return {
        name: 100 * (accuracies[name] - chances[name]) for name in chances if name in accuracies
    }


def _beside_training(found: Found, baseline: str) -> Table:
    """What a method costs: its time for held-out losses, gradients and the controller, over that of
    its steps. Probes are steps.
    """
    name = "measuring"

    def values(one: Mapping[str, Any]) -> dict[str, float]:
        spent = one.get("seconds") or {}  # none in what versions before left
        return {name: 100 * spent[name] / spent["training"]} if spent.get("training") else {}

    title = "Time for measuring (% of the time for training, lower is better)"
    return table(title, _each(found, values), [name], name, baseline, 0)


def _per_epoch(found: Found, targets: Sequence[str], baseline: str) -> list[Table]:
    """What the targets gained and the others lost up to the end of each epoch in which that was
    measured (Figures 2 and 4 of the paper).
    """
    measured = {
        number
        for seeds in found.values()
        for one in seeds.values()
        for number, losses in enumerate(one["by_epoch"], 1)
        if losses is not None
    }
    titles = {
        "target_gain": f"Gain of {', '.join(targets)} by epoch (%)",
        "forgetting": "Forgetting of the other domains by epoch (%)",
    }

    def values(objective: str) -> Values:
        return _each(
            found,
            lambda one: {
                f"epoch {number}": 100 * achieved(one["before"], losses, targets)[objective]
                for number, losses in enumerate(one["by_epoch"], 1)
                if losses is not None
            },
        )

    columns = [f"epoch {number}" for number in sorted(measured)]
    return [
        table(title, values(objective), columns, columns[-1], baseline, 2)
        for objective, title in titles.items()
        if len(measured) > 1
    ]
