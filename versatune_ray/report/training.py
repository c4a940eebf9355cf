"""What a fine-tuning did and what came of it: its charts over time, and its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from versatune_ray.report.charts import (
    MOST_POINTS,
    Figure,
    Plot,
    Row,
    Rows,
    Series,
    series_key,
    thin,
)
from versatune_ray.report.outcome import share_ends
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import (
    MOST_ROWS,
    Cell,
    Given,
    Table,
    domain_cell,
    evenly,
    table,
    tone,
)
from versatune_ray.report.writing import (
    count,
    decimal,
    percent,
    short,
    signed_percent,
    significant,
)
from versatune_ray.runs.artefacts import Adjustment, Guard, PerDomain

Values = Callable[[Adjustment], PerDomain | None]
_STEP = "optimizer step"


def shares_before_after(run: RunData) -> Figure | None:
    """The first chart of a run: each domain's share before and after."""
    ends = share_ends(run)
    if ends is None:
        return None
    first, last = ends
    rows = []
    for index, name in enumerate(run.domains):
        before, after = first.get(name), last.get(name)
        if before is not None and after is not None:
            told = f"{percent(before)} → {percent(after)}"
            bars = (("pale", before, "before", 0), ("bar", after, "after", 1))
            marks = [(k, 0.0, v, f"d{index}", f"{w}: {percent(v)}", n) for k, v, w, n in bars]
            rows.append(Row(short(name), marks, told, f"d{index}"))
    key = (("muted", "pale", "before", ""), ("muted", "bar", "after", ""))
    views = [("", Rows(rows, f"share of {_asked(run)}"))]
    return Figure("before-after", "Shares before and after", views, (), key)


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


