"""What the jobs that compare fine-tunings left in the run's folder: a sweep's trials, a study's
tables, a replay's shares.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter

from versatune_ray.report.reading import Number, Problems, Record, attempt, text_of
from versatune_ray.report.writing import clean, short
from versatune_ray.settings.tuning import OBJECTIVES

COLUMNS = (*OBJECTIVES, "score")
LEVEL = 0.05
RECORDED = "recorded"  # the replay's name for the shares of the run itself
_Value = TypeVar("_Value")


class Trial(Record):
    """One row of ``sweep/results.parquet``; ``changes`` are its values of the searched keys, none
    where it failed.
    """

    trial: str
    changes: dict[str, Any] = Field(default_factory=dict)
    objectives: dict[str, Number] = Field(default_factory=dict)
    pruned_at: int | None = None
    error: str | None = None

    @property
    def score(self) -> Number:
        return self.objectives.get("score")

    @property
    def finished(self) -> bool:
        """Whether it ran to its end and has a score."""
        return self.error is None and self.pruned_at is None and self.score is not None


class Sweep(Record):
    """The trials as the file has them, the names of those that no other beats, and whether
    ``sweep/best.yaml`` is there.
    """

    keys: tuple[str, ...]
    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]
    front: tuple[str, ...] = ()
    written: bool = False

    @property
    def best(self) -> Trial | None:
        """The finished trial with the highest score."""
        return max(
            (trial for trial in self.trials if trial.finished),
            key=lambda trial: trial.score or 0.0,
            default=None,
        )

    @property
    def ranked(self) -> tuple[Trial, ...]:
        """All trials, best score first; those stopped early come later, and failed ones last."""
        return tuple(
            sorted(
                self.trials,
                key=lambda trial: (
                    trial.error is not None,
                    trial.pruned_at is not None,
                    trial.score is None,
                    -(trial.score or 0.0),
                ),
            )
        )


class Mean(Record):
    """A mean over seeds and half of its 95 % interval; of a difference also its p, by itself and
    among all of its table (Holm).
    """

    mean: Number = None
    half_width: Number = None
    n: int | None = None
    p: Number = None
    holm: Number = None

    @property
    def clear(self) -> bool:
        """Whether a difference is told from 0, by itself. Without a p, of an earlier version: the
        interval leaves 0 out.
        """
        if self.p is not None:
            return self.p < LEVEL
        return (
            self.mean is not None
            and self.half_width is not None
            and abs(self.mean) > self.half_width
        )

    @property
    def clear_among_all(self) -> bool:
        """Whether it still is among all differences of its table."""
        return self.holm is not None and self.holm < LEVEL


class StudyTable(Record):
    """One table of ``study/tables.json``: method → column → mean, and the difference of ``of`` from
    the baseline, paired by seed.
    """

    title: str
    columns: list[str]
    rows: dict[str, dict[str, Mean]]
    of: str
    baseline: str
    differences: dict[str, Mean | None] = Field(default_factory=dict)
    missing: list[str] = Field(default_factory=list)
    digits: int = Field(default=3, ge=0, le=9)

    @property
    def seeds(self) -> list[int]:
        """How many seeds the means are over: every number that occurs, rising."""
        return sorted(
            {one.n for row in self.rows.values() for one in row.values() if one.n is not None}
        )


class Replay(Record):
    """``replay/trajectories.json``: setting → adjustment → share per domain."""

    steps: list[int]
    domains: list[str]
    shares: dict[str, list[list[Number]]]

    @property
    def settings(self) -> list[str]:
        return [name for name in self.shares if name != RECORDED]


def read_sweep(folder: Path, problems: Problems) -> Sweep | None:
    """The trials of a sweep, if there was one."""
    name = "sweep/results.parquet"
    sweep = _read(folder / name, name, "sweep", problems, _sweep)
    if sweep is None:
        return None
    if not sweep.trials:
        problems.add("sweep", f"{name} holds no trials.")
    name = "sweep/pareto.json"
    if not (folder / name).is_file():
        problems.add(
            "sweep",
            f"{name} is not in the run folder, so the trials that no other beats are not marked.",
        )
    front = (
        _read(folder / name, name, "sweep", problems, lambda file: _json(file, list[_Named])) or []
    )
    found = {
        "front": tuple(point.trial for point in front),
        "written": (folder / "sweep" / "best.yaml").is_file(),
    }
    return sweep.model_copy(update=found)


def read_study(folder: Path, problems: Problems) -> tuple[StudyTable, ...]:
    """The tables of a study, if there was one."""
    name = "study/tables.json"
    return tuple(
        _read(folder / name, name, "study", problems, lambda file: _json(file, list[StudyTable]))
        or []
    )


def read_replay(folder: Path, problems: Problems) -> Replay | None:
    """What other settings would have answered to a run's losses, if that was asked."""
    name = "replay/trajectories.json"
    return _read(folder / name, name, "replay", problems, _replay)


class _Named(Record):
    trial: str


def _read(
    file: Path, name: str, part: str, problems: Problems, read: Callable[[Path], _Value]
) -> _Value | None:
    return attempt(lambda: read(file), name, part, problems) if file.is_file() else None


def _json(file: Path, kind: type[_Value]) -> _Value:
    return TypeAdapter(kind).validate_python(clean(json.loads(text_of(file))))


def _sweep(file: Path) -> Sweep:
    try:
        table = pq.ParquetFile(pa.BufferReader(file.read_bytes())).read()
        rows = [clean(row) for row in table.to_pylist()]
    except pa.ArrowException as error:
        raise ValueError(str(error).rstrip(".")) from error
    names = [clean(name) for name in table.column_names]
    keys = tuple(name for name in names if name not in ("trial", *COLUMNS, "pruned_at", "error"))
    objectives = tuple(name for name in COLUMNS if name in names)
    return Sweep(
        keys=keys,
        objectives=objectives,
        trials=tuple(_trial(row, keys, objectives) for row in rows),
    )


def _trial(row: Mapping[str, Any], keys: tuple[str, ...], objectives: tuple[str, ...]) -> Trial:
    parts = {
        "changes": {key: row[key] for key in keys if row[key] is not None},
        "objectives": {name: row[name] for name in objectives},
    }
    return Trial.model_validate(
        {name: row.get(name) for name in ("trial", "pruned_at", "error")} | parts
    )


def _replay(file: Path) -> Replay:
    replay = _json(file, Replay)
    for name, rows in replay.shares.items():
        if len(rows) != len(replay.steps):
            raise ValueError(
                f"shares.{short(name)} has {len(rows)} rows for {len(replay.steps)} steps"
            )
        odd = next((len(row) for row in rows if len(row) != len(replay.domains)), None)
        if odd is not None:
            raise ValueError(
                f"shares.{short(name)} has {odd} shares in a row for {len(replay.domains)} domains"
            )
    return replay


def number_of(trial: Trial, key: str) -> float | None:
    """What a trial has for a key, if that is a number."""
    value = trial.changes.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def values_of(sweep: Sweep, key: str) -> list[float]:
    """The different numbers that a key takes, rising; nothing for a key of other values."""
    found = [trial.changes[key] for trial in sweep.trials if key in trial.changes]
    numbers = {number for trial in sweep.trials if (number := number_of(trial, key)) is not None}
    return (
        sorted(numbers)
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
        else []
    )
