"""A run as the page sees it: what its files hold, as one typed value; nothing here draws or
judges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from versatune_ray.report.detections import Detection
from versatune_ray.report.reading import Number, Record
from versatune_ray.report.tuning import (
    Replay,
    StudyTable,
    Sweep,
)

PerDomain = dict[str, Number]
OWN = ("held_out", "questions")  # what is measured on the run's own data and is no benchmark
_COMPARING = frozenset({"sweep", "study", "replay"})


class Counts(Record):
    """``data.json``."""

    domains: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tokenizer: str | None = None
    unit: str = "nats/token"


class CurvePoint(Record):
    epoch: float
    held_out: Number = None
    train: Number = None


class ReferenceDomain(Record):
    curve: list[CurvePoint] = Field(default_factory=list)
    loss: Number = None
    epoch: Number = None


class Reference(Record):
    """``reference/losses.json``."""

    domains: dict[str, ReferenceDomain]
    model: str | None = None
    unit: str | None = None
    measure: str | None = None


class Guard(Record):
    open: bool
    forgetting: Number = None
    bound: Number = None


class Adjustment(Record):
    """One line of ``finetune/adjustments.jsonl``."""

    step: int
    stage: str | None = None
    epoch: Number = None
    loss: PerDomain = Field(default_factory=dict)
    learnable_potential: PerDomain | None = None
    forgetting_degree: PerDomain | None = None
    share: PerDomain = Field(default_factory=dict)
    share_achieved: PerDomain | None = None
    token_share_achieved: PerDomain | None = None
    passes: PerDomain | None = None
    train_loss: PerDomain | None = None
    guard: Guard | None = None
    seconds: dict[str, Number] | None = None
    warnings: list[str] = Field(default_factory=list)


class Result(Record):
    model: str
    domain: str
    benchmark: str
    metric: str
    unit: str | None = None
    value: Number = None
    standard_error: Number = None
    n: int | None = None

    @property
    def is_benchmark(self) -> bool:
        """A score between 0 and 1 on something else than the run's own held-out records and
        questions.
        """
        return self.benchmark not in OWN and self.unit == "share"


class Answer(Record):
    domain: str
    question: str
    expected: str | None = None
    base: str | None = None
    tuned: str | None = None


class Evaluation(Record):
    """``evaluation/results.json``."""

    results: list[Result] = Field(default_factory=list)
    answers: list[Answer] = Field(default_factory=list)


class Step(Record):
    name: str
    seconds: Number = None
    cached: bool = False


class Timings(Record):
    """``timings.json``."""

    steps: list[Step] = Field(default_factory=list)
    finished: str | None = None


@dataclass(frozen=True)
class RunData:
    """Everything the page needs. ``problems`` maps a part (``detection``, ``evaluation``, …) to why
    it is not (all) shown; ``absent`` are the parts of which no file is there. ``failed`` maps
    models that could not be detected to why, ``unmeasured`` "model: benchmark" that could not be
    measured.
    """

    name: str
    folder: str
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    counts: Counts | None = None
    detections: tuple[Detection, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)
    unmeasured: dict[str, str] = field(default_factory=dict)
    reference: Reference | None = None
    adjustments: tuple[Adjustment, ...] = ()
    evaluation: Evaluation | None = None
    timings: Timings | None = None
    sweep: Sweep | None = None
    study: tuple[StudyTable, ...] = ()
    replay: Replay | None = None
    problems: dict[str, str] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    domains: tuple[str, ...] = ()

    def setting(self, key: str) -> Any:
        """The value of a dotted configuration key, or ``None`` where the configuration has none."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def finished(self) -> bool:
        return self.timings is not None and bool(self.timings.finished)

    @property
    def detects_only(self) -> bool:
        """Whether the run is finished and all that it did is knowledge detection."""
        return (
            self.finished
            and bool(self.detections)
            and {"adjustments", "evaluation"} <= self.absent
            and not self.compares
        )

    @property
    def compares(self) -> bool:
        """Whether all that the run does is to compare fine-tunings or settings: a sweep, a study or
        a replay in a folder of its own.
        """
        there = self.sweep or self.study or self.replay or _COMPARING & self.problems.keys()
        return bool(there) and {"adjustments", "evaluation"} <= self.absent

    @property
    def benchmarks(self) -> list[Result]:
        return (
            [one for one in self.evaluation.results if one.is_benchmark] if self.evaluation else []
        )

    @property
    def measures_only(self) -> bool:
        """Whether the run is finished and all that it did is to measure models on benchmarks."""
        return (
            self.finished and bool(self.benchmarks) and {"adjustments", "detection"} <= self.absent
        )

    @property
    def missing(self) -> dict[str, str]:
        """``problems`` without what a run that only compares or measures never makes."""
        partial = self.compares or self.measures_only
        return {
            part: told
            for part, told in self.problems.items()
            if part == "config" or part not in self.absent or not partial
        }

    @property
    def unit(self) -> str:
        return (
            self.counts.unit
            if self.counts
            else (self.reference.unit if self.reference and self.reference.unit else "nats/token")
        )
