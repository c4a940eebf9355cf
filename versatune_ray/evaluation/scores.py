"""Scores as in the paper: a domain's is the mean of its benchmarks, a model's the mean of its
domains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

AVERAGE = "average"


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
