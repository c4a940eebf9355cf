"""What a fine-tuning did and what came of it: its charts over time, and its stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from versatune_ray.report.charts import (
    MOST_POINTS,
    Figure,
    Mark,
    Plot,
    Row,
    Rows,
    Series,
    over_time,
    thin,
)
from versatune_ray.report.outcome import share_ends
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import Cell, Given, Table, domain_cell, loss_change, table
from versatune_ray.report.writing import change, decimal, percent, short, significant
from versatune_ray.runs.artefacts import Adjustment, PerDomain

Values = Callable[[Adjustment], PerDomain | None]


def shares_before_after(run: RunData) -> Figure | None:
    """The first chart of a run: each domain's share before and after."""
    ends, rows = share_ends(run), []
    for place, name in enumerate(run.domains):
        before, after = (end.get(name) for end in ends or ({}, {}))
        if before is None or after is None:
            continue
        colour, told = f"d{place}", (percent(before), percent(after))
        marks = [
            Mark("pale", 0.0, before, colour, "before", told[0]),
            Mark("bar", 0.0, after, colour, "after", told[1], 1),
        ]
        rows.append(Row(short(name), marks, " → ".join(told), colour))
    drawn = Rows(rows, f"share of {run.counted}")
    return Figure("before-after", "Shares before and after", [("", drawn)]) if rows else None


def figures(run: RunData) -> list[Figure]:
    """The charts over time, all with one x axis."""
    made = (_shares(run), _losses(run), _degrees(run), _guard(run))
    return [figure for figure in made if figure is not None]


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
    for one in run.adjustments:
        if one.stage is not None and found and found[-1].name == one.stage:
            found[-1] = replace(found[-1], last=one.step, after=one.loss)
        elif one.stage is not None:
            found.append(Span(one.stage, one.step, one.step, one.loss, one.loss))
    return found


