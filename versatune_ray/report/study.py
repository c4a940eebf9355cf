"""A study: methods over seeds as tables, and how far each method is from the baseline."""

from __future__ import annotations

import html
from typing import Any

from versatune_ray.report.data import RunData
from versatune_ray.report.figures import Figure
from versatune_ray.report.tables import Cell, Table
from versatune_ray.report.traces import Trace, bare_layout, label
from versatune_ray.report.tuning import Mean, StudyTable
from versatune_ray.report.writing import count, decimal, short, signed_decimal

AMONG_ALL = "†"  # beside a difference that holds among all of its table


def study_section(run: RunData) -> list[dict[str, Any]]:
    """For each table of a study: its title, the table, and the chart of differences where there are
    any.
    """
    return [
        {"title": one.title, "table": methods(one), "figure": differences(one, number)}
        for number, one in enumerate(run.study)
    ]


def methods(study: StudyTable) -> Table:
    """One row per method: means with their intervals, and the difference from the baseline last."""
    seeds = study.seeds
    counted = len(seeds) > 1
    rows = []
    for method, row in study.rows.items():
        cells = [_cell(row.get(column), study.digits) for column in study.columns]
        number = next((one.n for one in row.values() if one.n is not None), None)
        rows.append(
            (
                Cell(method),
                *([Cell(count(number))] if counted else []),
                *cells,
                _difference(study, method),
            )
        )
    head = (
        "Method",
        *(["seeds"] if counted else []),
        *study.columns,
        f"{study.of} − {study.baseline}",
    )
    return Table(" ".join([_how(seeds), *study.missing]), head, tuple(rows))


def differences(study: StudyTable, number: int) -> Figure | None:
    """The paired differences as dots with their intervals, the first method on top."""
    found = [
        (method, one)
        for method in reversed(study.rows)
        if (one := study.differences.get(method)) and one.mean is not None
    ]
    if not found:
        return None
    kinds = (
        ("interval leaves 0 out", "accent"),
        ("interval holds 0", "muted"),
        ("one seed, no interval", "text"),
    )
    traces: list[Trace] = []
    for kind, (name, tone) in enumerate(kinds):
        points = [
            (place, method, one) for place, (method, one) in enumerate(found) if _kind(one) == kind
        ]
        trace: Trace = {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": [one.mean for _, _, one in points],
            "y": [place for place, _, _ in points],
            "marker": {"size": 11},
            "error_x": {
                "type": "data",
                "array": [one.half_width or 0 for _, _, one in points],
                "thickness": 2,
                "width": 0,
            },
            "hovertext": [
                f"{label(method, 60)}: {html.escape(_with_interval(one, study.digits))}"
                for _, method, one in points
            ],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "meta": {"tone": tone},
        }
        traces += [trace] if points else []
    layout = bare_layout(ticks=[method for method, _ in found])
    layout["xaxis"] |= {
        "zeroline": True,
        "rangemode": "tozero",
        "title": {"text": label(f"{study.of} − {study.baseline}", 60)},
    }
    layout["hovermode"] = "closest"
    sentence = (
        f"Each dot is how far a method is from {short(study.baseline)} in {short(study.of)}, as "
        f"the mean over the seeds of both"
    )
    if all(one.half_width is None for _, one in found):
        sentence += ". One seed gives no interval, so it cannot tell whether they are apart."
    else:
        sentence += (
            ", and the line through it is the 95 % interval. What a seed does to both cancels. "
            "Where the interval crosses the line at 0, the seeds do not tell the two apart."
        )
    title = f"Differences from {short(study.baseline)}: {short(study.of)}"
    return Figure(f"study-{number}", title, sentence, traces, layout, height=130 + 34 * len(found))


def _kind(one: Mean) -> int:
    return 2 if one.half_width is None else 0 if one.clear else 1


def _how(seeds: list[int]) -> str:
    if not seeds or seeds[-1] == 1:
        return "From one seed, so there are no intervals; differences are those of that seed."
    span = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return (
        f"Means over {span} with 95 % intervals (Student’s t); differences are paired by seed, in "
        f"bold where the interval leaves 0 out, and with {AMONG_ALL} where they hold among all "
        f"methods of the table (Holm). All runs start from one base model."
    )


def _cell(one: Mean | None, digits: int) -> Cell:
    if one is None:
        return Cell("–")
    return Cell(
        decimal(one.mean, digits),
        f"± {decimal(one.half_width, digits)}" if one.half_width is not None else "",
    )


def _difference(study: StudyTable, method: str) -> Cell:
    one = study.differences.get(method)
    if one is None:
        return Cell("baseline" if method == study.baseline else "–")
    note = f"{_cell(one, study.digits).note} {AMONG_ALL * one.clear_among_all}".strip()
    return Cell(signed_decimal(one.mean, study.digits), note, tone="clear" if one.clear else "")


def _with_interval(one: Mean, digits: int) -> str:
    half = f" ± {decimal(one.half_width, digits)}" if one.half_width is not None else ""
    return (
        f"{signed_decimal(one.mean, digits)}{half} over {count(one.n)} "
        f"seed{'s' if one.n != 1 else ''}"
    )
