"""What compares fine-tunings: a sweep, a study, a replay."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from versatune_ray.report.charts import Figure, Plot, Point, Row, Rows, Series, series_key, thin
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
    setting,
    short,
    sign,
    signed_decimal,
    significant,
)
from versatune_ray.runs.comparisons import RECORDED, Mean, StudyTable, Sweep, Trial
from versatune_ray.settings.tuning import OBJECTIVES

MOST_TRIALS = 200  # rows of the table, and dots of a chart
MOST_VALUES = 12  # of a key, up to which a map has a place for each
_ERROR = 300  # characters
Kinds = Sequence[tuple[str, Sequence[Trial], str, str]]  # name, trials, colour, look
AMONG_ALL = "†"  # beside a difference that holds among all of its table


def sweep_section(run: RunData) -> dict[str, Any] | None:
    """Everything that the template shows of a sweep."""
    sweep = run.sweep
    if sweep is None or not sweep.trials:
        return None
    figures = [one for one in (trade_off(sweep), by_setting(sweep)) if one]
    file, far = f"{run.place}/{Sweep.BEST}", "://" in run.place
    return {
        "sweep": sweep,
        "table": _trials(sweep),
        "map": score_map(sweep),
        "figures": figures,
        "signs": listing([f"{SIGNS[key]} is {key}" for key in sweep.keys if key in SIGNS]),
        "weights": _weights(run),
        "edges": listing(_edges(run, sweep)),
        "file": file if sweep.written else "",
        "line": f"versatune finetune --config {'best.yaml' if far else shlex.quote(file)}",
    }


def _trials(sweep: Sweep) -> Table | None:
    """One row per trial, the best first and the failed ones last."""
    shown, rows = sweep.ranked[:MOST_TRIALS], []
    for one in shown:
        best = "better" if one is sweep.best else ""
        row: list[Given] = [Cell(one.trial, tone=best)]
        row += [setting(one.changes[key]) if key in one.changes else None for key in sweep.keys]
        for name in sweep.objectives:
            marked = best if name == "score" else ""
            row.append(Cell(percent(one.objectives.get(name), 2), tone=marked))
        rows.append([*row, Cell(_fate(sweep, one), tone="remark")])
    names = [name.replace("_", " ") for name in sweep.objectives]
    head = ("Trial", *(SIGNS.get(key, key) for key in sweep.keys), *names, "what became of it")
    caption = "Trials, best score first"
    if len(shown) < len(sweep.trials):
        part = f"{count(len(shown))} of {count(len(sweep.trials))}"
        caption += f" ({part}; all are in {Sweep.FILE})"
    return table(caption, head, rows)


def _fate(sweep: Sweep, one: Trial) -> str:
    if one.error is not None:
        return cut(f"failed: {' '.join(one.error.split())}", _ERROR)
    told = ["best"] * (one is sweep.best) + ["beaten by none"] * (one.trial in sweep.front)
    if one.pruned_at is not None:
        told.append(f"stopped early at step {count(one.pruned_at)}")
    return ", ".join(told)


def _weights(run: RunData) -> str:
    given = run.setting("sweep.objective")
    known = given.items() if isinstance(given, dict) else ()
    said = ""
    for name, value in known:
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
    found = [(one.changes[key], _number(one, key)) for one in sweep.trials if key in one.changes]
    numbers = {number for _, number in found if number is not None}
    return sorted(numbers) if all(number is not None for _, number in found) else []


def _edges(run: RunData, sweep: Sweep) -> list[str]:
    """Where the best trial sits at the end of a list of values."""
    best, space = sweep.best, run.setting("sweep.space")
    found = []
    for key in sweep.keys if best else ():
        if isinstance(space, dict) and isinstance(space.get(key), dict):
            continue  # a range, whose ends were hardly drawn
        values, number = _values(sweep, key), _number(best, key) if best else None
        if number is not None and len(values) > 2 and number in (values[0], values[-1]):
            end = "smallest" if number == values[0] else "largest"
            found.append(f"{sign(key)} = {setting(number)} is the {end} tried")
    return found


def _tip(sweep: Sweep, one: Trial) -> str:
    names = [f"{n.replace('_', ' ')} {percent(one.objectives.get(n), 2)}" for n in sweep.objectives]
    stopped = [f"stopped early at step {count(one.pruned_at)}"] if one.pruned_at is not None else []
    return " · ".join([short(changes_text(one), 120), *names, *stopped])


def trade_off(sweep: Sweep) -> Figure | None:
    """Gain of the targets over forgetting of the others, with the front."""
    aims = ("forgetting", "target_gain")
    points = [one for one in sweep.ranked if None not in [one.objectives.get(aim) for aim in aims]]
    if not points or not set(aims) <= set(sweep.objectives):
        return None
    front = [one for one in points if one.trial in sweep.front]
    front.sort(key=lambda one: one.objectives["forgetting"] or 0.0)
    heights = [one.objectives["target_gain"] or 0.0 for one in front]
    # with a third objective the trials that none beats need not lie on one line
    joined = heights == sorted(heights)
    best = [one for one in points if one is sweep.best]
    stopped = [one for one in points if one.pruned_at is not None]
    rest = [one for one in points if one not in front and one not in stopped and one not in best]
    kinds = (
        ("stopped early", stopped, "muted", "open"),
        ("other trials", rest, "muted", "dots"),
        ("beaten by none", front, "accent", "dots"),
        ("best score", best, "better", "square"),
    )
    at = {one.trial: (one.objectives[aims[0]] or 0.0, one.objectives[aims[1]]) for one in points}
    line = [at[one.trial] for one in front]
    series = [Series("beaten by none", line, "accent", "line", 2, stepped=True)] * bool(
        joined and line
    )
    series += _dots(sweep, kinds, at)
    plot = Plot(series, "forgetting (lower is better)", "gain of the targets", "%", "%")
    facts = {"front": front, "joined": joined, "best": best, "stopped": stopped}
    views = [("", plot)]
    return Figure("trade-off", "Gain against forgetting", views, (), _key(kinds), facts)


def _dots(sweep: Sweep, kinds: Kinds, at: Mapping[str, Point]) -> list[Series]:
    """A dot for each trial, at its place, a series for each kind."""
    made = []
    for group, (name, trials, tone, look) in enumerate(kinds):
        there = [one for one in trials if one.trial in at]
        points, tips = [at[one.trial] for one in there], [_tip(sweep, one) for one in there]
        made += [Series(name, points, tone, look, group, tips)] if points else []
    return made


def _key(kinds: Kinds) -> list[tuple[str, str, str, str]]:
    signs = {"open": "dot pale", "dots": "dot", "square": "bar"}
    return [
        (tone, signs[look], name, str(group))
        for group, (name, trials, tone, look) in enumerate(kinds)
        if trials
    ]


def by_setting(sweep: Sweep) -> Figure | None:
    """The score over each setting, a view for each."""
    drawn = [one for one in sweep.ranked if one.score is not None][:MOST_TRIALS]
    kinds = (
        ("stopped early", [one for one in drawn if not one.finished], "muted", "open"),
        ("finished", [one for one in drawn if one.finished], "accent", "dots"),
        ("best score", [one for one in drawn if one is sweep.best], "better", "square"),
    )
    views: list[tuple[str, Plot | Rows]] = []
    for key in sweep.keys:
        numbers = {one.trial: _number(one, key) for one in drawn}
        at = {
            one.trial: (number, one.score)
            for one in drawn
            if (number := numbers[one.trial]) is not None
        }
        if len({number for number, _ in at.values()}) > 1:
            views.append((sign(key), Plot(_dots(sweep, kinds, at), key, "score", "%")))
    if not views or len(drawn) < 2:
        return None
    return Figure("by-setting", "Score over each setting", views, (), _key(kinds))


def score_map(sweep: Sweep) -> Table | None:
    """The score over two keys, where exactly two numeric ones are searched and their combinations
    fill half of a map or more.
    """
    keys = [key for key in sweep.keys if len(_values(sweep, key)) > 1]
    if len(keys) != 2:
        return None
    across, up = sorted(keys, key=lambda key: len(_values(sweep, key)))
    columns, rows = _values(sweep, across), _values(sweep, up)
    cells: dict[tuple[Any, Any], Trial] = {}
    for one in sweep.ranked:
        place = one.changes.get(up), one.changes.get(across)
        if one.score is not None and None not in place:
            cells.setdefault(place, one)
    if max(len(columns), len(rows)) > MOST_VALUES or 2 * len(cells) < len(columns) * len(rows):
        return None
    scores = [one.score or 0.0 for one in cells.values()]
    low, wide = min(scores), (max(scores) - min(scores)) or 1.0

    def cell(one: Trial | None) -> Given:
        if one is None:
            return ""
        text = decimal(100 * (one.score or 0.0), 2)
        shown = f"({text})" if one.pruned_at is not None else text
        heat = 0.05 + 0.95 * ((one.score or 0.0) - low) / wide
        return Cell(shown, tone="best" if one is sweep.best else "", heat=heat)

    made = [[setting(row), *(cell(cells.get((row, column))) for column in columns)] for row in rows]
    caption = f"Score in percent over {sign(across)} and {sign(up)}"
    head = (sign(up), *(setting(column) for column in columns))
    return table(caption, head, made, groups=(("", 1), (sign(across), len(columns))))


def study_sections(run: RunData) -> list[dict[str, Any]]:
    """For each table of a study: its title, the table, and the chart of differences, if any."""
    return [
        {"study": one, "table": _methods(one), "figure": differences(one, number)}
        for number, one in enumerate(run.study)
    ]


def _methods(study: StudyTable) -> Table | None:
    """One row per method: means with their intervals, and the difference from the baseline last."""
    counted, rows = len(study.seeds) > 1, []
    for method, row in study.rows.items():
        n = next((one.n for one in row.values() if one.n is not None), None)
        cells = [_mean(row.get(column), study.digits) for column in study.columns]
        rows.append([Cell(method), *[count(n)] * counted, *cells, _difference(study, method)])
    last = f"{study.of} − {study.baseline}"
    head = ("Method", *["seeds"] * counted, *study.columns, last)
    return table("Methods, and how far each is from the baseline", head, rows)


def _mean(one: Mean | None, digits: int) -> Cell | None:
    if one is None:
        return None
    half = f"± {decimal(one.half_width, digits)}" if one.half_width is not None else ""
    return Cell(decimal(one.mean, digits), half)


def _difference(study: StudyTable, method: str) -> Given:
    one = study.differences.get(method)
    if one is None:
        return "baseline" if method == study.baseline else None
    half = f"± {decimal(one.half_width, study.digits)}" if one.half_width is not None else ""
    note = f"{half} {AMONG_ALL * one.clear_among_all}".strip()
    return Cell(signed_decimal(one.mean, study.digits), note, "clear" if one.clear else "")


def differences(study: StudyTable, number: int) -> Figure | None:
    """The paired differences as dots with their intervals, the first method on top."""
    rows, seen = [], set()
    for method in study.rows:
        one = study.differences.get(method)
        if one is None or one.mean is None:
            continue
        half = one.half_width
        kind = ("text", 2) if half is None else ("accent", 0) if one.clear else ("muted", 1)
        seen.add(kind)
        told = signed_decimal(one.mean, study.digits)
        told += f" ± {decimal(half, study.digits)}" if half is not None else ""
        tip = f"{told} over {plural(one.n or 0, 'seed')}"
        marks = [("interval", one.mean - (half or 0), one.mean + (half or 0), kind[0], tip, 0)]
        marks.append(("dot", one.mean, one.mean, kind[0], tip, 0))
        rows.append(Row(short(method), marks, told))
    if not rows:
        return None
    texts = ("interval leaves 0 out", "interval holds 0", "one seed, no interval")
    key = [(tone, "dot", texts[place], "") for tone, place in sorted(seen, key=lambda one: one[1])]
    facts = {"study": study, "single": seen == {("text", 2)}}
    title = f"Differences from {short(study.baseline)}: {short(study.of)}"
    plot = Rows(rows, f"{study.of} − {study.baseline}", "")
    return Figure(f"study-{number}", title, [("", plot)], (), key, facts)


def replay_figure(run: RunData) -> Figure | None:
    """Shares over steps per domain: one view per setting, the recorded shares faint behind."""
    found = run.replay
    if found is None or not found.steps:
        return None
    there = RECORDED in found.shares
    kept = {name: thin(rows) for name, rows in found.shares.items()}

    def lines(name: str, look: str) -> list[Series]:
        made = []
        for place, domain in enumerate(found.domains):
            at = [(float(found.steps[k]), found.shares[name][k][place]) for k in kept[name]]
            group = run.index(domain) or 0
            made.append(Series(domain, at, f"d{group}", look, group, stepped=True))
        return made

    behind = lines(RECORDED, "faint") if there else []
    reach = [found.steps[0], found.steps[-1]]
    views: list[tuple[str, Plot | Rows]] = [
        (
            short(name),
            Plot(
                [*behind, *lines(name, "steps")],
                "optimizer step",
                "share",
                "%",
                zero=True,
                reach=reach,
            ),
        )
        for name in found.settings
    ]
    if not views:
        return None
    rows = [[name, *(percent(one) for one in rows[-1])] for name, rows in found.shares.items()]
    ends = table(f"Shares at step {count(found.steps[-1])}", ("Setting", *found.domains), rows)
    key, quiet = series_key(views[0][1])  # type: ignore[arg-type]
    facts = {"there": there, "shown": len(key) - len(quiet)}
    return Figure("replay", "Shares under other settings", views, [ends], key, facts, quiet)
