"""Tables of what a run took and gave: before and after, records, time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from versatune_ray.report.doubts import last_passes
from versatune_ray.report.outcome import Outcome, outcomes
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import Cell, Given, Table, domain_cell, loss_change, table, tone
from versatune_ray.report.writing import (
    count,
    decimal,
    duration,
    gain,
    listing,
    percent,
    short,
    significant,
    within,
)
from versatune_ray.runs.artefacts import OWN


def outcome_section(run: RunData) -> dict[str, Any] | None:
    """What was measured before and after."""
    found = {"table": before_after(run), "other": other_measurements(run)}
    return found if any(found.values()) else None


def before_after(run: RunData) -> Table | None:
    """Held-out loss and exact match per domain, before and after, and what equal shares gave."""
    result, baseline = outcomes(run), outcomes(run.baseline) if run.baseline else None
    rows, total = result.domains, result.mean
    others = {one.domain: one.loss.after for one in baseline.all} if baseline else {}
    losses, asked = any(row.loss.known for row in rows), any(row.exact.known for row in rows)
    counted = losses and any(row.loss.n is not None for row in rows)
    beside = losses and bool(others)
    head, groups = ["Domain"], [("", 1)]
    if losses:
        head += ["before", "after", "change", *[run.baseline_name] * beside, *["records"] * counted]
        groups.append((f"Held-out loss ({run.unit})", 3 + beside + counted))
    if asked:
        head += ["before", "after", "points", "n"]
        groups.append(("Exact match", 4))

    def cells(row: Outcome) -> Iterator[Given]:
        yield domain_cell(run, row.domain)
        loss, exact = row.loss, row.exact
        if losses:
            yield from (decimal(loss.before), decimal(loss.after), loss_change(loss.relative))
            yield from [decimal(others.get(row.domain))] * beside + [loss.n] * counted
        if asked:
            yield Cell(percent(exact.before), within(exact.error_before))
            yield Cell(percent(exact.after), within(exact.error_after))
            yield Cell(gain(exact.move), tone=tone(exact.beyond))
            yield exact.n

    caption = "Before and after fine-tuning, per domain"
    last = cells(total) if total else ()
    return table(caption, head, map(cells, rows), groups=groups, total=last)


def other_measurements(run: RunData) -> Table | None:
    """What was measured besides benchmarks, and the run's own loss and questions."""
    rows: list[list[Given]] = []
    for one in run.results:
        if one.is_benchmark or (one.benchmark in OWN and one.model in ("base", "tuned")):
            continue
        error = one.standard_error
        note = f"± {significant(error, 2)}" if error is not None else ""
        value = Cell(significant(one.value, 4), note)
        names = (domain_cell(run, one.domain), one.model, one.benchmark, one.metric)
        rows.append([*names, value, one.unit or "", one.n])
    head = ("Domain", "model", "benchmark", "metric", "value", "unit", "n")
    return table("Other measurements", head, rows, words=True)


_ACCOUNTS = {
    "shapes": "shape",
    "unused_fields": "field that is not read",
    "left_out": "left out",
    "template_drops": "dropped by the chat template",
    "contaminated": "holds what is asked later",
}

_HELD = {"ask": "the same question", "share": "13 tokens in a row of a question"}


def data_tables(run: RunData) -> list[Table]:
    """Whatever was counted while the records were read, with totals; how often they were gone
    through; which shapes they had, and what of them was not read.
    """
    found, passes = run.counts.domains if run.counts else {}, last_passes(run)
    numbers = {
        name: {key: n for key, n in row.items() if type(n) is int and n}
        for name, row in found.items()
    }
    keys = list(dict.fromkeys(key for row in numbers.values() for key in row))
    rows: list[list[Given]] = [
        [domain_cell(run, name), *(row.get(key) for key in keys), decimal(passes.get(name), 2)]
        for name, row in found.items()
    ]
    sums = [sum(row.get(key, 0) for row in numbers.values()) for key in keys]
    total: list[Given] = ["All domains", *sums, ""] if len(rows) > 1 else []
    head = ["Domain", *(key.replace("_", " ") for key in keys), "passes"]
    if not passes:
        head, rows, total = head[:-1], [row[:-1] for row in rows], total[:-1]
    made = (table("Records per domain", head, rows, total=total), _kinds(found))
    return [one for one in made if one]


def _kinds(found: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Which shapes the records had, and what of them was not read: a row for each."""
    kinds: dict[tuple[str, str], dict[str, int]] = {}
    for name, row in found.items():
        for key, what in _ACCOUNTS.items():
            for one, n in (row.get(key) or {}).items():
                told = _HELD.get(one, one) if key == "contaminated" else short(str(one), 80)
                if isinstance(n, int) and n:
                    kinds.setdefault((what, told), {})[short(name)] = n
    rows: list[list[Given]] = [
        [*kind, sum(of.values()), listing([f"{name} {count(n)}" for name, n in of.items()], 12)]
        for kind, of in kinds.items()
    ]
    head = ("What", "name", "records", "of which domains")
    return table("What the records are", head, rows, words=True)


def timings(run: RunData) -> Table | None:
    """Wall-clock time per step."""
    steps = run.timings.steps if run.timings else []
    rows = [[one.name, duration(one.seconds), "from cache" * one.cached] for one in steps]
    training, measuring = (
        sum((one.seconds or {}).get(key) or 0 for one in run.adjustments)
        for key in ("training", "measuring")
    )
    if rows and training + measuring > 0:
        part = f"{percent(measuring / (training + measuring))} of training and measuring together"
        rows.append(["in fine-tuning: measuring losses", duration(measuring), part])
    total = ["All steps", duration(run.seconds), ""]
    return table("Time per step", ("Step", "time", "note"), rows, total=total, words=True)
