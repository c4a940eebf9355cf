"""Benchmarks: every model side by side, per benchmark, per domain and on average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from versatune_ray.evaluation.scores import AVERAGE, Score
from versatune_ray.report.charts import Figure, Mark, Row, Rows
from versatune_ray.report.outcome import scores_of
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import Cell, Given, Table, domain_cell, table, tone
from versatune_ray.report.writing import count, gain, listing, percent, points, short, within

BASE = "base"  # the model that others are compared with; without it the first one
Found = dict[str, dict[str, Score]]


def benchmark_section(run: RunData) -> dict[str, Any] | None:
    """What the benchmarks gave, where there are some: the table, who lost what, and the chart."""
    if not run.benchmarks:
        return None
    found = scores_of(run)
    found = {name: found[name] for name in sorted(found, key=lambda name: name != BASE)}
    first, lost = next(iter(found), ""), []
    for model, row in found.items():
        names = [name for name, one in row.items() if _clear(found[first].get(name), one) < 0]
        where = listing([name for name in names if name != AVERAGE])
        lost += [f"{short(model)} in {where}"] if where else []
    about = {"first": short(first), "several": len(found) > 1, "lost": "; ".join(lost)}
    return about | {"table": _table(run, found), "figure": _chart(run, found)}


def _clear(before: Score | None, after: Score | None) -> float:
    """How far ``after`` is from ``before``, where that is more than two standard errors; else 0."""
    if before is None or after is None or before.error is None or after.error is None:
        return 0.0
    away = after.value - before.value
    return away if abs(away) > 2 * math.hypot(before.error, after.error) else 0.0


def _table(run: RunData, found: Found) -> Table | None:
    by_place = {(one.model, one.domain, one.benchmark): one for one in run.benchmarks}
    rows: list[list[Given]] = []
    for domain in run.domains:
        if any(domain in row for row in found.values()):
            scores = [row.get(domain) for row in found.values()]
            rows.append([domain_cell(run, domain), "", *_row(scores)])
        for task in dict.fromkeys(one.benchmark for one in run.benchmarks if one.domain == domain):
            here = [by_place.get((model, domain, task)) for model in found]
            one = next(item for item in here if item is not None)
            scores = [
                Score(item.value, item.standard_error) if item and item.value is not None else None
                for item in here
            ]
            name = Cell(f"{task} ({one.metric})", tone="aside")
            rows.append([name, Cell(count(one.n), tone="aside"), *_row(scores)])
    total = ["Average over domains", "", *_row([row.get(AVERAGE) for row in found.values()])]
    head = ("Benchmark", "n", *(short(model, 24) for model in found))
    return table("Scores in percent, ± one standard error", head, rows, total=total)


def _row(scores: Sequence[Score | None]) -> Iterator[Cell | None]:
    """A cell per model; all but the first say how far they are from it, coloured where clear."""
    first = scores[0]
    for place, one in enumerate(scores):
        if one is None:
            yield None
            continue
        away = f"({gain(one.value - first.value)})" if place and first else ""
        note = f"{within(one.error)} {away}".strip()
        yield Cell(points(one.value), note, tone(_clear(first, one)))


def _chart(run: RunData, found: Found) -> Figure | None:
    """A dot with its error for each model, a row for each domain."""
    rows = []
    for domain in (*run.domains, AVERAGE):
        marks = []
        for k, (model, row) in enumerate(found.items()):
            if one := row.get(domain):
                error, about = one.error or 0.0, (f"d{k}", short(model), percent(one.value), k)
                marks.append(Mark("interval", one.value - error, one.value + error, *about))
                marks.append(Mark("dot", one.value, one.value, *about))
        rows += [Row(short(domain), marks)] if marks else []
    plot = Rows(rows, "score")
    return Figure("benchmarks", "Scores per domain", [("", plot)]) if rows else None
