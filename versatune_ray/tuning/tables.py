"""A study's runs as the papers' tables: per-domain scores, their mean, and differences from a
baseline. Pure.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from versatune_ray.tuning.statistics import Estimate, estimate, paired_difference

Values = Mapping[str, Mapping[int, Mapping[str, float]]]  # method → seed → column → value


@dataclass(frozen=True)
class Table:
    """One row per method: an estimate per column, and the paired difference of ``of`` from the
    baseline (None in its own row).
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, Estimate]]
    of: str
    baseline: str
    differences: dict[str, Estimate | None]
    digits: int = 3

    def markdown(self) -> str:
        head = ["method", *self.columns, f"{self.of} − {self.baseline}"]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for method, row in self.rows.items():
            difference = self.differences[method]
            told = "" if difference is None else shown(difference, self.digits, signed=True)
            if difference is not None and difference.sure:
                told = f"**{told}**"
            cells = [method, *(shown(row[column], self.digits) for column in self.columns), told]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["method", "column", "mean", "half_width_95", "n"])
        for method, row in self.rows.items():
            for column, one in row.items():
                writer.writerow([method, column, one.mean, one.half_width, one.n])
            difference = self.differences[method]
            if difference is not None:
                writer.writerow(
                    [
                        method,
                        f"{self.of} - {self.baseline}",
                        difference.mean,
                        difference.half_width,
                        difference.n,
                    ]
                )
        return text.getvalue()


def table(
    title: str, values: Values, columns: Sequence[str], of: str, baseline: str, digits: int = 3
) -> Table:
    """Means over seeds with 95 % intervals, and differences paired over the seeds that a method
    shares with ``baseline``.

    Raises:
        ValueError: the baseline has no run, or shares no seed with a method.
    """
    if baseline not in values or not values[baseline]:
        raise ValueError(f"baseline {baseline!r} has no run")
    theirs = {seed: one[of] for seed, one in values[baseline].items()}
    rows = {
        method: {column: estimate([one[column] for one in seeds.values()]) for column in columns}
        for method, seeds in values.items()
        if seeds
    }
    differences: dict[str, Estimate | None] = {
        method: None
        if method == baseline
        else paired_difference({seed: one[of] for seed, one in values[method].items()}, theirs)
        for method in rows
    }
    return Table(title, tuple(columns), rows, of, baseline, differences, digits)


def shown(one: Estimate, digits: int, signed: bool = False) -> str:
    """``4.119 ± 0.012``; without an interval where there is one run."""
    mean = f"{one.mean:+.{digits}f}" if signed else f"{one.mean:.{digits}f}"
    return mean if math.isnan(one.half_width) else f"{mean} ± {one.half_width:.{digits}f}"
