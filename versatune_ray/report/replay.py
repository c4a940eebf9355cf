"""A replay: the shares that other settings would have answered to the losses of a run, over those
recorded.
"""

from __future__ import annotations

from dataclasses import replace

from versatune_ray.report.data import Adjustment, RunData
from versatune_ray.report.figures import Figure
from versatune_ray.report.tables import Cell, Table, evenly
from versatune_ray.report.traces import (
    MOST_LINES,
    MOST_POINTS,
    Trace,
    bare_layout,
    lines_of,
    quiet_groups,
)
from versatune_ray.report.tuning import RECORDED, Replay
from versatune_ray.report.writing import percent, short

CAVEAT = (
    "These losses were recorded under the shares of the run itself; training under other shares "
    "would have measured others."
)


def replayed(run: RunData) -> Figure | None:
    """Shares over steps per domain: one view per setting, the recorded shares faint behind."""
    found = run.replay
    if found is None or not found.steps:
        return None
    there = RECORDED in found.shares
    kinds = {name: f"setting {number}" for number, name in enumerate(found.settings)}
    traces = _lines(run, found, RECORDED, RECORDED, bool(kinds)) if there else []
    for number, (name, kind) in enumerate(kinds.items()):
        traces += _lines(run, found, name, kind, number > 0)
    if not traces:
        return None
    views = [
        {"label": short(name), "show": [RECORDED, kind], "faint": [RECORDED]}
        if there
        else {"label": short(name), "show": [kind]}
        for name, kind in kinds.items()
    ]
    layout = bare_layout(x="optimizer step", lines=2 * len(found.domains))
    layout["yaxis"] |= {"tickformat": "~%", "rangemode": "tozero", "title": {"text": "share"}}
    sentence = (
        "Each line is the share of one domain that the chosen setting would have answered to the "
        "losses of a recorded run."
    )
    sentence += " The faint lines behind are the shares of that run." if there and kinds else ""
    quiet = quiet_groups(traces)
    if quiet:
        sentence += (
            f" At first the {MOST_LINES} domains that moved most are drawn; a click in the legend "
            f"adds any other."
        )
    return Figure(
        "replay",
        "Shares under other settings",
        f"{sentence} {CAVEAT}",
        traces,
        layout,
        views,
        (_ends(found),),
        quiet=quiet,
    )


def _lines(run: RunData, found: Replay, name: str, kind: str, second: bool) -> list[Trace]:
    """One line per domain for one setting, as if its shares were those of the run."""
    kept = evenly(len(found.steps), max(MOST_POINTS // max(len(found.domains), 1), 60))
    steps = [(found.steps[index], found.shares[name][index]) for index in kept]
    shares = tuple(
        Adjustment(step=step, share=dict(zip(found.domains, row, strict=True)))
        for step, row in steps
    )
    line = {"shape": "hv", "width": 2}
    hover = "%{y:.1%} recorded" if name == RECORDED else "%{y:.1%}"
    return lines_of(
        replace(run, adjustments=shares),
        lambda item: item.share,
        kind,
        hover=hover,
        line=line,
        second=second,
        even=True,
    )


def _ends(found: Replay) -> Table:
    rows = tuple(
        (Cell(name), *(Cell(percent(share)) for share in rows[-1]))
        for name, rows in found.shares.items()
    )
    return Table(f"Shares at step {found.steps[-1]:,}", ("Setting", *found.domains), rows)
