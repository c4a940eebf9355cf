"""What compares fine-tunings: a sweep, a study, a replay."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from versatune_ray.report.charts import (
    Figure,
    Mark,
    Plot,
    Point,
    Row,
    Rows,
    Series,
    thin,
)
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import Cell, Given, Table, table
from versatune_ray.report.verdict import changes_text
from versatune_ray.report.writing import (
    SIGNS,
    count,
    cut,
    decimal,
    listing,
    percent,
    plural,
    points,
    setting,
    short,
    sign,
    significant,
)
from versatune_ray.runs.comparisons import RECORDED, Mean, StudyTable, Sweep, Trial
from versatune_ray.runs.thresholds import AMONG_ALL
from versatune_ray.settings.tuning import OBJECTIVES

MOST_TRIALS = 200  # rows of the table, and dots of a chart
MOST_VALUES = 12  # of a key, up to which a map has a place for each
_ERROR = 300  # characters
Kinds = Sequence[tuple[str, Sequence[Trial], str, str]]  # name, trials, colour, look


def sweep_section(run: RunData) -> dict[str, Any] | None:
    """Everything that the template shows of a sweep."""
    sweep = run.sweep
    if sweep is None or not sweep.trials:
        return None
    file, far = f"{run.place}/{Sweep.BEST}", "://" in run.place
    return {
        "sweep": sweep,
        "table": _trials(sweep),
        "map": score_map(sweep),
        "figures": [one for one in (trade_off(sweep), by_setting(sweep)) if one],
        "signs": listing([f"{SIGNS[key]} is {key}" for key in sweep.keys if key in SIGNS]),
        "weights": _weights(run),
        "edges": listing(_edges(run, sweep)),
        "file": file if sweep.written else "",
        "line": f"versatune finetune --config {'best.yaml' if far else shlex.quote(file)}",
    }


def _trials(sweep: Sweep) -> Table | None:
    """One row per trial, the best first and the failed ones last."""

    def row(one: Trial) -> list[Given]:
        best, value = "better" if one is sweep.best else "", one.objectives.get
        changes = [setting(one.changes[k]) if k in one.changes else None for k in sweep.keys]
        aims = [Cell(percent(value(n), 2), tone=best * (n == "score")) for n in sweep.objectives]
        return [Cell(one.trial, tone=best), *changes, *aims, Cell(_fate(sweep, one), tone="remark")]

    names = [name.replace("_", " ") for name in sweep.objectives]
    head = ("Trial", *(SIGNS.get(key, key) for key in sweep.keys), *names, "what became of it")
    caption, total = "Trials, best score first", len(sweep.trials)
    if total > MOST_TRIALS:
        caption += f" ({MOST_TRIALS} of {count(total)}; all are in {Sweep.FILE})"
    return table(caption, head, map(row, sweep.ranked[:MOST_TRIALS]))


def _fate(sweep: Sweep, one: Trial) -> str:
    if one.error is not None:
        return cut(f"failed: {' '.join(one.error.split())}", _ERROR)
    told = ["best"] * (one is sweep.best) + ["beaten by none"] * (one.trial in sweep.front)
    return ", ".join(told + _stopped(one))


def _stopped(one: Trial) -> list[str]:
    return [f"stopped early at step {count(one.pruned_at)}"] * (one.pruned_at is not None)


def _weights(run: RunData) -> str:
    """The score, as a sum in words."""
    given, said = run.setting("sweep.objective"), ""
    for name, value in given.items() if isinstance(given, dict) else ():
        if name in OBJECTIVES and isinstance(value, int | float) and value:
            size = "" if abs(value) == 1 else f"{significant(abs(value))} × "
            join = (" − " if value < 0 else " + ") if said else ("minus " if value < 0 else "")
            said += f"{join}{size}{name.replace('_', ' ')}"
    return said or "their weighted sum"


def _number(one: Trial, key: str) -> float | None:
    value = one.changes.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _values(sweep: Sweep, key: str) -> list[float]:
    """The different numbers that a key takes, rising; nothing for a key of other values."""
    numbers = {_number(one, key) for one in sweep.trials if key in one.changes}
    return [] if None in numbers else sorted(number for number in numbers if number is not None)


def _edges(run: RunData, sweep: Sweep) -> list[str]:
    """Where the best trial sits at the end of a list of values."""
    best, space, found = sweep.best, run.setting("sweep.space"), []
    for key in sweep.keys if best else ():
        if isinstance(space, dict) and isinstance(space.get(key), dict):
            continue  # a range, whose ends were hardly drawn
        values, number = _values(sweep, key), _number(best, key) if best else None
        if number is not None and len(values) > 2 and number in (values[0], values[-1]):
            end = "smallest" if number == values[0] else "largest"
            found.append(f"{sign(key)} = {setting(number)} is the {end} tried")
    return found


def trade_off(sweep: Sweep) -> Figure | None:
    """Gain of the targets over forgetting of the others, with the front."""
    at: dict[str, tuple[float, float]] = {}
    for one in sweep.trials:
        x, y = one.objectives.get("forgetting"), one.objectives.get("target_gain")
        at |= {one.trial: (x, y)} if x is not None and y is not None else {}
    shown = [one for one in sweep.ranked if one.trial in at]
    best = [one for one in shown if one is sweep.best]
    front = [one for one in shown if one.trial in sweep.front]
    stopped = [one for one in shown if one.pruned_at is not None]
    rest = [one for one in shown if one not in (*front, *stopped, *best)]
    line = sorted(at[one.trial] for one in front)
    # with a third objective the trials that none beats need not lie on one line
    joined = [y for _, y in line] == sorted(y for _, y in line)
    kinds = (
        ("stopped early", stopped, "muted", "open"),
        ("other trials", rest, "muted", "dots"),
        ("beaten by none", front, "accent", "dots"),
        ("best score", best, "better", "square"),
    )
    series = [Series("beaten by none", line, "accent", group=2, stepped=True)]
    series = series * bool(joined and line) + _dots(sweep, kinds, at)
    plot = Plot(series, "forgetting (lower is better)", "gain of the targets", "%", "%")
    facts = {"front": front, "joined": joined, "best": best, "stopped": stopped}
    title = "Gain against forgetting"
    return Figure("trade-off", title, [("", plot)], facts=facts) if shown else None


def _dots(sweep: Sweep, kinds: Kinds, at: Mapping[str, Point]) -> list[Series]:
    """A dot for each trial, at its place, a series for each kind."""

    def tip(one: Trial) -> str:
        pairs = ((name, one.objectives.get(name)) for name in sweep.objectives)
        aims = [f"{name.replace('_', ' ')} {percent(value, 2)}" for name, value in pairs]
        return " · ".join([short(changes_text(one), 120), *aims, *_stopped(one)])

    made = []
    for group, (name, trials, tone, look) in enumerate(kinds):
        there = [one for one in trials if one.trial in at]
        points, tips = [at[one.trial] for one in there], [tip(one) for one in there]
        made += [Series(name, points, tone, look, group, tips)] if points else []
    return made


def by_setting(sweep: Sweep) -> Figure | None:
    """The score over each setting, a view for each."""
    drawn = [one for one in sweep.ranked if one.score is not None][:MOST_TRIALS]
    kinds = (
        ("stopped early", [one for one in drawn if not one.finished], "muted", "open"),
        ("finished", [one for one in drawn if one.finished], "accent", "dots"),
        ("best score", [one for one in drawn if one is sweep.best], "better", "square"),
    )
    views = []
    for key in sweep.keys:
        pairs = ((one, _number(one, key)) for one in drawn)
        at = {one.trial: (number, one.score) for one, number in pairs if number is not None}
        if len({number for number, _ in at.values()}) > 1:
            views.append((sign(key), Plot(_dots(sweep, kinds, at), key, "score", "%")))
    shown = views and len(drawn) > 1
    return Figure("by-setting", "Score over each setting", views) if shown else None


def score_map(sweep: Sweep) -> Table | None:
    """The score over two keys, where exactly two numeric ones are searched and their combinations
    fill half of a map or more.
    """
    values = {key: found for key in sweep.keys if len(found := _values(sweep, key)) > 1}
    if len(values) != 2:
        return None
    (across, columns), (up, rows) = sorted(values.items(), key=lambda item: len(item[1]))
    cells: dict[tuple[Any, Any], Trial] = {}
    for one in sweep.ranked:
        place = one.changes.get(up), one.changes.get(across)
        if one.score is not None and None not in place:
            cells.setdefault(place, one)
    if len(rows) > MOST_VALUES or 2 * len(cells) < len(columns) * len(rows):
        return None
    scores = [one.score or 0.0 for one in cells.values()]
    low, wide = min(scores), (max(scores) - min(scores)) or 1.0

    def cell(one: Trial | None) -> Given:
        if one is None:
            return ""
        text, score = points(one.score, 2), one.score or 0.0
        text = f"({text})" if one.pruned_at is not None else text
        return Cell(
            text, tone="best" * (one is sweep.best), heat=0.05 + 0.95 * (score - low) / wide
        )

    made = [[setting(row), *(cell(cells.get((row, column))) for column in columns)] for row in rows]
    caption = f"Score in percent over {sign(across)} and {sign(up)}"
    head, groups = (sign(up), *map(setting, columns)), (("", 1), (sign(across), len(columns)))
    return table(caption, head, made, groups=groups)


def study_sections(run: RunData) -> list[dict[str, Any]]:
    """For each table of a study: its title, the table, and the chart of differences, if any."""
    return [
        {"study": one, "table": _methods(one), "figure": differences(one, number)}
        for number, one in enumerate(run.study)
    ]


def _with_error(one: Mean, digits: int, signed: bool = False) -> tuple[str, str]:
    half = f"± {decimal(one.half_width, digits)}" if one.half_width is not None else ""
    return decimal(one.mean, digits, signed), half


def _methods(study: StudyTable) -> Table | None:
    """One row per method: means with their intervals, and the difference from the baseline last."""
    counted, rows = len(study.seeds) > 1, []
    for method, row in study.rows.items():
        means = [row.get(column) for column in study.columns]
        cells = [Cell(*_with_error(one, study.digits)) if one else None for one in means]
        away: Given = "baseline" if method == study.baseline else None
        if one := study.differences.get(method):
            text, half = _with_error(one, study.digits, True)
            note = f"{half} {AMONG_ALL * one.clear_among_all}".strip()
            away = Cell(text, note, "clear" * one.clear)
        n = next((one.n for one in row.values() if one.n is not None), None)
        rows.append([method, *[n] * counted, *cells, away])
    last = f"{study.of} − {study.baseline}"
    head = ("Method", *["seeds"] * counted, *study.columns, last)
    return table("Methods, and how far each is from the baseline", head, rows)


def differences(study: StudyTable, number: int) -> Figure | None:
    """The paired differences as dots with their intervals, the first method on top."""
    rows = []
    for method in study.rows:
        one = study.differences.get(method)
        if one is None or one.mean is None:
            continue
        kind = ("accent", "interval leaves 0 out") if one.clear else ("muted", "interval holds 0")
        kind = ("text", "one seed, no interval") if one.half_width is None else kind
        told, half = " ".join(_with_error(one, study.digits, True)).strip(), one.half_width or 0
        about = (*kind, f"{told} over {plural(one.n or 0, 'seed')}")
        marks = [Mark("interval", one.mean - half, one.mean + half, *about)]
        rows.append(Row(short(method), [*marks, Mark("dot", one.mean, one.mean, *about)], told))
    drawn = Rows(rows, f"{study.of} − {study.baseline}", "")
    known = [one for one in study.differences.values() if one is not None]
    facts = {"study": study, "single": all(one.half_width is None for one in known)}
    title = f"Differences from {short(study.baseline)}: {short(study.of)}"
    return Figure(f"study-{number}", title, [("", drawn)], facts=facts) if rows else None


def replay_figure(run: RunData) -> Figure | None:
    """Shares over steps per domain: one view per setting, the recorded shares faint behind."""
    found = run.replay
    if found is None or not found.steps or not found.settings:
        return None

    def lines(name: str) -> list[Series]:
        rows, made = found.shares[name], []
        for place, domain in enumerate(found.domains):
            points = [(float(found.steps[k]), rows[k][place]) for k in thin(rows)]
            group = run.index(domain) or 0
            made.append(Series(domain, points, f"d{group}", group=group, stepped=True))
        return made

    recorded = lines(RECORDED) if RECORDED in found.shares else []
    faint = [replace(one, look="faint") for one in recorded]
    reach = (found.steps[0], found.steps[-1])
    plot = partial(Plot, x="optimizer step", y="share", unit="%", zero=True, reach=reach)
    views = [(short(name), plot([*faint, *lines(name)])) for name in found.settings]
    rows = ([name, *(percent(one) for one in rows[-1])] for name, rows in found.shares.items())
    ends = table(f"Shares at step {count(found.steps[-1])}", ("Setting", *found.domains), rows)
    title, facts = "Shares under other settings", {"there": bool(recorded)}
    return Figure("replay", title, views, [ends], facts)
