"""Tables of what a run took and gave: before and after, records, time."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ray.report.doubts import last_passes
from versatune_ray.report.outcome import Outcome, Outcomes
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import Cell, Given, Table, domain_cell, table, tone
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
from versatune_ray.runs.artefacts import OWN


def before_after(run: RunData, result: Outcomes, baseline: Outcomes | None) -> Table | None:
    """Held-out loss and exact match per domain, before and after, and what equal shares gave."""
    rows = result.domains
    losses = any((row.loss.before, row.loss.after) != (None, None) for row in rows)
    counted = any(row.loss.n is not None for row in rows)
    asked = any((row.exact.before, row.exact.after) != (None, None) for row in rows)
    others = (
        {row.domain: row for row in (*baseline.domains, baseline.mean) if row} if baseline else {}
    )
    beside = bool(others) and losses
    groups, head = [("", 1)], ["Domain"]
    if losses:
        head += ["before", "after", "change", *[run.baseline_name] * beside, *["records"] * counted]
        groups.append((f"Held-out loss ({run.unit})", 3 + beside + counted))
    if asked:
        head += ["before", "after", "points", "n"]
        groups.append(("Exact match", 4))

    def cells(row: Outcome) -> Iterator[Cell | str]:
        yield domain_cell(run, row.domain)
        loss, exact = row.loss, row.exact
        if losses:
            yield from (decimal(loss.before), decimal(loss.after))
            yield Cell(signed_percent(loss.relative), tone=tone(loss.relative, loss=True))
            other = others[row.domain].loss.after if row.domain in others else None
            yield from [decimal(other)] * beside + [count(loss.n)] * counted
        if asked:
            for value, error in (
                (exact.before, exact.error_before),
                (exact.after, exact.error_after),
            ):
                yield Cell(percent(value), f"± {100 * error:.1f}" if error is not None else "")
            yield Cell(signed_points(exact.move), tone=tone(exact.move, clear=exact.clear))
            yield count(exact.n)

    total = list(cells(result.mean)) if result.mean else ()
    caption = "Before and after fine-tuning, per domain"
    return table(caption, head, [list(cells(row)) for row in rows], groups=groups, total=total)


def other_measurements(run: RunData) -> Table | None:
    """What was measured besides benchmarks, and the run's own loss and questions."""
    shown = [
        one
        for one in run.results
        if not one.is_benchmark and (one.benchmark not in OWN or one.model not in ("base", "tuned"))
    ]
    rows: list[list[Given]] = [
        [
            domain_cell(run, one.domain),
            one.model,
            one.benchmark,
            one.metric,
            Cell(
                significant(one.value, 4),
                f"± {significant(one.standard_error, 2)}" if one.standard_error is not None else "",
            ),
            one.unit or "",
            count(one.n),
        ]
        for one in shown
    ]
    return table(
        "Other measurements",
        ("Domain", "model", "benchmark", "metric", "value", "unit", "n"),
        rows,
        words=True,
    )


_ACCOUNTS = {
    "shapes": "shape",
    "unused_fields": "field that is not read",
    "left_out": "left out",
    "template_drops": "dropped by the chat template",
    "contaminated": "holds what is asked",
}


def data_tables(run: RunData) -> list[Table]:
    """Whatever was counted while the records were read, with totals; how often they were gone
    through; which shapes they had, and what of them was not read.
    """
    found = run.counts.domains if run.counts else {}
    whole = {
        name: {key: n for key, n in row.items() if isinstance(n, int) and not isinstance(n, bool)}
        for name, row in found.items()
    }
    keys, passes = (
        list(dict.fromkeys(key for row in whole.values() for key in row)),
        last_passes(run),
    )
    rows: list[list[Given]] = [
        [
            domain_cell(run, name),
            *(count(row.get(key)) for key in keys),
            decimal(passes.get(name), 2),
        ]
        for name, row in whole.items()
    ]
    total = [
        "All domains",
        *(count(sum(row.get(key, 0) for row in whole.values())) for key in keys),
        "",
    ]
    head = ("Domain", *(key.replace("_", " ") for key in keys), "passes")
    counts = table(
        "Records per domain", head, rows, total=total if len(rows) > 1 else (), sparse=True
    )
    account: list[list[Given]] = [
        [domain_cell(run, name), what, short(str(one), 80), count(n)]
        for name, row in found.items()
        for key, what in _ACCOUNTS.items()
        for one, n in (row.get(key) or {}).items()
        if isinstance(n, int) and n
    ]
    kinds = table("What the records are", ("Domain", "What", "Name", "Records"), account)
    return [one for one in (counts, kinds) if one]


def timings(run: RunData) -> Table | None:
    """Wall-clock time per step."""
    steps = run.timings.steps if run.timings else []
    rows = [[one.name, duration(one.seconds), "from cache" if one.cached else ""] for one in steps]
    spent = {
        key: sum((one.seconds or {}).get(key) or 0 for one in run.adjustments)
        for key in ("training", "measuring")
    }
    if rows and sum(spent.values()) > 0:
        part = percent(spent["measuring"] / sum(spent.values()))
        part += " of training and measuring together"
        rows.append(["in fine-tuning: measuring losses", duration(spent["measuring"]), part])
    total = ["All steps", duration(sum(one.seconds or 0 for one in steps)), ""]
    return table("Time per step", ("Step", "time", "note"), rows, total=total, words=True)
