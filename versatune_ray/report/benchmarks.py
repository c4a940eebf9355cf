"""Benchmarks: every model side by side, per benchmark, per domain and on average."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from versatune_ray.evaluation.scores import AVERAGE, Score, scores
from versatune_ray.report.data import Result, RunData
from versatune_ray.report.figures import Figure
from versatune_ray.report.tables import Cell, Table, domain_cell
from versatune_ray.report.traces import Trace, bare_layout, label
from versatune_ray.report.writing import count, decimal, listing, short, signed_decimal

BASE = "base"  # the model that others are compared with; without it the first one


@dataclass(frozen=True)
class Section:
    """table: one row per benchmark, below its domain's. figures: scores as bars and as a radar."""

    table: Table
    sentence: str
    figures: tuple[Figure, ...]


def benchmark_section(run: RunData) -> Section | None:
    """What the benchmarks gave, where there are some."""
    results = run.benchmarks
    if not results:
        return None
    found = scores_of(run)
    models = sorted(found, key=lambda name: name != BASE)
    domains = [name for name in run.domains if any(name in row for row in found.values())]
    return Section(
        _table(run, results, found, models, domains),
        _sentence(models, found),
        (_bars(found, models, domains), *_radar(found, models, domains)),
    )


def scores_of(run: RunData) -> dict[str, dict[str, Score]]:
    """Model → domain → score, with the average."""
    return scores(
        [
            {"standard_error": one.standard_error} | _key(one)
            for one in run.benchmarks
            if one.value is not None
        ]
    )


def _key(one: Result) -> dict[str, Any]:
    return {
        "model": one.model,
        "domain": one.domain,
        "benchmark": one.benchmark,
        "value": one.value,
    }


def _table(
    run: RunData,
    results: list[Result],
    found: dict[str, dict[str, Score]],
    models: list[str],
    domains: list[str],
) -> Table:
    by_place = {(one.model, one.domain, one.benchmark): one for one in results}
    rows: list[tuple[Cell, ...]] = []
    for domain in run.domains:
        benchmarks = list(dict.fromkeys(one.benchmark for one in results if one.domain == domain))
        if domain in domains:
            rows.append(
                (
                    domain_cell(run, domain),
                    Cell(""),
                    *_compared([found[model].get(domain) for model in models]),
                )
            )
        for benchmark in benchmarks:
            here = [by_place.get((model, domain, benchmark)) for model in models]
            one = next(item for item in here if item is not None)
            cells = _compared(
                [
                    Score(item.value, item.standard_error)
                    if item and item.value is not None
                    else None
                    for item in here
                ]
            )
            name = f"{benchmark} ({one.metric})"
            rows.append((Cell(name, tone="aside"), Cell(count(one.n), tone="aside"), *cells))
    total = (
        Cell("Average over domains"),
        Cell(""),
        *_compared([found[model].get(AVERAGE) for model in models]),
    )
    head = ("Benchmark", "n", *(short(model, 24) for model in models))
    return Table("Scores in percent, ± one standard error", head, tuple(rows), total=total)


def _compared(row: list[Score | None]) -> list[Cell]:
    """A cell per model; all but the first say how far they are from it, coloured where that is more
    than two standard errors.
    """
    first, cells = row[0], []
    for place, one in enumerate(row):
        if one is None:
            cells.append(Cell("–"))
            continue
        note = f"± {decimal(100 * one.error, 1)}" if one.error is not None else ""
        tone = ""
        if place and first is not None:
            away = one.value - first.value
            note += f" ({signed_decimal(100 * away, 1)})"
            if (
                one.error is not None
                and first.error is not None
                and abs(away) > 2 * math.hypot(one.error, first.error)
            ):
                tone = "better" if away > 0 else "worse"
        cells.append(Cell(decimal(100 * one.value, 1), note, tone))
    return cells


def _sentence(models: list[str], found: dict[str, dict[str, Score]]) -> str:
    text = (
        "A domain’s score is the mean of its benchmarks, the average that of the domains; what "
        "some model lacks counts for none."
    )
    if len(models) < 2:
        return text

    def fallen(row: Mapping[str, Score]) -> list[str]:
        return [
            name for name in row if name != AVERAGE and _fell(found[models[0]][name], row[name])
        ]

    lost = [
        f"{short(model)} in {listing(fallen(row))}"
        for model, row in found.items()
        if model != models[0]
        and any(name != AVERAGE and _fell(found[models[0]][name], row[name]) for name in row)
    ]
    text += (
        f" In brackets: points above or below {short(models[0])}, coloured where that is more than "
        f"two standard errors."
    )
    return text + (
        f" Lost by more than that: {'; '.join(lost)}."
        if lost
        else " No model lost more than that in any domain."
    )


def _fell(before: Score, after: Score) -> bool:
    return (
        before.error is not None
        and after.error is not None
        and before.value - after.value > 2 * math.hypot(before.error, after.error)
    )


def _bars(found: dict[str, dict[str, Score]], models: list[str], domains: list[str]) -> Figure:
    places = [*domains, *([AVERAGE] if len(domains) > 1 else [])]
    traces: list[Trace] = [
        {
            "type": "bar",
            "name": label(model, 40),
            "x": [label(place, 20) for place in places],
            "y": [found[model][place].value for place in places],
            "error_y": {
                "type": "data",
                "array": [found[model][place].error or 0 for place in places],
                "thickness": 1.5,
                "width": 0,
            },
            "hovertemplate": f"%{{x}}: %{{y:.1%}}<extra>{html.escape(short(model, 40))}</extra>",
            "meta": {"domain": index},
        }
        for index, model in enumerate(models)
    ]
    layout = bare_layout()
    layout["yaxis"] |= {"tickformat": "~%", "rangemode": "tozero", "title": {"text": "score"}}
    layout |= {"hovermode": "closest", "barmode": "group", "bargap": 0.3}
    return Figure(
        "benchmarks",
        "Scores per domain",
        "Each bar is a model’s score in a domain; the line on it is one standard error each way.",
        traces,
        layout,
    )


def _radar(
    found: dict[str, dict[str, Score]], models: list[str], domains: list[str]
) -> tuple[Figure, ...]:
    if len(domains) < 3:
        return ()  # two axes are no radar
    around = [*domains, domains[0]]
    most = max(found[model][name].value for model in models for name in domains)
    traces: list[Trace] = [
        {
            "type": "scatterpolar",
            "name": label(model, 40),
            "theta": [label(name, 20) for name in around],
            "r": [found[model][name].value for name in around],
            "mode": "lines+markers",
            "line": {"width": 2},
            "hovertemplate": "%{theta}: %{r:.1%}"
            f"<extra>{html.escape(short(model, 40))}</extra>",
            "meta": {"domain": index},
        }
        for index, model in enumerate(models)
    ]
    layout: dict[str, Any] = {
        "polar": {
            "radialaxis": {
                "range": [0, most * 1.08 or 1],
                "tickformat": "~%",
                "angle": 90,
                "tickangle": 90,
                "nticks": 5,
            },
            "angularaxis": {"rotation": 90, "direction": "clockwise"},
        },
        "margin": {"l": 60, "r": 60, "t": 40, "b": 40},
        "hovermode": "closest",
        "uirevision": "kept",
    }
    sentence = (
        "The same scores around a circle: further out is better. Where a model lies inside the "
        "base, it has lost."
    )
    return (Figure("radar", "The shape of each model", sentence, traces, layout, height=480),)
