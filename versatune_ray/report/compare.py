"""Several runs side by side on one page: what they did, what came of it, how they got there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from versatune_ray.report.charts import Figure, Mark, Plot, Row, Rows, Series, over_time
from versatune_ray.report.outcome import Change, Outcome, outcomes
from versatune_ray.report.page import fill, write_page
from versatune_ray.report.read import RunData, read_run
from versatune_ray.report.tables import Cell, Given, Table, table
from versatune_ray.report.writing import called, change, decimal, percent, setting, short

_SETTINGS = (
    "mixture.preset mixture.start mixture.policy mixture.strength mixture.sigma mixture.delta "
    "mixture.epsilon mixture.targets training.epochs training.learning_rate seed"
)
Named = dict[str, RunData]  # by what the page calls them
_NONE = Outcome("", Change(), Change())


def compare_runs(folders: Sequence[Path], target: Path) -> Path:
    """Write a page about all runs in ``folders`` to ``target``.

    Raises:
        UserError: a folder does not exist.
    """
    read = [read_run(folder) for folder in folders]
    own = [run.name for run in read]
    runs: Named = {}
    for run in read:
        name = run.name if own.count(run.name) == 1 else run.place
        runs[name if name not in runs else f"{name} ({len(runs) + 1})"] = run
    domains = list(dict.fromkeys(name for run in read for name in run.domains))
    page = fill(
        "runs.html.jinja",
        max(len(runs), len(domains)),
        names=list(runs),
        results=_results(runs, domains),
        settings=_settings(runs),
        figures=[one for one in (_losses(runs), _changes(runs, domains)) if one],
        units=sorted({run.unit for run in read}),
        unfinished=[name for name, run in runs.items() if not run.finished],
    )
    return write_page(target, page)


def _by_domain(run: RunData) -> dict[str, Outcome]:
    return {one.domain: one for one in outcomes(run).domains}


def _results(runs: Named, domains: Sequence[str]) -> Table | None:
    """One row per run: loss after training per domain and on average, its change, exact match."""
    after = {
        name: [_by_domain(run).get(domain, _NONE).loss.after for domain in domains]
        for name, run in runs.items()
    }
    columns = zip(*after.values(), strict=True)
    lowest = [min((v for v in values if v is not None), default=None) for values in columns]
    means = {name: outcomes(run).mean or _NONE for name, run in runs.items()}
    asked = any(mean.exact.after is not None for mean in means.values())

    def row(name: str) -> list[Given]:
        pairs, mean = zip(after[name], lowest, strict=True), means[name]
        losses = [Cell(decimal(v), tone="better" * (v == best is not None)) for v, best in pairs]
        exact = [percent(mean.exact.after)] * asked
        steps = runs[name].adjustments[-1].step if runs[name].adjustments else None
        return [name, *losses, decimal(mean.loss.after), change(mean.loss.relative), *exact, steps]

    shown = [short(name, 20) for name in domains]
    head = ("Run", *shown, "mean", "change", *["exact match"] * asked, "steps")
    caption = "Held-out loss after training; the lowest of each domain is coloured"
    return table(caption, head, map(row, runs))


def _settings(runs: Named) -> Table | None:
    """The settings that are not the same in all runs."""
    values = {key: [run.setting(key) for run in runs.values()] for key in _SETTINGS.split()}
    differ = {called(key): row for key, row in values.items() if len(set(map(str, row))) > 1}
    rows = ([name, *map(setting, row)] for name, *row in zip(runs, *differ.values(), strict=True))
    head = ("Run", *differ)
    return table("What differs between the runs", head, rows, words=True) if differ else None


def _losses(runs: Named) -> Figure | None:
    """The mean held-out loss over the domains, step by step."""
    series = []
    for k, (name, run) in enumerate(runs.items()):
        rows = [
            (one.step, [v for v in one.loss.values() if v is not None]) for one in run.adjustments
        ]
        points = [(float(step), sum(values) / len(values)) for step, values in rows if values]
        series += [Series(name, points, f"d{k}", group=k)] if points else []
    reach = sorted(x for one in series for x, _ in one.points)
    plot = Plot(series, "optimizer step", "mean held-out loss, log axis", log=True, reach=reach)
    return over_time("mean-loss", "How each run got there", [("", plot)]) if series else None


def _changes(runs: Named, domains: Sequence[str]) -> Figure | None:
    """The change of every domain's loss, a dot for each run."""
    rows = []
    for domain in domains:
        marks = []
        for k, (name, run) in enumerate(runs.items()):
            moved = _by_domain(run).get(domain, _NONE).loss.relative
            if moved is not None:
                marks.append(Mark("dot", moved, moved, f"d{k}", name, change(moved), k))
        rows += [Row(short(domain), marks)] if marks else []
    plot, title = Rows(rows, "change of the held-out loss", "+%"), "What each run won and lost"
    tables = [plot.numbers(title, "Domain")]
    return Figure("changes", title, [("", plot)], tables) if rows else None
