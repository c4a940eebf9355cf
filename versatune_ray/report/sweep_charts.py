"""The charts of a sweep: gain against forgetting, the score over two settings, and all settings at
once.

Parallel coordinates are drawn as plain lines: plotly's own need WebGL and code made at run time,
which the page's policy forbids.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from versatune_ray.report.figures import Figure
from versatune_ray.report.traces import Trace, bare_layout, label
from versatune_ray.report.tuning import Sweep, Trial, number_of, values_of
from versatune_ray.report.writing import count, percent, setting, short, significant

MOST_TRIALS = 200  # rows of the table, and lines of a chart
MOST_VALUES = 12  # of a key, up to which each has a place of its own
SIGNS = {"mixture.sigma": "σ", "mixture.delta": "δ", "mixture.epsilon": "ε"}
Mark = tuple[float, str, str]  # on a parallel axis: height, text, where the text is anchored
_WIDE = 30  # an axis whose largest value is so many times its smallest is logarithmic


def sign(key: str) -> str:
    """The sign of a key, or the last part of its name."""
    return SIGNS.get(key) or short(key.rpartition(".")[2])


def changes_text(trial: Trial) -> str:
    """What a trial changed: ``ε 0.5, δ 0.1``."""
    return (
        ", ".join(f"{sign(key)} {setting(value)}" for key, value in trial.changes.items())
        or trial.trial
    )


def trade_off(sweep: Sweep) -> Figure | None:
    """Gain of the targets over forgetting of the others, with the front."""
    points = [
        trial
        for trial in sweep.ranked
        if None not in (trial.objectives.get("target_gain"), trial.objectives.get("forgetting"))
    ]
    if not points or not {"target_gain", "forgetting"} <= set(sweep.objectives):
        return None
    best = sweep.best
    front = sorted(
        (trial for trial in points if trial.trial in sweep.front),
        key=lambda trial: _position(trial)[0],
    )
    stopped = [trial for trial in points if trial.pruned_at is not None]
    rest = [
        trial
        for trial in points
        if trial not in front and trial not in stopped and trial is not best
    ]
    heights = [_position(trial)[1] for trial in front]
    # with a third objective the trials that none beats need not lie on one line
    line = heights == sorted(heights)
    kinds = (
        ("stopped early", stopped, "muted", {"symbol": "circle-open", "size": 8}),
        ("other trials", rest, "muted", {"symbol": "circle", "size": 9}),
        ("beaten by none", front, "accent", {"symbol": "circle", "size": 10}),
        (
            "best score",
            [best] if best in points else [],
            "better",
            {"symbol": "diamond", "size": 14},
        ),
    )
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines+markers" if name == "beaten by none" and line else "markers",
            "name": name,
            "x": [_position(trial)[0] for trial in found if trial],
            "y": [_position(trial)[1] for trial in found if trial],
            "marker": marker,
            "line": {"width": 2, "shape": "hv"},
            "hovertext": [_hover(sweep, trial) for trial in found if trial],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "meta": {"tone": tone},
        }
        for name, found, tone, marker in kinds
        if found
    ]
    layout = bare_layout(x="forgetting (lower is better)")
    layout["xaxis"] |= {"tickformat": "~%", "zeroline": True}
    layout["yaxis"] |= {
        "tickformat": "~%",
        "zeroline": True,
        "title": {"text": "gain of the targets"},
    }
    layout["hovermode"] = "closest"
    sentence = (
        "Each dot is one trial: the higher, the more the targets gained; the further left, the "
        "less the other domains forgot, "
        "and left of 0 they learned as well."
    )
    if front:
        line_said = (
            "The line joins the trials that no other beats"
            if line
            else "Blue dots are the trials that no other beats"
        )
        sentence += (
            f" {line_said}: whoever wants more gain than one of them has to accept more forgetting."
        )
    sentence += " The diamond has the best score." if best in points else ""
    sentence += (
        " Open dots were stopped early, and stand for what they had reached by then."
        if stopped
        else ""
    )
    return Figure("trade-off", "Gain against forgetting", sentence, traces, layout)


def score_map(sweep: Sweep) -> Figure | None:
    """The score over two keys, where exactly two numeric ones are searched and their combinations
    fill half of a map or more.
    """
    keys = [key for key in sweep.keys if len(values_of(sweep, key)) > 1]
    if len(keys) != 2:
        return None
    across, up = sorted(keys, key=lambda key: len(values_of(sweep, key)))
    columns, rows = values_of(sweep, across), values_of(sweep, up)
    cells: dict[tuple[int, int], Trial] = {}
    several = False
    for trial in sweep.ranked:
        if (
            trial.score is not None
            and number_of(trial, across) is not None
            and number_of(trial, up) is not None
        ):
            place = rows.index(trial.changes[up]), columns.index(trial.changes[across])
            several |= place in cells
            if place not in cells or (trial.finished and not cells[place].finished):
                cells[place] = trial
    if max(len(columns), len(rows)) > MOST_VALUES or 2 * len(cells) < len(columns) * len(rows):
        return None
    grid = [
        [cells.get((row, column)) for column in range(len(columns))] for row in range(len(rows))
    ]
    traces: list[Trace] = [
        {
            "type": "heatmap",
            "name": "score",
            "x": list(range(len(columns))),
            "y": list(range(len(rows))),
            "z": [[trial.score if trial else None for trial in row] for row in grid],
            "text": [[_in_cell(trial) for trial in row] for row in grid],
            "texttemplate": "%{text}",
            "hovertext": [[_hover(sweep, trial) if trial else "" for trial in row] for row in grid],
            "hovertemplate": "%{hovertext}<extra></extra>",
            "hoverongaps": False,
            "xgap": 2,
            "ygap": 2,
            "showscale": False,
            "showlegend": False,
            "meta": {"scale": True},
        }
    ]
    best = sweep.best
    at = next((place for place, trial in cells.items() if trial is best), None)
    if at is not None:
        corners = ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5), (-0.5, -0.5))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [at[1] + right for right, _ in corners],
                "y": [at[0] + higher for _, higher in corners],
                "line": {"width": 3},
                "cliponaxis": False,
                "hoverinfo": "skip",
                "showlegend": False,
                "meta": {"tone": "text"},
            }
        )
    layout = bare_layout(x=_axis_name(across), ticks=[setting(value) for value in rows])
    layout["xaxis"] |= {
        "tickvals": list(range(len(columns))),
        "ticktext": [label(setting(value)) for value in columns],
        "showgrid": False,
    }
    layout["xaxis"]["range"], layout["yaxis"]["range"] = (
        [-0.5, len(columns) - 0.5],
        [-0.5, len(rows) - 0.5],
    )
    layout["yaxis"]["title"] = {"text": _axis_name(up)}
    layout["hovermode"] = "closest"
    sentence = (
        "Each cell is the score, in percent, with the two settings below and beside it: the "
        "stronger its colour, the better"
    )
    sentence += "; where several trials share both, their best." if several else "."
    sentence += " A neighbourhood of good cells says more than one good cell."
    sentence += " The frame marks the best trial." if at is not None else ""
    sentence += (
        " Numbers in brackets are of trials that were stopped early."
        if any(trial.pruned_at for trial in cells.values())
        else ""
    )
    title = f"Score over {sign(across)} and {sign(up)}"
    return Figure("score-map", title, sentence, traces, layout, height=130 + 46 * len(rows))


def parallel(sweep: Sweep) -> Figure | None:
    """One line per trial through its numeric settings and its objectives, coloured by score."""
    drawn = [trial for trial in sweep.ranked if trial.score is not None][:MOST_TRIALS]
    keys = [
        key for key in sweep.keys if len({number_of(trial, key) for trial in drawn} - {None}) > 1
    ]
    drawn = [trial for trial in drawn if all(number_of(trial, key) is not None for key in keys)]
    objectives = [
        name
        for name in sweep.objectives
        if all(trial.objectives.get(name) is not None for trial in drawn)
    ]
    if not keys or len(drawn) < 2:
        return None
    axes = [_key_axis([number_of(trial, key) or 0.0 for trial in drawn]) for key in keys]
    axes += [
        _percent_axis([trial.objectives[name] or 0.0 for trial in drawn]) for name in objectives
    ]
    best = sweep.best
    traces: list[Trace] = []
    for index in reversed(range(len(drawn))):  # the best are drawn last and lie on top
        trial = drawn[index]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": list(range(len(axes))),
                "y": [places[index] for places, _ in axes],
                "line": {"width": 4 if trial is best else 1.75},
                "hovertext": _hover(sweep, trial),
                "hovertemplate": "%{hovertext}<extra></extra>",
                "showlegend": False,
                "meta": {"tone": "better"}
                if trial is best
                else {"mix": round(1 - index / (len(drawn) - 1), 3)},
            }
        )
    layout = bare_layout()
    layout["annotations"] = [
        _mark(place, mark) for place, (_, marks) in enumerate(axes) for mark in marks
    ]
    names = [label(sign(key), 14) for key in keys] + [
        name.replace("_", "<br>") for name in objectives
    ]
    layout["xaxis"] |= {
        "tickvals": list(range(len(axes))),
        "ticktext": names,
        "range": [-0.3, len(axes) - 0.6],
        "side": "top",
    }
    layout["xaxis"] |= {"gridwidth": 2, "fixedrange": True, "tickangle": 0}
    layout["yaxis"] = {"visible": False, "range": [-0.1, 1.1], "fixedrange": True}
    layout["hovermode"] = "closest"
    sentence = (
        "Each line is one trial, from its settings on the left to what it achieved on the right: "
        "the stronger its colour, the better "
        "its score ranks. A setting matters where the strong lines meet its axis in one place."
    )
    sentence += " The green line is the best trial." if best in drawn else ""
    return Figure("parallel", "Settings and what they achieved", sentence, traces, layout)


def _hover(sweep: Sweep, trial: Trial) -> str:
    """A trial in the words of a chart: escaped, for plotly reads a little HTML."""
    told = [
        f"{name.replace('_', ' ')} {percent(trial.objectives.get(name), 2)}"
        for name in sweep.objectives
    ]
    told += (
        [f"stopped early at step {count(trial.pruned_at)}"] if trial.pruned_at is not None else []
    )
    return "<br>".join(
        html.escape(text, quote=False) for text in (short(changes_text(trial), 120), *told)
    )


def _position(trial: Trial) -> tuple[float, float]:
    return trial.objectives.get("forgetting") or 0.0, trial.objectives.get("target_gain") or 0.0


def _in_cell(trial: Trial | None) -> str:
    if trial is None or trial.score is None:
        return ""
    shown = percent(trial.score, 2).partition("\u202f")[0]
    return f"({shown})" if trial.pruned_at is not None else shown


def _axis_name(key: str) -> str:
    return f"{SIGNS[key]} ({key})" if key in SIGNS else label(key, 40)


def _key_axis(values: Sequence[float]) -> tuple[list[float], list[Mark]]:
    """Places of values between 0 and 1, and the marks: few values evenly spaced, many by size."""
    different = sorted(set(values))
    if len(different) <= MOST_VALUES:
        last = len(different) - 1
        return [different.index(value) / last for value in values], [
            (index / last, setting(v), "left") for index, v in enumerate(different)
        ]
    logarithmic = different[0] > 0 and different[-1] / different[0] > _WIDE
    return _spread(
        [math.log(value) if logarithmic else value for value in values],
        significant(different[0]),
        significant(different[-1]),
    )


def _percent_axis(values: Sequence[float]) -> tuple[list[float], list[Mark]]:
    return _spread(values, percent(min(values), 2), percent(max(values), 2))


def _spread(sizes: Sequence[float], lowest: str, highest: str) -> tuple[list[float], list[Mark]]:
    low, high = min(sizes), max(sizes)
    if high <= low:
        return [0.5] * len(sizes), [(0.5, lowest, "left")]
    return [(size - low) / (high - low) for size in sizes], [
        (0.0, lowest, "center"),
        (1.0, highest, "center"),
    ]


def _mark(place: int, mark: Mark) -> dict[str, Any]:
    """A value beside its axis, or beyond the end of one that bears only its ends."""
    height, text, anchor = mark
    beside = {"xshift": 4} if anchor == "left" else {"yshift": 11 if height else -11}
    look = {"showarrow": False, "bgcolor": "rgba(0,0,0,0)", "font": {"size": 12, "weight": 400}}
    return {"x": place, "y": height, "text": label(text), "xanchor": anchor} | beside | look
