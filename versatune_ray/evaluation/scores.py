"""Scores as in the paper: a domain's is the mean of its benchmarks, a model's the mean of its
domains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from versatune_ray.errors import UserError
from versatune_ray.runs.thresholds import Z

AVERAGE = "average"
# what a task of the harness is scored by where it counts several things and none is named; and of
# one thing counted after several filters of the answer
_METRICS = ("acc", "exact_match", "pass_at_1", "pass@1", "acc_norm", "f1")
_FILTERS = ("none", "strict-match", "create_test")


@dataclass(frozen=True)
class Score:
    """A share between 0 and 1 and its standard error; benchmarks count as independent. None where
    an error is not known.
    """

    value: float
    error: float | None

    def __str__(self) -> str:
        """In percent."""
        return f"{100 * self.value:.1f}" + (
            f" ± {100 * self.error:.1f}" if self.error is not None else ""
        )


def standard_error(right: float, n: int) -> float:
    """Of the part ``right`` of ``n`` answers: the binomial one. Of none or all, whose binomial one
    would be 0 as if it was certain, half of Wilson's interval, in the same units: z / 2(n + z²).
    """
    if 0 < right < 1:
        return math.sqrt(right * (1 - right) / n)
    return Z / (2 * (n + Z**2))


def metric_of(
    numbers: Mapping[str, Any],
    higher_is_better: Mapping[str, bool | None],
    wanted: str | None,
    benchmark: str,
) -> str:
    """The key of a task's numbers, as "acc,none", that is its score.

    Args:
        numbers: of the harness: "metric,filter" → number, standard errors and texts among them.
        higher_is_better: metric → direction, as the task says; None or missing: not known.
        wanted: a metric's name, with or without its filter; None: the usual one.
        benchmark: for errors.

    Raises:
        UserError: the task has no such metric, or several and none is named or usual; or it is no
            share of which more is better, so that no mean with others would mean anything.
    """
    keys = [
        key
        for key, value in numbers.items()
        if "," in key and "_stderr" not in key and isinstance(value, int | float)
    ]
    if not keys:
        raise UserError(f"{benchmark}: the harness gave no number for it")
    names = list(dict.fromkeys(key.partition(",")[0] for key in keys))
    usual = [name for name in _METRICS if name in names]
    name = wanted or (usual or names)[0]
    there = [key for key in keys if name in (key, key.partition(",")[0])]
    plain = [key for one in _FILTERS for key in there if key.partition(",")[2] == one]
    way_out = f"write {{task: …, metric: …}} with one of {', '.join(keys)}"
    if not there:
        raise UserError(f"{benchmark}: no metric {wanted!r}; {way_out}")
    if (wanted is None and not usual and len(names) > 1) or (len(there) > 1 and not plain):
        raise UserError(f"{benchmark}: it counts several things; {way_out}")
    key = (plain or there)[0]
    title, value = key.partition(",")[0], float(numbers[key])
    direction = higher_is_better.get(title)
    if direction is False or (direction is None and title not in _METRICS):
        known = "less is better" if direction is False else "its direction is not known"
        raise UserError(f"{benchmark}: {title}: {known}, and of a score more is better; {way_out}")
    if not 0 <= value <= 1:
        raise UserError(
            f"{benchmark}: {title}: {value:g} is not within 0 and 1, as a score is; {way_out}"
        )
    return key


def mean(scores: Iterable[Score]) -> Score:
    """Every score counts the same."""
    listed = list(scores)
    errors = [one.error for one in listed]
    known = [error for error in errors if error is not None]
    error = math.hypot(*known) / len(listed) if len(known) == len(listed) else None
    return Score(sum(one.value for one in listed) / len(listed), error)


def scores(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Score]]:
    """Model → domain → score, and ``average`` over the domains; of rows as in
    ``evaluation/results.json``.

    Only what every model was measured on counts, so that models stay comparable where some
    measurements failed.
    """
    found: dict[str, dict[tuple[str, str], Score]] = {}
    for row in rows:
        found.setdefault(row["model"], {})[row["domain"], row["benchmark"]] = Score(
            row["value"], row["standard_error"]
        )
    shared = [
        key for key in next(iter(found.values()), {}) if all(key in one for one in found.values())
    ]
    table: dict[str, dict[str, Score]] = {}
    for model, by_benchmark in found.items():
        domains = list(dict.fromkeys(domain for domain, _ in shared))
        by_domain = {
            name: mean(by_benchmark[key] for key in shared if key[0] == name) for name in domains
        }
        table[model] = by_domain | ({AVERAGE: mean(by_domain.values())} if by_domain else {})
    return table


def table(found: Mapping[str, Mapping[str, Score]]) -> str:
    """Models as rows, domains as columns, in percent with standard errors."""
    columns = list(next(iter(found.values())))
    width = max(12, *(len(column) + 2 for column in columns))
    first = max(len("model"), *map(len, found)) + 2
    lines = ["model".ljust(first) + "".join(column.rjust(width) for column in columns)]
    for model, row in found.items():
        lines.append(
            model.ljust(first) + "".join(str(row[column]).rjust(width) for column in columns)
        )
    return "\n".join(lines)
