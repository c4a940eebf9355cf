"""A sweep on the page: its trials as a table, what is to be seen in it, and what to do with the
best.
"""

from __future__ import annotations

import shlex
from typing import Any

from versatune_ray.report.data import RunData
from versatune_ray.report.sweep_charts import (
    MOST_TRIALS,
    SIGNS,
    parallel,
    score_map,
    sign,
    trade_off,
)
from versatune_ray.report.tables import Cell, Table
from versatune_ray.report.tuning import Sweep, Trial, number_of, values_of
from versatune_ray.report.writing import count, cut, listing, percent, setting, significant
from versatune_ray.settings.tuning import OBJECTIVES

_ERROR = 300  # characters


def sweep_section(run: RunData) -> dict[str, Any] | None:
    """Everything that the template shows of a sweep."""
    sweep = run.sweep
    if sweep is None or not sweep.trials:
        return None
    made = (trade_off(sweep), score_map(sweep), parallel(sweep))
    return {
        "table": trials(sweep),
        "sentence": _sentence(run, sweep),
        "command": _command(run, sweep),
        "edges": _edges(run, sweep),
        "figures": [figure for figure in made if figure is not None],
    }


def trials(sweep: Sweep) -> Table:
    """One row per trial, the best first and the failed ones last."""
    best = sweep.best
    head = (
        "Trial",
        *(SIGNS.get(key, key) for key in sweep.keys),
        *(name.replace("_", " ") for name in sweep.objectives),
        "what became of it",
    )
    shown = sweep.ranked[:MOST_TRIALS]
    rows = []
    for trial in shown:
        tone = "better" if trial is best else ""
        values = [
            Cell(setting(trial.changes[key]) if key in trial.changes else "–") for key in sweep.keys
        ]
        values += [
            Cell(percent(trial.objectives.get(name), 2), tone=tone if name == "score" else "")
            for name in sweep.objectives
        ]
        rows.append(
            (Cell(trial.trial, tone=tone), *values, Cell(_fate(sweep, trial, best), tone="remark"))
        )
    caption = "Trials, best score first"
    if len(shown) < len(sweep.trials):
        caption += (
            f" ({count(len(shown))} of {count(len(sweep.trials))}; all are in "
            f"sweep/results.parquet)"
        )
    return Table(caption, head, tuple(rows))


def _sentence(run: RunData, sweep: Sweep) -> str:
    said = (
        "Each row is one trial: a fine-tuning of its own with these settings, in trials/ under its "
        "name."
    )
    signs = [f"{SIGNS[key]} is {key}" for key in sweep.keys if key in SIGNS]
    said += f" {listing(signs)}." if signs else ""
    meanings = {
        "target_gain": "Target gain is the mean relative decrease of "
        "the held-out loss in the target domains.",
        "forgetting": "Forgetting is the mean relative increase in all other domains: "
        "lower is better, below 0 they learned as well.",
        "gain": "Gain is the mean relative decrease over all domains.",
        "accuracy": "Accuracy is the mean share of right answers after training, over the domains "
        "that have questions or benchmarks; "
        "target and other accuracy are its means over the targets and over the others.",
        "score": f"The score is {_weights(run)}; the higher, the better.",
    }
    said += "".join(f" {meaning}" for name, meaning in meanings.items() if name in sweep.objectives)
    if sweep.front:
        said += (
            " “Beaten by none” are the trials to which no other is at least equal in everything "
            "and better in something."
        )
    return said


def _weights(run: RunData) -> str:
    given = run.setting("sweep.objective")
    weights = given if isinstance(given, dict) else {}
    known = {name: value for name, value in weights.items() if name in OBJECTIVES}
    terms = [
        (
            value < 0,
            f"{'' if abs(value) == 1 else f'{significant(abs(value))} × '}{name.replace('_', ' ')}",
        )
        for name, value in known.items()
        if isinstance(value, int | float) and value
    ]
    if not terms:
        return "their weighted sum"
    return (
        ("minus " if terms[0][0] else "")
        + terms[0][1]
        + "".join(f" {'−' if less else '+'} {text}" for less, text in terms[1:])
    )


def _command(run: RunData, sweep: Sweep) -> dict[str, str] | None:
    """Where the best configuration is, what to do with it, and the command for that."""
    if not sweep.written:
        return None
    file, far = f"{run.folder}/sweep/best.yaml", "://" in run.folder
    advice = (
        "Copy it to where the jobs are started, and fine-tune with it:"
        if far
        else "Fine-tune with it:"
    )
    return {
        "file": file,
        "advice": advice,
        "line": f"python jobs/finetune.py --config {'best.yaml' if far else shlex.quote(file)}",
    }


def _edges(run: RunData, sweep: Sweep) -> str:
    """A sentence where the best trial sits at the end of a list of values."""
    best, space = sweep.best, run.setting("sweep.space")
    found = []
    for key in sweep.keys if best else ():
        if isinstance(space, dict) and isinstance(space.get(key), dict):
            continue  # a range, whose ends were hardly drawn
        values = values_of(sweep, key)
        number = number_of(best, key) if best else None
        if number is not None and len(values) > 2 and number in (values[0], values[-1]):
            found.append(
                f"{sign(key)} = {setting(number)} is the "
                f"{'smallest' if number == values[0] else 'largest'} tried"
            )
    return (
        f"The best trial is at an edge: {listing(found)}. Values beyond may be better still."
        if found
        else ""
    )


def _fate(sweep: Sweep, trial: Trial, best: Trial | None) -> str:
    if trial.error is not None:
        return cut(f"failed: {' '.join(trial.error.split())}", _ERROR)
    told = ["best"] if trial is best else []
    told += ["beaten by none"] if trial.trial in sweep.front else []
    told += (
        [f"stopped early at step {count(trial.pruned_at)}"] if trial.pruned_at is not None else []
    )
    return ", ".join(told)
