"""Benchmarks: every model side by side, per benchmark, per domain and on average."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from versatune_ray.evaluation.scores import AVERAGE, Score
from versatune_ray.report.charts import Figure, Row, Rows
from versatune_ray.report.outcome import scores_of
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import Cell, Given, Table, domain_cell, table, tone
from versatune_ray.report.writing import count, decimal, listing, percent, short, signed_decimal

BASE = "base"  # the model that others are compared with; without it the first one
Found = dict[str, dict[str, Score]]


def benchmark_section(run: RunData) -> dict[str, Any] | None:
    """What the benchmarks gave, where there are some: the table, who lost what, and the chart."""
    if not run.benchmarks:
        return None
    found = scores_of(run)
    models = sorted(found, key=lambda name: name != BASE)
    first = found[models[0]] if models else {}
    lost = []
    for model in models[1:]:
        names = [name for name, one in found[model].items() if _clear(first.get(name), one) < 0]
        where = listing([name for name in names if name != AVERAGE])
        lost += [f"{short(model)} in {where}"] if where else []
    about = {"first": short(models[0]) if models else "", "several": len(models) > 1}
    shown = {"table": _table(run, found, models), "figure": _chart(run, found, models)}
    return shown | about | {"lost": "; ".join(lost)}


def _clear(before: Score | None, after: Score | None) -> float:
    """How far ``after`` is from ``before``, where that is more than two standard errors; else 0."""
    if before is None or after is None or before.error is None or after.error is None:
        return 0.0
    away = after.value - before.value
    return away if abs(away) > 2 * math.hypot(before.error, after.error) else 0.0


def _table(run: RunData, found: Found, models: Sequence[str]) -> Table | None:
    by_place = {(one.model, one.domain, one.benchmark): one for one in run.benchmarks}
    rows: list[list[Given]] = []
    for domain in run.domains:
        if any(domain in row for row in found.values()):
            scores = [found[model].get(domain) for model in models]
            rows.append([domain_cell(run, domain), "", *_row(scores)])
        tasks = dict.fromkeys(one.benchmark for one in run.benchmarks if one.domain == domain)
        for task in tasks:
            here = [by_place.get((model, domain, task)) for model in models]
            one = next(item for item in here if item is not None)
            scores = [
                Score(item.value, item.standard_error) if item and item.value is not None else None
                for item in here
            ]
            name = Cell(f"{task} ({one.metric})", tone="aside")
            rows.append([name, Cell(count(one.n), tone="aside"), *_row(scores)])
    averages = [found[model].get(AVERAGE) for model in models]
    total = ["Average over domains", "", *_row(averages)]
    head = ("Benchmark", "n", *(short(model, 24) for model in models))
    return table("Scores in percent, ± one standard error", head, rows, total=total)


def _row(scores: Sequence[Score | None]) -> Iterator[Cell | None]:
    """A cell per model; all but the first say how far they are from it, coloured where clear."""
    for place, one in enumerate(scores):
        if one is None:
            yield None
            continue
        note = f"± {decimal(100 * one.error, 1)}" if one.error is not None else ""
        if place and (first := scores[0]) is not None:
            note += f" ({signed_decimal(100 * (one.value - first.value), 1)})"
        moved = _clear(scores[0], one) if place else 0.0
        yield Cell(decimal(100 * one.value, 1), note, tone(moved))


def _chart(run: RunData, found: Found, models: Sequence[str]) -> Figure | None:
    """A dot with its error for each model, a row for each domain."""
    rows = []
    for domain in (*run.domains, AVERAGE):
        marks = []
        for k, model in enumerate(models):
            if (one := found[model].get(domain)) is None:
                continue
            error, tip = one.error or 0.0, f"{short(model)}: {percent(one.value)}"
            low, high = one.value - error, one.value + error
            marks.append(("interval", low, high, f"d{k}", tip, k))
            marks.append(("dot", one.value, one.value, f"d{k}", tip, k))
        rows += [Row(short(domain), marks)] if marks else []
    key = [(f"d{k}", "dot", short(model), "") for k, model in enumerate(models)]
    plot = Rows(rows, "score")
    return Figure("benchmarks", "Scores per domain", [("", plot)], (), key) if rows else None
