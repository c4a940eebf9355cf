"""What sweeps, studies and replays leave in a run's folder; the schema goes on from
``artefacts``.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field, model_validator

from versatune_ray.runs.artefacts import Artefact, Number
from versatune_ray.runs.thresholds import LEVEL

RECORDED = "recorded"  # the replay's name for the shares of the run itself


def trial_name(method: str, seed: int | str) -> str:
    """Name of a run of a study and its folder."""
    return f"{re.sub('[^A-Za-z0-9.]+', '-', method).strip('-.') or 'method'}-{seed}"


class Trial(Artefact):
    """One row of a sweep; ``changes`` are its values of the searched keys, none where it failed."""

    trial: str
    changes: dict[str, Any] = Field(default_factory=dict)
    objectives: dict[str, Number] = Field(default_factory=dict)
    pruned_at: int | None = None
    error: str | None = None

    @property
    def score(self) -> float | None:
        return self.objectives.get("score")

    @property
    def finished(self) -> bool:
        """Whether it ran to its end and has a score."""
        return self.error is None and self.pruned_at is None and self.score is not None


class Sweep(Artefact):
    """The trials, the names of those that no other beats (``FRONT``), and whether the best one is
    there as a configuration of its own (``BEST``).
    """

    FILE: ClassVar[str] = "sweep/results.parquet"
    FRONT: ClassVar[str] = "sweep/pareto.json"
    BEST: ClassVar[str] = "sweep/best.yaml"
    keys: tuple[str, ...]
    objectives: tuple[str, ...]
    trials: tuple[Trial, ...]
    front: tuple[str, ...] = ()
    written: bool = False

    @cached_property
    def ranked(self) -> tuple[Trial, ...]:
        """All trials, best score first; those stopped early come later, and failed ones last."""

        def rank(one: Trial) -> tuple[bool, bool, bool, float]:
            stopped = one.pruned_at is not None
            return one.error is not None, stopped, one.score is None, -(one.score or 0.0)

        return tuple(sorted(self.trials, key=rank))

    @cached_property
    def best(self) -> Trial | None:
        """The finished trial with the highest score."""
        first = self.ranked[:1]
        return first[0] if first and first[0].finished else None


class Mean(Artefact):
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
        """Whether a difference is told from 0 by itself; without a p, by its interval."""
        if self.p is not None:
            return self.p < LEVEL
        return None not in (self.mean, self.half_width) and abs(self.mean or 0) > (
            self.half_width or 0
        )

    @property
    def clear_among_all(self) -> bool:
        """Whether it still is among all differences of its table."""
        return self.holm is not None and self.holm < LEVEL


class StudyTable(Artefact):
    """Method → column → mean, and the difference of ``of`` from the baseline, paired by seed."""

    FILE: ClassVar[str] = "study/tables.json"
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
        means = (one for row in self.rows.values() for one in row.values())
        return sorted({one.n for one in means if one.n is not None})


class Replay(Artefact):
    """Setting → adjustment → share per domain."""

    FILE: ClassVar[str] = "replay/trajectories.json"
    steps: list[int]
    domains: list[str]
    shares: dict[str, list[list[Number]]]

    @property
    def settings(self) -> list[str]:
        return [name for name in self.shares if name != RECORDED]

    @model_validator(mode="after")
    def _sizes(self) -> Replay:
        for name, rows in self.shares.items():
            if len(rows) != len(self.steps):
                raise ValueError(
                    f"shares.{name[:40]} has {len(rows)} rows for {len(self.steps)} steps"
                )
            odd = next((len(row) for row in rows if len(row) != len(self.domains)), None)
            if odd is not None:
                raise ValueError(
                    f"shares.{name[:40]} has {odd} shares in a row for {len(self.domains)} domains"
                )
        return self
