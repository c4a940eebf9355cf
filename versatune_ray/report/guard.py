"""The figure of the guard of Algorithm 3: when it let the targets grow."""

from __future__ import annotations

from typing import Any

from versatune_ray.report.data import Guard, RunData
from versatune_ray.report.figures import Figure
from versatune_ray.report.tables import MOST_ROWS, Cell, Table, evenly
from versatune_ray.report.traces import (
    MOST_POINTS,
    Trace,
    bare_layout,
    peaks,
)
from versatune_ray.report.writing import significant


def guard(run: RunData) -> Figure | None:
    """Both sides of Algorithm 3's guard over time, the times it was open as bands behind."""
    found = [(item.step, item.guard) for item in run.adjustments if item.guard is not None]
    if not found:
        return None
    steps = [step for step, _ in found]
    sides: tuple[tuple[str, list[float | None], str, dict[str, Any]], ...] = (
        (
            "forgetting of the others",
            [state.forgetting for _, state in found],
            "worse",
            {"width": 2},
        ),
        ("bound ε·γ", [state.bound for _, state in found], "text", {"width": 2, "dash": "6px,4px"}),
    )
    top = (
        1.08
        * max(
            (value for _, values, _, _ in sides for value in values if value is not None), default=0
        )
        or 1
    )
    changes = [
        0,
        *(
            index
            for index in range(1, len(found))
            if found[index][1].open != found[index - 1][1].open
        ),
    ]
    bands: Trace = {
        "type": "heatmap",
        "name": "guard",
        "x": [steps[index] for index in changes if index < len(found) - 1] + [steps[-1]],
        "y": [0, top],
        "z": [[1 if found[index][1].open else 0 for index in changes if index < len(found) - 1]],
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "showlegend": False,
        "hoverinfo": "skip",
        "meta": {"band": True},
    }
    traces = [bands] if len(found) > 1 else []
    for name, values, tone, line in sides:
        kept = peaks(values, MOST_POINTS // 2)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(found) <= 30 else "lines",
                "marker": {"size": 5},
                "name": name,
                "x": [steps[index] for index in kept],
                "y": [values[index] for index in kept],
                "line": line,
                "hovertext": [_state(found[index][1]) for index in kept],
                "hovertemplate": "%{y:.3~%} (%{hovertext})<extra>%{fullData.name}</extra>",
                "meta": {"tone": tone},
            }
        )
    layout = bare_layout(x="optimizer step", lines=2)
    layout["yaxis"] |= {"tickformat": "~%", "range": [0, top]}
    opened = sum(1 for _, state in found if state.open)
    sentence = (
        "Each point is one decision of the guard: it opens, and the targets are raised, where the "
        "forgetting of the other domains is below "
        "the bound, ε times what the targets can still learn. "
        f"It was open at {opened:,} of {len(found):,} decisions; the shaded bands are the steps "
        f"for which it stayed open."
    )
    rows = tuple(
        (
            Cell(f"{step:,}"),
            Cell(_state(state)),
            Cell(significant(state.forgetting)),
            Cell(significant(state.bound)),
        )
        for step, state in (found[index] for index in evenly(len(found), MOST_ROWS))
    )
    table = Table("Guard", ("Step", "state", "forgetting of the others", "bound ε·γ"), rows)
    return Figure("guard", "Guard of the expansion", sentence, traces, layout, [], (table,))


def _state(guard: Guard) -> str:
    return "open" if guard.open else "closed"
