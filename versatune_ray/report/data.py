"""Read what a run left in its folder into one typed value; nothing here draws or judges.

Any file may be missing or half written: the page is most wanted when a run stopped early. What
cannot be read becomes one plain sentence in ``RunData.problems``, which the page prints in place of
the section.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import Field

from versatune_ray.errors import UserError, redacted
from versatune_ray.report.detections import Detection, read_detections, read_failed
from versatune_ray.report.reading import Number, Problems, Record, attempt, one_line, text_of
from versatune_ray.report.tuning import (
    Replay,
    StudyTable,
    Sweep,
    read_replay,
    read_study,
    read_sweep,
)
from versatune_ray.report.writing import clean
from versatune_ray.settings.location import shown

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


def read_run(folder: Path) -> RunData:
    """Read every file of a run folder that is there.

    Raises:
        UserError: the folder itself does not exist.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such run folder; name the folder that holds the run's config.yaml"
        )
    problems = Problems()
    config_text, config = _read_config(folder, problems)
    counts = _read(folder, "data.json", Counts, "data", "no records were read", problems)
    reference = _read(
        folder,
        "reference/losses.json",
        Reference,
        "reference",
        "no reference losses were measured",
        problems,
    )
    evaluation = _read(
        folder,
        "evaluation/results.json",
        Evaluation,
        "evaluation",
        "nothing was evaluated",
        problems,
    )
    timings = _read(folder, "timings.json", Timings, "timings", "no step was timed", problems)
    detections, failed = (
        read_detections(folder, problems),
        read_failed(folder, "detection", problems),
    )
    adjustments = _read_adjustments(folder, problems)
    replay = read_replay(folder, problems)
    name = config.get("run")
    return RunData(
        name=name if isinstance(name, str) and name else clean(folder.resolve().name),
        folder=clean(shown(folder)),
        config_text=config_text,
        config=config,
        counts=counts,
        detections=detections,
        failed=failed,
        unmeasured=read_failed(folder, "evaluation", problems),
        reference=reference,
        adjustments=adjustments,
        evaluation=evaluation,
        timings=timings,
        sweep=read_sweep(folder, problems),
        study=read_study(folder, problems),
        replay=replay,
        problems=problems.said,
        absent=frozenset(problems.absent),
        domains=_domain_order(
            config, counts, detections, adjustments, reference, evaluation, replay
        ),
    )


_Model = TypeVar("_Model", bound=Record)


def _read(
    folder: Path, name: str, model: type[_Model], part: str, meaning: str, problems: Problems
) -> _Model | None:
    file = folder / name
    if not file.is_file():
        problems.add(part, f"{name} is not in the run folder: {meaning}.", absent=True)
        return None
    return attempt(
        lambda: model.model_validate(clean(json.loads(text_of(file)))), name, part, problems
    )


def _read_config(folder: Path, problems: Problems) -> tuple[str, dict[str, Any]]:
    file = folder / "config.yaml"
    if not file.is_file():
        problems.add(
            "config",
            "config.yaml is not in the run folder, so the settings are unknown.",
            absent=True,
        )
        return "", {}
    try:
        text = clean(text_of(file))
        tree = redacted(clean(yaml.safe_load(text)))
    except (yaml.YAMLError, OSError, RecursionError) as error:
        problems.add("config", f"config.yaml could not be read: {one_line(error)}.")
        return "", {}
    if not isinstance(tree, dict):
        problems.add("config", "config.yaml holds no keys and values.")
        return text, {}
    return text, tree


def _read_adjustments(folder: Path, problems: Problems) -> tuple[Adjustment, ...]:
    name = "finetune/adjustments.jsonl"
    file = folder / name
    if not file.is_file():
        problems.add(
            "adjustments", f"{name} is not in the run folder: nothing was fine-tuned.", absent=True
        )
        return ()
    # one stage ends with the step that the next begins with
    by_place: dict[tuple[int, str | None], Adjustment] = {}
    unreadable = 0
    for line in text_of(file).split("\n"):
        if line.strip():
            try:
                adjustment = Adjustment.model_validate(clean(json.loads(line)))
            except (ValueError, RecursionError):
                unreadable += 1
            else:
                by_place[adjustment.step, adjustment.stage] = adjustment
    if unreadable:
        sentence = (
            f"{name}: {unreadable} line(s) could not be read and are left out (a line may have "
            f"been cut off while written)."
        )
        problems.add("adjustments", sentence)
    elif not by_place:
        problems.add("adjustments", f"{name} is empty: nothing has been measured yet.")
    return tuple(sorted(by_place.values(), key=lambda adjustment: adjustment.step))


def _domain_order(
    config: dict[str, Any],
    counts: Counts | None,
    detections: Iterable[Detection],
    adjustments: tuple[Adjustment, ...],
    reference: Reference | None,
    evaluation: Evaluation | None,
    replay: Replay | None,
) -> tuple[str, ...]:
    """Configured order first: a domain keeps its colour from chart to chart and from run to run."""
    names: list[str] = []
    configured = config.get("domains")
    if isinstance(configured, dict):
        names += [str(name) for name in configured]
    names += counts.domains if counts else []
    for detection in detections:
        names += detection.domains
    for adjustment in (*adjustments[:1], *adjustments[-1:]):
        names += [*adjustment.share, *adjustment.loss]
    names += reference.domains if reference else []
    names += [result.domain for result in evaluation.results] if evaluation else []
    names += replay.domains if replay else []
    return tuple(dict.fromkeys(names))
