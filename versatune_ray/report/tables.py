"""Tables of the page: the numbers as text, ready for the template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from versatune_ray.report.data import Adjustment, PerDomain, RunData
from versatune_ray.report.outcome import Outcome, Outcomes, other_results
from versatune_ray.report.writing import (
    count,
    decimal,
    duration,
    percent,
    short,
    signed_percent,
    signed_points,
    significant,
)

MOST_ROWS = 60


@dataclass(frozen=True)
class Cell:
    """One table cell: a text, a smaller note beside it, its tone (``better``, ``worse``, or
    ``aside`` for a line that belongs to the one above), the domain whose colour it carries, and a
    share of 1 as the strength of its shading.
    """

    text: str
    note: str = ""
    tone: str = ""
    swatch: int | None = None
    heat: float | None = None


@dataclass(frozen=True)
class Table:
    """A table; ``groups`` are headings over several columns (text, width), ``total`` a last row set
    apart.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    groups: tuple[tuple[str, int], ...] = ()
    total: tuple[Cell, ...] = ()


def before_after(run: RunData, result: Outcomes) -> Table | None:
    """Held-out loss and exact match per domain, before and after."""
    if not result.domains:
        return None
    losses = any(
        row.loss_before is not None or row.loss_after is not None for row in result.domains
    )
    asked = any(
        row.accuracy_before is not None or row.accuracy_after is not None for row in result.domains
    )
    groups, head = [("", 1)], ["Domain"]
    if losses:
        counted = any(row.records is not None for row in result.domains)
        head += ["before", "after", "change", *(["records"] if counted else [])]
        groups.append((f"Held-out loss ({run.unit})", 4 if counted else 3))
    if asked:
        head += ["before", "after", "points", "n"]
        groups.append(("Exact match", 4))

    def cells(row: Outcome) -> tuple[Cell, ...]:
        made = [domain_cell(run, row.domain)]
        if losses:
            change = row.loss_change or 0
            made += [Cell(decimal(row.loss_before)), Cell(decimal(row.loss_after))]
            made.append(
                Cell(
                    signed_percent(row.loss_change),
                    tone="better" if change < 0 else "worse" if change > 0 else "",
                )
            )
            made += [Cell(count(row.records))] if counted else []
        if asked:
            gain = row.accuracy_change or 0
            tone = ("better" if gain > 0 else "worse") if row.accuracy_clear else ""
            made += [
                Cell(percent(row.accuracy_before), _error(row.error_before)),
                Cell(percent(row.accuracy_after), _error(row.error_after)),
            ]
            made += [
                Cell(signed_points(row.accuracy_change), tone=tone),
                Cell(count(row.questions)),
            ]
        return tuple(made)

    return Table(
        caption="Before and after fine-tuning, per domain",
        head=tuple(head),
        rows=tuple(cells(row) for row in result.domains),
        groups=tuple(groups),
        total=cells(result.mean) if result.mean else (),
    )


def other_measurements(run: RunData) -> Table | None:
    """Further benchmarks, metrics and models, one row each."""
    rows = tuple(
        (
            domain_cell(run, item.domain),
            Cell(item.model),
            Cell(item.benchmark),
            Cell(item.metric),
            Cell(
                significant(item.value, 4),
                f"± {significant(item.standard_error, 2)}"
                if item.standard_error is not None
                else "",
            ),
            Cell(item.unit or ""),
            Cell(count(item.n)),
        )
        for item in other_results(run)
    )
    return (
        Table(
            "Other measurements",
            ("Domain", "model", "benchmark", "metric", "value", "unit", "n"),
            rows,
        )
        if rows
        else None
    )


def data_counts(run: RunData) -> Table | None:
    """Whatever was counted while the records were read, with totals."""
    if run.counts is None or not run.counts.domains:
        return None
    counts = {
        name: {
            key: value
            for key, value in values.items()
            if isinstance(value, int) and not isinstance(value, bool)
        }
        for name, values in run.counts.domains.items()
    }
    keys = list(dict.fromkeys(key for values in counts.values() for key in values))
    rows = tuple(
        (domain_cell(run, name), *(Cell(count(values.get(key))) for key in keys))
        for name, values in counts.items()
    )
    total = (
        Cell("All domains"),
        *(Cell(count(sum(values.get(key, 0) for values in counts.values()))) for key in keys),
    )
    head = ("Domain", *(key.replace("_", " ") for key in keys))
    return Table("Records per domain", head, rows, total=total if len(rows) > 1 else ())


_ACCOUNTS = {
    "shapes": "shape",
    "unused_fields": "field that is not read",
    "left_out": "left out",
    "template_drops": "dropped by the chat template",
    "contaminated": "holds what is asked",
}


def record_account(run: RunData) -> Table | None:
    """Which shapes the records had, and what of them was not read, per domain."""
    rows = tuple(
        (domain_cell(run, name), Cell(what), Cell(short(str(one), 80)), Cell(count(n)))
        for name, values in (run.counts.domains if run.counts else {}).items()
        for key, what in _ACCOUNTS.items()
        for one, n in (values.get(key) or {}).items()
        if isinstance(n, int) and n
    )
    if not rows:
        return None
    return Table("What the records are", ("Domain", "What", "Name", "Records"), rows)


def timings(run: RunData) -> Table | None:
    """Wall-clock time per step."""
    if run.timings is None or not run.timings.steps:
        return None
    steps = run.timings.steps
    rows = [
        (Cell(step.name), Cell(duration(step.seconds)), Cell("from cache" if step.cached else ""))
        for step in steps
    ]
    spent = {
        key: sum(
            value
            for item in run.adjustments
            if (value := (item.seconds or {}).get(key)) is not None
        )
        for key in ("training", "measuring")
    }
    if sum(spent.values()) > 0:
        part = (
            f"{percent(spent['measuring'] / sum(spent.values()))} of training and measuring "
            f"together"
        )
        rows.append(
            (
                Cell("in fine-tuning: measuring losses"),
                Cell(duration(spent["measuring"])),
                Cell(part),
            )
        )
    total = sum(step.seconds for step in steps if step.seconds is not None)
    return Table(
        "Time per step",
        ("Step", "time", "note"),
        tuple(rows),
        total=(Cell("All steps"), Cell(duration(total)), Cell("")),
    )


def series(
    run: RunData,
    caption: str,
    values: Callable[[Adjustment], PerDomain | None],
    write: Callable[[float | None], str],
) -> Table | None:
    """One value per adjustment and domain, at most ``MOST_ROWS`` evenly spaced rows."""
    found = [(item, made) for item in run.adjustments if (made := values(item))]
    if not found:
        return None
    domains = [name for name in run.domains if any(made.get(name) is not None for _, made in found)]
    shown = [found[index] for index in evenly(len(found), MOST_ROWS)]
    if len(shown) < len(found):
        caption += f" ({len(shown)} evenly spaced rows of {len(found):,})"
    rows = tuple(
        (Cell(count(item.step)), *(Cell(write(made.get(name))) for name in domains))
        for item, made in shown
    )
    return Table(caption, ("Step", *domains), rows)


def evenly(total: int, most: int) -> Sequence[int]:
    """At most ``most`` indices from 0 to ``total`` − 1, evenly spaced, first and last among
    them.
    """
    if total <= most:
        return range(total)
    return [round(index * (total - 1) / (most - 1)) for index in range(most)]


def domain_cell(run: RunData, name: str) -> Cell:
    """A domain's name with the swatch of its colour."""
    return Cell(name, swatch=run.domains.index(name) if name in run.domains else None)


def _error(value: float | None) -> str:
    return f"± {100 * value:.1f}" if value is not None else ""
