"""Runs as the papers' tables: per-domain scores, their mean, and differences from a baseline.
Pure.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from versatune_ray.runs.thresholds import AMONG_ALL
from versatune_ray.tuning.statistics import Estimate, adjusted, estimate, paired_difference

Values = Mapping[str, Mapping[int, Mapping[str, float]]]  # method → seed → column → value


@dataclass(frozen=True)
class Table:
    """One row per method: an estimate per column that was measured, and the paired difference of
    ``of`` from the baseline (None in its own row, and where they share no seed). ``missing``: what
    is not in it, in sentences.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, Estimate]]
    of: str
    baseline: str
    differences: dict[str, Estimate | None]
    digits: int = 3
    missing: tuple[str, ...] = ()

    def markdown(self) -> str:
        head = ["method", *self.columns, f"{self.of} − {self.baseline}"]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for method, row in self.rows.items():
            cells = [
                shown(row[column], self.digits) if column in row else "–" for column in self.columns
            ]
            lines.append(f"| {' | '.join([method, *cells, self._difference(method)])} |")
        return "\n".join([*lines, *(f"\n{sentence}" for sentence in self.missing)])

    def _difference(self, method: str) -> str:
        one = self.differences[method]
        if one is None:
            return "" if method == self.baseline else "–"
        told = shown(one, self.digits, signed=True)
        told = f"**{told}**" if one.sure else told
        return f"{told} {AMONG_ALL}" if one.sure_among_all else told

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "column", "mean", "half_width_95", "n", "p", "p_holm"])
        for method, row in self.rows.items():
            for column, one in row.items():
                writer.writerow([method, column, one.mean, one.half_width, one.n, "", ""])
            if (gap := self.differences[method]) is not None:
                name = f"{self.of} - {self.baseline}"
                writer.writerow([method, name, gap.mean, gap.half_width, gap.n, gap.p, gap.holm])
        return text.getvalue()


def table(
    title: str,
    values: Values,
    columns: Sequence[str],
    of: str,
    baseline: str,
    digits: int = 3,
    *,
    asked: Mapping[str, int] | None = None,
    whole: float = 1.0,
) -> Table:
    """Means over seeds with 95 % intervals, and differences paired over the seeds that a method
    shares with ``baseline``, corrected for how many there are. What was not measured is left out,
    and named.

    Args:
        asked: questions of a column, where its values are parts of ``whole`` (see ``estimate``).
    """
    there = {
        method: {
            column: [one[column] for one in seeds.values() if column in one] for column in columns
        }
        for method, seeds in values.items()
        if seeds
    }
    rows = {
        method: {
            column: estimate(found, (asked or {}).get(column), whole)
            for column, found in row.items()
            if found
        }
        for method, row in there.items()
    }

    def compared(method: str) -> dict[int, float]:
        return {seed: one[of] for seed, one in values.get(method, {}).items() if of in one}

    differences = {
        method: None
        if method == baseline
        else paired_difference(compared(method), compared(baseline))
        for method in rows
    }
    apart = [name for name, one in differences.items() if one is None and name != baseline]
    if not rows.get(baseline):
        missing = [f"No run of the baseline {baseline} is done, so there are no differences."]
    else:
        missing = [f"{name} shares no measured seed with {baseline}." for name in apart]
    return Table(
        title, tuple(columns), rows, of, baseline, adjusted(differences), digits, tuple(missing)
    )


def shown(one: Estimate, digits: int, signed: bool = False) -> str:
    """``4.119 ± 0.012``; without an interval where there is one run."""
    mean = f"{one.mean:+.{digits}f}" if signed else f"{one.mean:.{digits}f}"
    return mean if math.isnan(one.half_width) else f"{mean} ± {one.half_width:.{digits}f}"
