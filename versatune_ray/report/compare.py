"""Several runs side by side on one page: what they did, what came of it, how they got there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from versatune_ray.report.charts import Figure, Plot, Row, Rows, Series, series_key
from versatune_ray.report.outcome import Outcomes, outcomes
from versatune_ray.report.page import fill, write_page
from versatune_ray.report.read import RunData, read_run
from versatune_ray.report.tables import Cell, Given, Table, table
from versatune_ray.report.writing import (
    called,
    count,
    decimal,
    percent,
    setting,
    short,
    signed_percent,
)

_SETTINGS = (
    "mixture.preset mixture.start mixture.policy mixture.strength mixture.sigma mixture.delta "
    "mixture.epsilon mixture.targets training.epochs training.learning_rate seed"
)


def compare_runs(folders: Sequence[Path], target: Path) -> Path:
    """Write a page about all runs in ``folders`` to ``target``.

    Raises:
        UserError: a folder does not exist.
    """
    runs = [read_run(folder) for folder in folders]
    own = [run.name for run in runs]
    names = [one.name if own.count(one.name) == 1 else one.place for one in runs]
    results = [outcomes(run) for run in runs]
    domains = list(dict.fromkeys(name for run in runs for name in run.domains))
    drawn = (_losses(runs, names), _changes(results, names, domains))
    page = fill(
        "runs.html.jinja",
        max(len(runs), len(domains)),
        names=names,
        results=_results(runs, results, names, domains),
        settings=_settings(runs, names),
        figures=[figure for figure in drawn if figure],
        units=sorted({run.unit for run in runs}),
        unfinished=[name for run, name in zip(runs, names, strict=True) if not run.finished],
    )
    return write_page(target, page)


def _after(result: Outcomes, domain: str) -> float | None:
    return next((row.loss.after for row in result.domains if row.domain == domain), None)


def _results(
    runs: Sequence[RunData],
    results: Sequence[Outcomes],
    names: Sequence[str],
    domains: Sequence[str],
) -> Table | None:
    """One row per run: loss after training per domain and on average, its change, exact match."""
    asked = any(result.mean and result.mean.exact.after is not None for result in results)
    best = {}
    for domain in domains:
        values = (_after(result, domain) for result in results)
        best[domain] = min((value for value in values if value is not None), default=None)
    rows = []
    for run, result, name in zip(runs, results, names, strict=True):
        row: list[Given] = [name]
        for domain in domains:
            value = _after(result, domain)
            lowest = value is not None and value == best[domain]
            row.append(Cell(decimal(value), tone="better" if lowest else ""))
        loss, exact = (result.mean.loss, result.mean.exact) if result.mean else (None, None)
        row += [decimal(loss.after) if loss else None]
        row += [signed_percent(loss.relative) if loss else None]
        row += [percent(exact.after) if exact else None] * asked
        rows.append([*row, count(run.adjustments[-1].step if run.adjustments else None)])
    shown = [short(name, 20) for name in domains]
    head = ("Run", *shown, "mean", "change", *["exact match"] * asked, "steps")
    return table("Held-out loss after training; the lowest of each domain is coloured", head, rows)


def _settings(runs: Sequence[RunData], names: Sequence[str]) -> Table | None:
    """The settings that are not the same in all runs."""
    keys = [key for key in _SETTINGS.split() if len({str(run.setting(key)) for run in runs}) > 1]
    rows = [
        [name, *(setting(run.setting(key)) or None for key in keys)]
        for run, name in zip(runs, names, strict=True)
    ]
    head = ("Run", *(called(key) for key in keys))
    caption = "What differs between the runs"
    return table(caption, head, rows, words=True) if keys else None


def _losses(runs: Sequence[RunData], names: Sequence[str]) -> Figure | None:
    """The mean held-out loss over the domains, step by step."""
    series = []
    for k, (run, name) in enumerate(zip(runs, names, strict=True)):
        found = [
            (one.step, [v for v in one.loss.values() if v is not None]) for one in run.adjustments
        ]
        points = [(float(step), sum(values) / len(values)) for step, values in found if values]
        series += [Series(name, points, f"d{k}", "line", k)] if points else []
    if not series:
        return None
    steps = [x for one in series for x, _ in one.points]
    plot = Plot(
        series,
        "optimizer step",
        "mean held-out loss, log axis",
        log=True,
        reach=(min(steps), max(steps)),
    )
    return Figure("mean-loss", "How each run got there", [("", plot)], (), series_key(plot)[0])


def _changes(
    results: Sequence[Outcomes], names: Sequence[str], domains: Sequence[str]
) -> Figure | None:
    """The change of every domain's loss, a dot for each run."""
    moves = [{row.domain: row.loss.relative for row in result.domains} for result in results]
    rows = []
    for domain in domains:
        found = [(k, names[k], move.get(domain)) for k, move in enumerate(moves)]
        marks = [
            ("dot", value, value, f"d{k}", f"{name}: {signed_percent(value)}", k)
            for k, name, value in found
            if value is not None
        ]
        rows += [Row(short(domain), marks)] if marks else []
    key = [(f"d{k}", "dot", name, "") for k, name in enumerate(names)]
    plot = Rows(rows, "change of the held-out loss", "+%")
    return Figure("changes", "What each run won and lost", [("", plot)], (), key) if rows else None
