"""What the files of a run's folder hold: one schema, shared by those who write and who read them.

A model's ``FILE`` is its place in the folder. Keys that a schema does not know are left alone, so
that an older reader takes a newer file; numbers that are not finite are ``None``, not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _measured(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_measured)]
PerDomain = dict[str, Number]
Interval = tuple[Number, Number]
OWN = ("held_out", "questions")  # what is measured on the run's own data and is no benchmark
FAILED = "failed.json"  # in detection/ and evaluation/: name → why it could not be done


class Artefact(BaseModel):
    """A JSON object of a run's file."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())
    FILE: ClassVar[str] = ""


class Counts(Artefact):
    """What became of the records, per domain; ``unit`` is the unit of all losses."""

    FILE: ClassVar[str] = "data.json"
    domains: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tokenizer: str | None = None
    unit: str = "nats/token"


class Discarded(Artefact):
    total: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)


class Generations(Artefact):
    """Counts of what the base model wrote; ``degenerate`` repeats few tokens, ``distinct`` are
    different texts.
    """

    empty: int | None = None
    degenerate: int | None = None
    degenerate_excluded: bool = False
    distinct: int | None = None


class Published(Artefact):
    model: str
    share: list[float]


class Tolerance(Artefact):
    """Half-width of the widest 95 % interval; ``cap``: the most sequences that could be made."""

    asked: Number = None
    reached: Number = None
    rounds: int | None = None
    cap: int | None = None


class JudgeQuality(Artefact):
    """The judge on records whose domain is known; ``confusion[i][j]`` is the mean probability of
    domain j on records of domain i.
    """

    records: list[int]
    confusion: list[list[Number]]
    recall: list[Number] | None = None
    accuracy: Number = None
    log_loss: Number = None
    chance: Number = None
    mass: Number = None

    @property
    def guesses(self) -> bool:
        """Whether it is known to be no better than chance."""
        return bool(self.log_loss and self.chance and self.log_loss >= self.chance)


class Corrected(Artefact):
    """The shares with the judge's measured confusions taken out, or why they could not be had."""

    share: list[float] | None = None
    ci95: list[Interval] | None = None
    total_variation: Number = None
    problem: str | None = None


class Positions(Artefact):
    """Mean probability that the option in each place of the list got."""

    share: list[float]
    standard_error: list[Number] | None = None


@dataclass(frozen=True)
class Estimate:
    """Shares [k] with their 95 % intervals; a bound that was not measured is ``None``."""

    share: Sequence[float]
    ci95: Sequence[Interval]

    def half_width(self, index: int) -> float | None:
        low, high = self.ci95[index]
        return None if low is None or high is None else (high - low) / 2


class Detection(Artefact):
    """The detected distribution of one model: ``detection/{model}/distribution.json``."""

    FILE: ClassVar[str] = "detection/**/distribution.json"
    name: str = ""
    model: str
    domains: list[str]
    share: list[float]
    ci95: list[Interval] | None = None
    repeats: list[list[Number] | None] | None = None
    repeats_differ: Number = None
    samples: int | None = None
    tokens: int | None = None
    texts: str | None = None
    discarded: Discarded | None = None
    generations: Generations | None = None
    judge: str | None = None
    judge_quality: JudgeQuality | None = None
    positions: Positions | None = None
    tolerance: Tolerance | None = None
    known: list[float] | None = None
    total_variation: Number = None
    published: Published | None = None
    corrected: Corrected | None = None
    used: str = "raw"

    @property
    def called(self) -> str:
        """How people call the model."""
        return self.name or self.model

    @property
    def raw(self) -> Estimate:
        """What the judge said."""
        return Estimate(self.share, self.ci95 or [(None, None)] * len(self.share))

    @property
    def amended(self) -> Estimate | None:
        """The corrected shares, where there are any."""
        found = self.corrected
        if found is None or found.share is None:
            return None
        return Estimate(found.share, found.ci95 or [(None, None)] * len(self.share))

    @property
    def start(self) -> Estimate:
        """The shares that training starts with."""
        return (self.amended or self.raw) if self.used == "corrected" else self.raw

    @model_validator(mode="after")
    def _sizes(self) -> Detection:
        quality, places, corrected = self.judge_quality, self.positions, self.corrected
        sizes: dict[str, Any] = {
            "share": self.share,
            "ci95": self.ci95,
            "known": self.known,
            "published.share": self.published and self.published.share,
            "corrected.share": corrected and corrected.share,
            "corrected.ci95": corrected and corrected.ci95,
            "positions.share": places and places.share,
            "positions.standard_error": places and places.standard_error,
            "judge_quality.records": quality and quality.records,
            "judge_quality.recall": quality and quality.recall,
            "judge_quality.confusion": quality and quality.confusion,
        }
        confusion = quality.confusion if quality else ()
        sizes |= {f"judge_quality.confusion.{place}": row for place, row in enumerate(confusion)}
        sizes |= {f"repeats.{place}": row for place, row in enumerate(self.repeats or ())}
        for key, values in sizes.items():
            if values is not None and len(values) != len(self.domains):
                raise ValueError(f"{key} has {len(values)} entries for {len(self.domains)} domains")
        return self


class CurvePoint(Artefact):
    epoch: float
    held_out: Number = None
    train: Number = None


class ReferenceDomain(Artefact):
    curve: list[CurvePoint] = Field(default_factory=list)
    loss: Number = None
    epoch: Number = None


class Reference(Artefact):
    """The lowest loss that a small model reached on each domain alone."""

    FILE: ClassVar[str] = "reference/losses.json"
    domains: dict[str, ReferenceDomain]
    model: str | None = None
    unit: str | None = None
    measure: str | None = None


class Guard(Artefact):
    open: bool
    forgetting: Number = None
    bound: Number = None


class Adjustment(Artefact):
    """One line of the log of a fine-tuning."""

    FILE: ClassVar[str] = "finetune/adjustments.jsonl"
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
    feedback: str | None = None
    seconds: dict[str, Number] | None = None
    warnings: list[str] = Field(default_factory=list)


class Exported(Artefact):
    """The step whose model a fine-tuning left, where ``training.keep_best`` chose it."""

    FILE: ClassVar[str] = "finetune/exported.json"
    step: int


class Result(Artefact):
    """One measured number of one model in one domain."""

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
        """A score between 0 and 1 on something else than the run's own records and questions."""
        return self.benchmark not in OWN and self.unit == "share"


class Answer(Artefact):
    domain: str
    question: str
    expected: str | None = None
    base: str | None = None
    tuned: str | None = None


class Evaluation(Artefact):
    FILE: ClassVar[str] = "evaluation/results.json"
    results: list[Result] = Field(default_factory=list)
    answers: list[Answer] = Field(default_factory=list)


class Step(Artefact):
    name: str
    seconds: Number = None
    cached: bool = False


class Timings(Artefact):
    """Wall-clock time per step; ``finished`` once the last one is done."""

    FILE: ClassVar[str] = "timings.json"
    steps: list[Step] = Field(default_factory=list)
    finished: str | None = None