def lines(run: RunData, values: Values, **look: Any) -> list[Series]:
    """One line per domain, of the steps that a screen can show."""
    rows = [(one.step, made) for one in run.adjustments if (made := values(one))]
    most = min(MOST_POINTS, max(60, 8_000 // max(len(run.domains), 1)))
    kept = [rows[k] for k in thin([list(made.values()) for _, made in rows], most)]
    drawn = []
    for place, name in enumerate(run.domains):
        points = [(step, made.get(name)) for step, made in kept]
        if any(y is not None for _, y in points):
            drawn.append(Series(name, points, f"d{place}", group=place, **look))
    return drawn


def plot(run: RunData, series: list[Series], y: str, **look: Any) -> Plot:
    """A plot over the steps of the run, with its stages as bands."""
    stages = enumerate(spans(run))
    bands = [(one.first, one.last, one.name, number % 2 == 1) for number, one in stages]
    return Plot(series, "optimizer step", y, bands=bands, reach=_ends(run), **look)


def _ends(run: RunData) -> list[int]:
    return [one.step for one in run.adjustments[:1] + run.adjustments[-1:]]


def _shares(run: RunData) -> Figure | None:
    asked = lines(run, lambda one: one.share, stepped=True)
    if not asked or len(run.adjustments) < 2:
        return None
    faint, look = [replace(one, look="faint") for one in asked], {"unit": "%", "zero": True}
    y = f"share of {run.counted}"
    views = [("Requested", plot(run, asked, y, **look))]
    views.append(("Stacked", plot(run, asked, y, **look, stacked=True)))
    drawn: dict[str, Values] = {
        "samples": lambda one: one.share_achieved,
        "tokens": lambda one: one.token_share_achieved,
    }
    for what, values in drawn.items():
        if found := lines(run, values):
            title, y = f"{what.capitalize()} drawn", f"share of {what} since the adjustment before"
            views.append((title, plot(run, [*faint, *found], y, **look)))
    return over_time("shares", "Shares over time", views, drawn=len(views) > 2)


def _losses(run: RunData) -> Figure | None:
    measured, floor = lines(run, lambda one: one.loss), _floor(run)
    if not measured:
        return None
    axis, views = f"loss ({run.unit}), log axis", []
    if floor:

        def times(one: Adjustment) -> PerDomain:
            pairs = ((name, loss, floor.get(name)) for name, loss in one.loss.items())
            return {name: loss / least for name, loss, least in pairs if loss and least}

        y = "loss as a multiple of the reference, log axis"
        views.append(("Against the reference", plot(run, lines(run, times), y, unit="×", log=True)))
    dashed = [
        replace(one, points=[(x, floor[one.name]) for x in _ends(run)], look="dashed")
        for one in measured
        if one.name in floor
    ]
    views.append(("Loss", plot(run, [*dashed, *measured], axis, log=True)))
    if training := lines(run, lambda one: one.train_loss):
        faint = [replace(one, look="faint") for one in measured]
        views.append(("In training", plot(run, [*faint, *training], axis, log=True)))
    by_training = run.setting("mixture.feedback") == "train"
    title = f"{'Training' if by_training else 'Held-out'} loss per domain"
    figure = over_time("losses", title, views, floor=floor, by_training=by_training)
    return replace(figure, tables=[*figure.tables, _references(run)])


def _floor(run: RunData) -> dict[str, float]:
    """The reference losses that can be compared with the run's own."""
    found = run.reference
    if found is None or (found.unit or run.unit) != run.unit:
        return {}
    return {name: one.loss for name, one in found.domains.items() if one.loss}


def _references(run: RunData) -> Table | None:
    found = run.reference.domains if run.reference else {}
    unit = (run.reference and run.reference.unit) or run.unit
    head = ("Domain", f"loss ({unit})", "epoch", "held-out loss epoch by epoch")

    def row(name: str) -> list[Given]:
        one = found[name]
        curve = " · ".join(decimal(point.held_out) for point in one.curve)
        return [domain_cell(run, name), decimal(one.loss), significant(one.epoch), curve]

    return table("Reference losses", head, map(row, found))


def _degrees(run: RunData) -> Figure | None:
    kinds: tuple[tuple[str, str, Values], ...] = (
        ("Learnable potential γ", "γ, part of the loss", lambda one: one.learnable_potential),
        ("Forgetting degree φ", "φ, rise of the loss", lambda one: one.forgetting_degree),
    )
    views = [
        (title, plot(run, found, y, unit="%", zero=True))
        for title, y, values in kinds
        if (found := lines(run, values))
    ]
    title = "What could be learned, what was forgotten"
    return over_time("degrees", title, views) if views else None


def _guard(run: RunData) -> Figure | None:
    """Both sides of Algorithm 3's guard over time, the times it was open as bands behind."""
    found = [(one.step, one.guard) for one in run.adjustments if one.guard is not None]
    if not found:
        return None
    forgetting = [(step, one.forgetting) for step, one in found]
    bound = [(step, one.bound) for step, one in found]
    sides = [Series("forgetting of the others", forgetting, "worse")]
    sides.append(Series("bound ε·γ", bound, "text", group=1))
    bands: list[tuple[float, float, str, bool]] = []
    for (step, one), (after, _) in pairwise(found):
        if one.open and bands and bands[-1][1] == step:
            step = int(bands.pop()[0])
        bands += [(step, after, "", True)] * one.open
    drawn = replace(plot(run, sides, "loss rise", unit="%", zero=True), bands=bands)
    facts = {"opened": sum(one.open for _, one in found), "decisions": len(found)}
    return over_time("guard", "Guard of the expansion", [("", drawn)], **facts)


def stage_table(run: RunData) -> Table | None:
    """Held-out loss of every domain at the end of each stage, with its change over it, and what it
    lost since its lowest.
    """
    stages = spans(run)

    def cells(name: str) -> Iterator[Given]:
        ends = [stages[0].before.get(name)]
        yield from (domain_cell(run, name), decimal(ends[0]))
        for one in stages:
            before, loss = ends[-1], one.after.get(name)
            moved = loss / before - 1 if before and loss is not None else None
            note = change(moved) if moved is not None else ""
            yield Cell(decimal(loss), note, loss_change(moved).tone)
            ends.append(loss)
        lowest = min((loss for loss in ends if loss), default=None)
        yield loss_change(ends[-1] / lowest - 1 if ends[-1] is not None and lowest else None)

    head = ("Domain", "before", *(one.name for one in stages), "above its lowest")
    caption = f"Held-out loss at the end of each stage ({run.unit})"
    return table(caption, head, map(cells, run.domains)) if stages else None