def lines(run: RunData, values: Values, look: str = "line") -> list[Series]:
    """One line per domain, of the steps that a screen can show."""
    rows = [(one.step, made) for one in run.adjustments if (made := values(one))]
    most = min(MOST_POINTS, max(60, 8_000 // max(len(run.domains), 1)))
    kept = thin([list(made.values()) for _, made in rows], most)
    drawn = []
    for index, name in enumerate(run.domains):
        points = [(rows[k][0], rows[k][1].get(name)) for k in kept]
        if any(y is not None for _, y in points):
            drawn.append(Series(name, points, f"d{index}", look, index))
    return drawn


def plot(run: RunData, series: list[Series], y: str, **look: bool | str) -> Plot:
    """A plot over the steps of the run, with its stages as bands."""
    stages = enumerate(spans(run))
    bands = [(one.first, one.last, one.name, number % 2 == 1) for number, one in stages]
    reach = [one.step for one in run.adjustments[:1] + run.adjustments[-1:]]
    return Plot(series, _STEP, y, bands=bands, reach=reach, **look)  # type: ignore[arg-type]


def _figure(
    run: RunData,
    name: str,
    title: str,
    views: list[tuple[str, Plot]],
    tables: list[Table | None],
    **facts: Any,
) -> Figure:
    key, quiet = series_key(views[0][1])
    facts |= {"stages": spans(run), "shown": len(key) - len(quiet)}
    return Figure(name, title, views, tables, key, facts, quiet)


def _asked(run: RunData) -> str:
    """What shares count."""
    return "tokens" if run.setting("mixture.unit") == "tokens" else "samples"


def _shares(run: RunData) -> Figure | None:
    requested = lines(run, lambda one: one.share, "steps")
    if not requested or len(run.adjustments) < 2:
        return None
    faint = [replace(one, look="faint", stepped=True) for one in requested]
    views = [("Requested", plot(run, requested, "share", unit="%", zero=True))]
    views.append(("Stacked", plot(run, requested, "share", unit="%", stacked=True)))
    tables = [_series(run, f"Requested share of {_asked(run)}", lambda one: one.share)]
    drawn: tuple[tuple[str, Values], ...] = (
        ("Samples", lambda one: one.share_achieved),
        ("Tokens", lambda one: one.token_share_achieved),
    )
    for what, values in drawn:
        if found := lines(run, values):
            views.append(
                (f"{what} drawn", plot(run, [*faint, *found], "share", unit="%", zero=True))
            )
            tables.append(
                _series(run, f"Share of {what.lower()} drawn since the adjustment before", values)
            )
    return _figure(run, "shares", "Shares over time", views, tables, drawn=len(views) > 2)


def _losses(run: RunData) -> Figure | None:
    measured = lines(run, lambda one: one.loss)
    if not measured:
        return None
    there = (
        run.reference.domains
        if run.reference and (run.reference.unit or run.unit) == run.unit
        else {}
    )
    floor = {name: one.loss for name, one in there.items() if one.loss}
    axis = f"loss ({run.unit}), log axis"
    ends = [one.step for one in run.adjustments[:1] + run.adjustments[-1:]]
    dashed = [
        Series(f"{name}, reference", [(step, floor[name]) for step in ends], f"d{k}", "dashed", k)
        for k, name in enumerate(run.domains)
        if name in floor
    ]
    views = []
    if floor:

        def above(one: Adjustment) -> PerDomain:
            return {
                name: loss / floor[name] - 1
                for name, loss in one.loss.items()
                if loss is not None and floor.get(name)
            }  # type: ignore[operator]

        views.append(
            (
                "Above the reference",
                plot(run, lines(run, above), "loss above the reference", unit="+%", zero=True),
            )
        )
    views.append(("Loss", plot(run, [*measured, *dashed], axis, log=True)))
    if training := lines(run, lambda one: one.train_loss):
        faint = [replace(one, look="faint") for one in measured]
        views.append(("In training", plot(run, [*faint, *training], axis, log=True)))
    by_training = run.setting("mixture.feedback") == "train"
    tables = [_series(run, f"Loss in {run.unit}", lambda one: one.loss, decimal)]
    rows: list[list[Given]] = [
        [
            domain_cell(run, name),
            decimal(one.loss),
            significant(one.epoch),
            " · ".join(decimal(point.held_out) for point in one.curve),
        ]
        for name, one in (run.reference.domains.items() if run.reference else ())
    ]
    unit = run.reference.unit if run.reference else None
    tables.append(
        table(
            "Reference losses",
            ("Domain", f"loss ({unit or run.unit})", "epoch", "held-out loss epoch by epoch"),
            rows,
        )
    )
    title = "Training loss per domain" if by_training else "Held-out loss per domain"
    return _figure(run, "losses", title, views, tables, floor=floor, by_training=by_training)


def _degrees(run: RunData) -> Figure | None:
    kinds: tuple[tuple[str, str, Values], ...] = (
        ("Learnable potential γ", "γ, part of the loss", lambda one: one.learnable_potential),
        ("Forgetting degree φ", "φ, rise of the loss", lambda one: one.forgetting_degree),
    )
    views, tables = [], []
    for title, y, values in kinds:
        if found := lines(run, values):
            views.append((title, plot(run, found, y, unit="%", zero=True)))
            tables.append(_series(run, title, values, lambda value: percent(value, 2)))
    if not views:
        return None
    return _figure(run, "degrees", "What could be learned, what was forgotten", views, tables)


def _guard(run: RunData) -> Figure | None:
    """Both sides of Algorithm 3's guard over time, the times it was open as bands behind."""
    found = [(one.step, one.guard) for one in run.adjustments if one.guard is not None]
    if not found:
        return None
    sides = (
        Series(
            "forgetting of the others",
            [(step, one.forgetting) for step, one in found],
            "worse",
            "line",
            0,
        ),
        Series("bound ε·γ", [(step, one.bound) for step, one in found], "text", "dashed", 1),
    )
    bands: list[tuple[float, float, str, bool]] = []
    for (step, one), (after, _) in pairwise(found):
        if bands and bands[-1][1] == step and one.open:
            bands[-1] = (bands[-1][0], after, "", True)
        elif one.open:
            bands.append((step, after, "", True))
    drawn = replace(plot(run, list(sides), "loss rise", unit="%", zero=True), bands=bands)
    opened = sum(one.open for _, one in found)
    shown = [found[k] for k in evenly(len(found), MOST_ROWS)]
    rows = [
        [count(step), state(one), significant(one.forgetting), significant(one.bound)]
        for step, one in shown
    ]
    numbers = table("Guard", ("Step", "state", "forgetting of the others", "bound ε·γ"), rows)
    facts = {"opened": count(opened), "decisions": count(len(found))}
    key, _ = series_key(drawn)
    return Figure("guard", "Guard of the expansion", [("", drawn)], [numbers], key, facts)


def state(guard: Guard) -> str:
    return "open" if guard.open else "closed"


def _series(
    run: RunData, caption: str, values: Values, write: Callable[[float | None], str] = percent
) -> Table | None:
    """One value per adjustment and domain, at most ``MOST_ROWS`` evenly spaced rows."""
    found = [(one.step, made) for one in run.adjustments if (made := values(one))]
    names = [name for name in run.domains if any(made.get(name) is not None for _, made in found)]
    shown = [found[index] for index in evenly(len(found), MOST_ROWS)]
    if len(shown) < len(found):
        caption += f" ({len(shown)} evenly spaced rows of {count(len(found))})"
    return table(
        caption,
        ("Step", *names),
        [[count(step), *(write(made.get(name)) for name in names)] for step, made in shown],
    )


def stage_table(run: RunData) -> Table | None:
    """Held-out loss of every domain at the end of each stage, with its change over it, and what it
    lost since its lowest.
    """
    stages = spans(run)
    if not stages:
        return None

    def cells(name: str) -> Iterator[Cell | str]:
        ends = [stages[0].before.get(name)]
        yield from (domain_cell(run, name), decimal(ends[0]))
        for one in stages:
            before, loss = ends[-1], one.after.get(name)
            change = loss / before - 1 if before and loss is not None else None
            note = signed_percent(change) if change is not None else ""
            yield Cell(decimal(loss), note, tone(change, loss=True))
            ends.append(loss)
        lowest = min((loss for loss in ends if loss), default=None)
        lost = ends[-1] / lowest - 1 if ends[-1] is not None and lowest else None
        yield Cell(signed_percent(lost), tone=tone(lost, loss=True))

    head = ("Domain", "before", *(one.name for one in stages), "above its lowest")
    caption = f"Held-out loss at the end of each stage ({run.unit})"
    return table(caption, head, [list(cells(name)) for name in run.domains])
