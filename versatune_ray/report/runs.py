"""Several runs side by side on one page: what they did, what came of it, and how they got there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from versatune_ray.report.build import fill, write_page
from versatune_ray.report.data import RunData
from versatune_ray.report.figures import Figure
from versatune_ray.report.outcome import Outcomes, outcomes
from versatune_ray.report.run_files import read_run
from versatune_ray.report.tables import Cell, Table
from versatune_ray.report.traces import Trace, bare_layout, label
from versatune_ray.report.writing import (
    count,
    decimal,
    listing,
    percent,
    setting,
    short,
    signed_percent,
)

_SETTINGS = {
    "mixture.start": "start",
    "mixture.policy": "policy",
    "mixture.sigma": "σ",
    "mixture.delta": "δ",
    "mixture.epsilon": "ε",
    "mixture.targets": "targets",
    "training.epochs": "epochs",
    "training.learning_rate": "rate",
    "seed": "seed",
}


def compare_runs(folders: Sequence[Path], target: Path) -> Path:
    """Write a page about all runs in ``folders`` to ``target``.

    Raises:
        UserError: a folder does not exist.
    """
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    results = [outcomes(run) for run in runs]
    domains = list(dict.fromkeys(name for run in runs for name in run.domains))
    drawn = [
        figure
        for figure in (_losses(runs, names), _ends(results, names, domains))
        if figure is not None
    ]
    page = fill(
        "runs.html.jinja",
        drawn,
        max(len(runs), len(domains)),
        source=listing([run.folder for run in runs]),
        refresh=None,
        names=names,
        results=_results(runs, results, names, domains),
        settings=_settings(runs, names),
        figures=drawn,
        units=sorted({run.unit for run in runs}),
        unfinished=[name for run, name in zip(runs, names, strict=True) if not run.finished],
    )
    return write_page(target, page)


def _names(runs: Sequence[RunData]) -> list[str]:
    """A run's own name, or its folder where two have the same."""
    own = [run.name for run in runs]
    return [
        name if own.count(name) == 1 else run.folder for run, name in zip(runs, own, strict=True)
    ]


def _results(
    runs: Sequence[RunData],
    results: Sequence[Outcomes],
    names: Sequence[str],
    domains: Sequence[str],
) -> Table:
    """One row per run: held-out loss after training per domain and on average, its change, and
    exact match.
    """
    asked = any(result.mean and result.mean.accuracy_after is not None for result in results)
    best = {
        domain: min(
            (value for result in results if (value := _after(result, domain)) is not None),
            default=None,
        )
        for domain in domains
    }
    rows = []
    for run, result, name in zip(runs, results, names, strict=True):
        cells = [Cell(name)]
        for domain in domains:
            value = _after(result, domain)
            cells.append(
                Cell(
                    decimal(value) if value is not None else "–",
                    tone="better" if value is not None and value == best[domain] else "",
                )
            )
        mean = result.mean
        cells += [
            Cell(decimal(mean.loss_after) if mean else "–"),
            Cell(signed_percent(mean.loss_change) if mean else "–"),
        ]
        if asked:
            cells.append(Cell(percent(mean.accuracy_after) if mean else "–"))
        cells.append(Cell(count(run.adjustments[-1].step if run.adjustments else None)))
        rows.append(tuple(cells))
    head = (
        "Run",
        *(short(name, 20) for name in domains),
        "mean",
        "change",
        *(["exact match"] if asked else []),
        "steps",
    )
    return Table(
        "Held-out loss after training; the lowest of each domain is coloured", head, tuple(rows)
    )


def _after(result: Outcomes, domain: str) -> float | None:
    return next((row.loss_after for row in result.domains if row.domain == domain), None)


def _settings(runs: Sequence[RunData], names: Sequence[str]) -> Table | None:
    """The settings that are not the same in all runs."""
    keys = [key for key in _SETTINGS if len({str(run.setting(key)) for run in runs}) > 1]
    if not keys:
        return None
    rows = tuple(
        (Cell(name), *(Cell(setting(run.setting(key)) or "–") for key in keys))
        for run, name in zip(runs, names, strict=True)
    )
    return Table("What differs between the runs", ("Run", *(_SETTINGS[key] for key in keys)), rows)


def _losses(runs: Sequence[RunData], names: Sequence[str]) -> Figure | None:
    """The mean held-out loss over the domains, step by step."""
    traces: list[Trace] = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        points = [
            (one.step, [value for value in one.loss.values() if value is not None])
            for one in run.adjustments
            if one.loss
        ]
        if points:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": label(name, 40),
                    "x": [step for step, _ in points],
                    "y": [sum(values) / len(values) for _, values in points],
                    "line": {"width": 2},
                    "marker": {"size": 5},
                    "hovertemplate": "%{y:.4f}<extra>%{fullData.name}</extra>",
                    "meta": {"domain": index},
                }
            )
    if not traces:
        return None
    layout = bare_layout(x="optimizer step", lines=len(traces))
    layout["yaxis"]["title"] = {"text": "mean held-out loss"}
    sentence = (
        "Each line is one run: the mean over its domains of the loss on held-out records, lower is "
        "better."
    )
    return Figure("mean-loss", "How each run got there", sentence, traces, layout)


def _ends(
    results: Sequence[Outcomes], names: Sequence[str], domains: Sequence[str]
) -> Figure | None:
    """The change of every domain's loss, as bars."""
    traces: list[Trace] = []
    for index, (result, name) in enumerate(zip(results, names, strict=True)):
        changes = {row.domain: row.loss_change for row in result.domains}
        if any(value is not None for value in changes.values()):
            trace: dict[str, Any] = {
                "type": "bar",
                "name": label(name, 40),
                "x": [label(one, 20) for one in domains],
            }
            trace |= {"y": [changes.get(one) for one in domains], "meta": {"domain": index}}
            traces.append(
                trace | {"hovertemplate": "%{x}: %{y:+.1%}<extra>%{fullData.name}</extra>"}
            )
    if not traces:
        return None
    layout = bare_layout()
    layout["yaxis"] |= {
        "tickformat": "+~%",
        "zeroline": True,
        "title": {"text": "change of the held-out loss"},
    }
    layout |= {"hovermode": "closest", "barmode": "group", "bargap": 0.3}
    sentence = (
        "Each bar is how far a domain’s loss went down (learnt) or up (forgotten) from before "
        "training."
    )
    return Figure("changes", "What each run won and lost", sentence, traces, layout)
