"""What knowledge detection left in the run's folder: one typed value per base model, and why other
models are missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from versatune_ray.report.generations import Generation, SetAside, read_generations
from versatune_ray.report.reading import Number, Problems, Record, attempt, text_of
from versatune_ray.report.writing import clean

Interval = tuple[Number, Number]


class Discarded(Record):
    total: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)


class Generations(Record):
    """Counts of what the base model wrote; ``degenerate`` repeats one token, ``distinct`` are
    different texts.
    """

    empty: int | None = None
    degenerate: int | None = None
    degenerate_excluded: bool = False
    distinct: int | None = None


class Published(Record):
    model: str
    share: list[float]


class Tolerance(Record):
    """Half-width of the widest 95 % interval; ``cap`` is the most sequences that could be
    generated.
    """

    asked: Number = None
    reached: Number = None
    rounds: int | None = None
    cap: int | None = None


class JudgeQuality(Record):
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


class Corrected(Record):
    """The shares with the judge's measured confusions taken out, or why they could not be had."""

    share: list[float] | None = None
    ci95: list[Interval] | None = None
    total_variation: Number = None
    problem: str | None = None


class Positions(Record):
    """Mean probability that the option in each place of the list got."""

    share: list[float]
    standard_error: list[Number] | None = None


@dataclass(frozen=True)
class Estimate:
    """Shares with their 95 % intervals; a bound that was not measured is ``None``."""

    share: Sequence[float]
    ci95: Sequence[Interval]

    def half_width(self, index: int) -> Number:
        low, high = self.ci95[index]
        return None if low is None or high is None else (high - low) / 2


class Detection(Record):
    """One ``distribution.json``, with the generations shown from the samples beside it."""

    name: str = ""
    model: str
    domains: list[str]
    share: list[float]
    ci95: list[Interval] | None = None
    repeats: list[list[Number]] | None = None
    repeats_differ: Number = None
    samples: int | None = None
    tokens: int | None = None
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
    settings: dict[str, Any] | None = None
    kept_examples: tuple[Generation, ...] = ()
    discarded_examples: tuple[SetAside, ...] = ()
    problem: str = ""

    @property
    def called(self) -> str:
        """How the page calls the model."""
        return self.name or self.model

    @property
    def raw(self) -> Estimate:
        """What the judge said."""
        return Estimate(self.share, self.ci95 or [(None, None)] * len(self.share))

    @property
    def amended(self) -> Estimate | None:
        """The corrected shares, where there are any."""
        if self.corrected is None or self.corrected.share is None:
            return None
        return Estimate(
            self.corrected.share, self.corrected.ci95 or [(None, None)] * len(self.share)
        )

    @property
    def start(self) -> Estimate:
        """The shares that training starts with."""
        return self.amended or self.raw if self.used == "corrected" else self.raw


def distance(p: Sequence[float], q: Sequence[float]) -> float:
    """Total variation: half the sum of absolute differences of two distributions."""
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def _read_distribution(file: Path) -> Detection:
    return _checked(clean(json.loads(text_of(file))))


def read_detections(folder: Path, problems: Problems) -> tuple[Detection, ...]:
    """Every detection in a run's folder, by the name of its own folder."""
    found = []
    for file in sorted((folder / "detection").glob("**/distribution.json")):
        name = clean(str(file.relative_to(folder)))
        read = partial(_read_distribution, file)
        detection = attempt(read, name, "detection", problems)
        if detection is not None:
            kept, discarded, problem = read_generations(
                sorted((file.parent / "samples").glob("*.parquet")), detection.domains
            )
            added = {
                "name": detection.name or clean(file.parent.name),
                "kept_examples": kept,
                "discarded_examples": discarded,
            }
            found.append(detection.model_copy(update=added | {"problem": problem}))
    if not found and "detection" not in problems.said:
        sentence = (
            "detection/*/distribution.json is not in the run folder: no knowledge detection was "
            "run."
        )
        problems.add("detection", sentence, absent=True)
    return tuple(found)


def read_failed(folder: Path, part: str, problems: Problems) -> dict[str, str]:
    """What could not be done of ``part``, such as models of ``detection``, and why."""
    file = folder / part / "failed.json"
    if not file.is_file():
        return {}
    return (
        attempt(lambda: _failed(json.loads(text_of(file))), f"{part}/failed.json", part, problems)
        or {}
    )


def _failed(tree: Any) -> dict[str, str]:
    if not isinstance(tree, dict):
        raise ValueError("it holds no names and reasons")
    return {str(name): str(reason) for name, reason in clean(tree).items()}


def _checked(tree: Any) -> Detection:
    detection = Detection.model_validate(tree)
    k = len(detection.domains)
    quality, positions, corrected, published = (
        detection.judge_quality,
        detection.positions,
        detection.corrected,
        detection.published,
    )
    sizes: dict[str, Sequence[Any] | None] = {
        "share": detection.share,
        "ci95": detection.ci95,
        "known": detection.known,
    }
    if published:
        sizes["published.share"] = published.share
    if corrected:
        sizes |= {"corrected.share": corrected.share, "corrected.ci95": corrected.ci95}
    if positions:
        sizes |= {
            "positions.share": positions.share,
            "positions.standard_error": positions.standard_error,
        }
    if quality:
        sizes |= {"judge_quality.records": quality.records, "judge_quality.recall": quality.recall}
        sizes["judge_quality.confusion"] = quality.confusion
        sizes |= {
            f"judge_quality.confusion.{index}": row for index, row in enumerate(quality.confusion)
        }
    for key, values in sizes.items():
        if values is not None and len(values) != k:
            raise ValueError(f"{key} has {len(values)} entries for {k} domains")
    return detection
