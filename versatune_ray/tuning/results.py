"""What a sweep leaves: a table of its trials, those that no other beats, and the best as a
configuration.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from versatune_ray.errors import Incomplete, UserError
from versatune_ray.pipeline import Run
from versatune_ray.runs.comparisons import Sweep
from versatune_ray.runs.folder import check_unchanged, say
from versatune_ray.runs.storage import push
from versatune_ray.settings.loading import dump
from versatune_ray.settings.tuning import OBJECTIVES
from versatune_ray.tuning.objectives import pareto_front
from versatune_ray.tuning.plan import Plan
from versatune_ray.tuning.trial import Failure
from versatune_ray.tuning.trials import first_failures


def outcomes(shared: Plan, keys: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Finished and pruned trials that change these keys: earlier ones, which came with the run's
    folder, and this time's, whose outcomes were asked for as they ended. Those are left out, and
    told, that differ from today's by more than what they change.
    """
    others: list[str] = []
    for file in sorted(shared.trials.glob("*/outcome.json")):
        name, changes = file.parent.name, json.loads(file.read_text(encoding="utf-8"))["changes"]
        if changes.keys() != set(keys):
            continue
        try:
            check_unchanged(shared.config(name, changes))
        except UserError:
            others.append(name)
            continue
        if outcome := shared.outcome(name):
            yield name, outcome
    if others:
        more = ", …" if len(others) > 3 else ""
        say(
            "sweep",
            f"{len(others)} earlier trial(s) had other settings, left out: "
            f"{', '.join(others[:3])}{more}",
        )


def _rank(trial: tuple[str, Mapping[str, Any]]) -> tuple[bool, bool, float]:
    """Finished trials by score, the best first; then those without a finite one, then those stopped
    early, whose scores are of another time.
    """
    score = trial[1]["objectives"].get("score", np.nan)
    lost = not np.isfinite(score)
    return trial[1]["pruned_at"] is not None, lost, 0.0 if lost else -score


def write_results(
    run: Run,
    shared: Plan,
    keys: Sequence[str],
    failed: Mapping[str, Failure],
    more: Mapping[str, Any] | None = None,
) -> None:
    """``sweep/results.parquet``, ``pareto.json`` and ``best.yaml`` of all trials that changed
    ``keys``, the best first, those stopped early and failed ones last; ``more``: keys for the best
    one.
    """
    settings = run.given_config.sweep
    found = sorted(outcomes(shared, keys), key=_rank)
    if not found:
        raise Incomplete(f"no trial is done; failed: {first_failures(failed)}")
    rows = [
        {
            "trial": name,
            **one["changes"],
            **one["objectives"],
            "pruned_at": one["pruned_at"],
            "error": None,
        }
        for name, one in found
    ] + [{"trial": name, **one.changes, "error": one.reason} for name, one in failed.items()]
    folder = run.folder.path / "sweep"
    folder.mkdir(exist_ok=True)
    columns = [
        "trial",
        *keys,
        *(
            name
            for name in (*OBJECTIVES, "score")
            if any(name in one["objectives"] for _, one in found)
        ),
        "pruned_at",
        "error",
    ]
    pq.write_table(
        pa.table({column: _column([row.get(column) for row in rows]) for column in columns}),
        folder / "results.parquet",
    )
    push(folder / "results.parquet")
    finished = [(name, one) for name, one in found if one["pruned_at"] is None]
    aims = [name for name, weight in settings.objective.items() if weight]
    signed = [
        [np.sign(settings.objective[aim]) * one["objectives"][aim] for aim in aims]
        for _, one in finished
    ]
    front = [
        {"trial": finished[i][0], **finished[i][1]["changes"], **finished[i][1]["objectives"]}
        for i in pareto_front(signed)
    ]
    run.folder.write(Sweep.FRONT, front)
    if not finished or not np.isfinite(finished[0][1]["objectives"]["score"]):
        return
    best = finished[0][1]
    config = shared.config("check", {**best["changes"], **(more or {})}).model_copy(
        update={"run": f"{run.given_config.run}-best"}
    )
    file = folder / "best.yaml"
    file.write_text(
        f"# the best of {len(finished)} trials of {run.given_config.run!r}: "
        f"python jobs/finetune.py --config THIS\n" + dump(config),
        encoding="utf-8",
    )
    push(file)
    changes = ", ".join(f"{key}={value}" for key, value in best["changes"].items())
    say(
        "sweep",
        f"best: {changes} (score {best['objectives']['score']:.4f}); {len(front)} of "
        f"{len(finished)} trials are beaten by none: {file}",
    )


def _column(values: Sequence[Any]) -> pa.Array:
    """Values of one type: a fraction such as 1/16 becomes a number beside numbers, and what else
    does not fit together becomes text.
    """
    try:
        return pa.array(values)
    except pa.ArrowException:
        try:
            return pa.array([None if value is None else float(Fraction(value)) for value in values])
        except (TypeError, ValueError, ZeroDivisionError):
            return pa.array([None if value is None else str(value) for value in values])
