"""What ``distribution.json`` holds: the detected distribution of one model, and all that explains
it. Plain Python only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Vector = list[float]
Interval = list[float]  # [low, high] of 95 %


@dataclass(frozen=True)
class Discarded:
    """Sequences that do not count, and how many for each reason."""

    total: int
    reasons: dict[str, int]


@dataclass(frozen=True)
class Generations:
    """What is odd about the sequences: how many are empty, or repeat one token; how many differ."""

    empty: int
    degenerate: int
    degenerate_excluded: bool
    distinct: int


@dataclass(frozen=True)
class Tolerance:
    """Half of the widest interval, as asked for and as reached; after how many rounds, and the most
    sequences that there could have been.
    """

    asked: float | None
    reached: float
    rounds: int
    cap: int


@dataclass(frozen=True)
class MeasuredJudge:
    """The judge on texts whose domain is known: ``calibration.JudgeQuality``, the log loss of one
    that knows nothing (``chance``), and the mean probability of the options together (``mass``).
    """

    records: list[int]
    confusion: list[Vector]
    recall: Vector
    accuracy: float
    log_loss: float
    chance: float
    mass: float


@dataclass(frozen=True)
class Positions:
    """Mean probability by place in the list of options, [k], and its standard error: 1/k without a
    liking for a place.
    """

    share: Vector
    standard_error: Vector


@dataclass(frozen=True)
class Corrected:
    """The shares without the judge's confusions, [k], their intervals, and how far they are from
    the true ones where these are known.
    """

    share: Vector
    ci95: list[Interval]
    total_variation: float | None


@dataclass(frozen=True)
class Uncorrectable:
    """Why there are no corrected shares."""

    problem: str


@dataclass(frozen=True)
class Published:
    """The distribution that the paper's authors published for this model, [k]."""

    model: str
    share: Vector


@dataclass(frozen=True)
class Distribution:
    """What one model knows; its fields are the keys of ``distribution.json``, in their order.

    Attributes:
        share: [k] in the order of ``domains``, sums to 1; ``ci95`` the interval of each.
        repeats: [T], the shares by repeat, None for one without sequences; ``repeats_differ`` the
            p-value of the hypothesis that they do not.
        samples: sequences, of ``tokens`` in all; their ``texts`` lie in this folder of the storage.
        mass: mean probability that the judge gave to all options together.
        used: which shares a training starts from: ``raw`` or ``corrected``.
        known: the mixture that a base model made here was trained on, and ``total_variation`` the
            distance to it.
        settings: what decided over the sequences and the answers.
        work: sequences generated, judged and reused by this job.
    """

    name: str
    model: str
    domains: list[str]
    share: Vector
    ci95: list[Interval]
    repeats: list[Vector | None]
    repeats_differ: float
    samples: int
    tokens: int
    texts: str
    discarded: Discarded
    generations: Generations
    tolerance: Tolerance
    judge: str
    mass: float
    judge_quality: MeasuredJudge | None
    positions: Positions | None
    corrected: Corrected | Uncorrectable | None
    used: str
    known: Vector | None
    total_variation: float | None
    published: Published | None
    settings: dict[str, Any]
    work: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        """The content of ``distribution.json``."""
        return asdict(self)


def starting_share(distribution: Mapping[str, Any]) -> list[float]:
    """The shares that training starts with, of a ``distribution.json``: ``used`` decides."""
    chosen = distribution["corrected"] if distribution.get("used") == "corrected" else distribution
    return list(chosen["share"])
