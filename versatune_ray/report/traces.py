"""The pieces charts are made of: lines per domain thinned to what a screen can show, dots, and a
bare layout.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from versatune_ray.report.colours import dash
from versatune_ray.report.data import Adjustment, PerDomain, RunData
from versatune_ray.report.tables import evenly
from versatune_ray.report.writing import short

Trace = dict[str, Any]
Values = Callable[[Adjustment], PerDomain | None]

MOST_POINTS = 12_000  # per chart and kind of line: more makes phones slow and no line clearer
MOST_LINES = 12  # drawn at first; beyond that nobody can tell them apart


def lines_of(
    run: RunData,
    values: Values,
    kind: str,
    *,
    hover: str,
    line: dict[str, Any] | None = None,
    second: bool = False,
    even: bool = False,
) -> list[Trace]:
    """One line per domain. ``even`` keeps the same steps for all (stacking needs that); otherwise
    each keeps its peaks.

    ``second`` lines are laid over the first kind: no markers, no legend entry of their own.
    """
    rows = [(item.step, made) for item in run.adjustments if (made := values(item))]
    before = max(
        (item.step for item in run.adjustments if rows and item.step < rows[0][0]), default=None
    )
    traces: list[Trace] = []
    for index, name in enumerate(run.domains):
        points = [made.get(name) for _, made in rows]
        if all(point is None for point in points):
            continue
        most = _most_rows(run)
        kept = evenly(len(rows), most) if even else peaks(points, most)
        backward = line is not None and line.get("shape") == "vh" and before is not None
        # such a value holds for the time before its step: the line begins where that time does
        first = [before] if backward else []
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(rows) <= 30 and not even and not second else "lines",
                "marker": {"size": 5},
                "name": label(name),
                "x": first + [rows[place][0] for place in kept],
                "y": [_short(points[0]) for _ in first] + [_short(points[place]) for place in kept],
                "line": {"width": 2, "dash": dash(index)} | (line or {}),
                "legendgroup": f"d{index}",
                "showlegend": not second,
                "hovertemplate": f"{hover}<extra>%{{fullData.name}}</extra>",
                "meta": {"set": kind, "domain": index},
            }
        )
    return traces


def peaks(points: Sequence[float | None], most: int) -> Sequence[int]:
    """At most ``most`` indices that keep the ends and, in each of evenly cut stretches, the lowest
    and the highest point.
    """
    if len(points) <= most:
        return range(len(points))
    values = np.array([np.nan if point is None else point for point in points], dtype=float)
    kept = {0, len(points) - 1}
    for stretch in np.array_split(np.arange(len(points)), max((most - 2) // 2, 1)):
        if not np.isnan(values[stretch]).all():
            kept |= {
                int(stretch[np.nanargmin(values[stretch])]),
                int(stretch[np.nanargmax(values[stretch])]),
            }
    return sorted(kept)


def quiet_groups(traces: Sequence[Trace]) -> tuple[str, ...]:
    """Legend groups of all but the ``MOST_LINES`` lines with the widest range; nothing where all
    fit.
    """
    ranges = {}
    for trace in traces:
        if trace["showlegend"]:
            values = [value for value in trace["y"] if value is not None]
            ranges[trace["legendgroup"]] = max(values) - min(values)
    return tuple(sorted(ranges, key=lambda group: -ranges[group])[MOST_LINES:])


def bare_layout(x: str = "", ticks: Sequence[str] = (), lines: int = 0) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "xaxis": {"automargin": True, "zeroline": False},
        "yaxis": {"automargin": True, "zeroline": False},
        "margin": {"l": 8, "r": 8, "t": 34, "b": 8},
        "hovermode": "x unified" if lines <= 10 else "closest",
        "uirevision": "kept",
    }
    if x:
        layout["xaxis"]["title"] = {"text": x}
    if ticks:
        layout["yaxis"] |= {
            "tickvals": list(range(len(ticks))),
            "ticktext": [label(name) for name in ticks],
            "range": [-0.7, len(ticks) - 0.4],
        }
        layout["yaxis"]["showgrid"] = False
    return layout


def dots(
    name: str,
    points: Sequence[tuple[float | None, float]],
    kind: str,
    marker: dict[str, Any],
    tone: str,
) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point for point, _ in points],
        "y": [place for _, place in points],
        "marker": marker,
        "hovertemplate": f"%{{x:.2%}}<extra>{kind}</extra>",
        "meta": {"tone": tone},
    }


def _most_rows(run: RunData) -> int:
    return max(MOST_POINTS // max(len(run.domains), 1), 60)


def thinned(run: RunData) -> str:
    most = _most_rows(run)
    return (
        f" Drawn from about {most} of {len(run.adjustments):,} adjustments."
        if len(run.adjustments) > most
        else ""
    )


def label(name: str, limit: int = 28) -> str:
    return html.escape(short(name, limit), quote=False)


def domain_index(run: RunData, name: str) -> int:
    return run.domains.index(name)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
