"""A run of several stages: bands behind the charts over time, and the losses that each stage
left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from versatune_ray.report.data import PerDomain, RunData
from versatune_ray.report.figures import Figure
from versatune_ray.report.tables import Cell, Table, domain_cell
from versatune_ray.report.traces import label
from versatune_ray.report.writing import decimal, signed_percent

_SLIGHT = 0.0005  # a change of which the percentage would read 0.0 or 0.1 is no news


@dataclass(frozen=True)
class Span:
    """A stage: its name, the steps it begins and ends with, and the losses then."""

    name: str
    first: int
    last: int
    before: PerDomain
    after: PerDomain


def spans(run: RunData) -> list[Span]:
    """The stages that have begun; none for a run without stages."""
    found: list[Span] = []
    for item in run.adjustments:
        if item.stage is None:
            continue
        if found and found[-1].name == item.stage:
            found[-1] = replace(found[-1], last=item.step, after=item.loss)
        else:
            found.append(Span(item.stage, item.step, item.step, item.loss, item.loss))
    return found


def with_bands(run: RunData, figure: Figure) -> Figure:
    """A chart over steps, with every stage named above it and every second one shaded."""
    stages = spans(run)
    if not stages or figure.layout["xaxis"].get("title", {}).get("text") != "optimizer step":
        return figure
    bands = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": one.first,
            "x1": one.last,
            "y0": 0,
            "y1": 1,
            "layer": "below",
            "line": {"width": 0},
        }
        for one in stages[1::2]
    ]
    names = [
        {
            "text": label(one.name),
            "x": (one.first + one.last) / 2,
            "xref": "x",
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 12, "weight": 400},
        }
        for one in stages
    ]
    layout = figure.layout | {
        "shapes": bands,
        "annotations": [*figure.layout.get("annotations", []), *names],
    }
    return replace(figure, layout=layout, sentence=figure.sentence + " The bands are the stages.")


def stage_table(run: RunData) -> Table | None:
    """Held-out loss of every domain at the end of each stage, with its change over it, and what it
    lost since its lowest.
    """
    stages = spans(run)
    if not stages:
        return None

    def cells(name: str) -> tuple[Cell, ...]:
        made, ends = (
            [domain_cell(run, name), Cell(decimal(stages[0].before.get(name)))],
            [stages[0].before.get(name)],
        )
        for one in stages:
            loss = one.after.get(name)
            made.append(Cell(decimal(loss), *_change(ends[-1], loss)))
            ends.append(loss)
        known = [loss for loss in ends if loss is not None]
        forgotten = (
            known[-1] / min(known) - 1
            if known and ends[-1] is not None and min(known) > 0
            else None
        )
        return (
            *made,
            Cell(
                signed_percent(forgotten), tone="worse" if forgotten and forgotten > _SLIGHT else ""
            ),
        )

    head = ("Domain", "before", *(one.name for one in stages), "above its lowest")
    return Table(
        f"Held-out loss at the end of each stage ({run.unit})",
        head,
        tuple(cells(name) for name in run.domains),
    )


def _change(before: float | None, after: float | None) -> tuple[str, str]:
    """A note and its tone."""
    if not before or after is None:
        return "", ""
    change = after / before - 1
    return signed_percent(
        change
    ), "better" if change < -_SLIGHT else "worse" if change > _SLIGHT else ""
