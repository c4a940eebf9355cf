"""Read what a run left in its folder into one typed value; nothing here draws or judges.

Any file may be missing or half written: the page is most wanted when a run stopped early. What cannot be read becomes one
plain sentence in ``RunData.problems``, which the page prints in place of the section.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from versatune_ray.errors import UserError
from versatune_ray.report.generations import Generation, read_generations
from versatune_ray.report.writing import clean

Number = float | None  # null, NaN and infinity are all "not measured"
PerDomain = dict[str, Number]


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class Counts(_Record):
    """``data.json``."""

    domains: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tokenizer: str | None = None
    unit: str = "nats/token"


class Discarded(_Record):
    total: int = 0
    reasons: dict[str, int] = Field(default_factory=dict)


class Detection(_Record):
    """One ``distribution.json``, with the generations shown from the samples beside it."""

    model: str
    domains: list[str]
    share: list[float]
    ci95: list[tuple[Number, Number]] | None = None
    repeats: list[list[Number]] | None = None
    samples: int | None = None
    discarded: Discarded | None = None
    judge: str | None = None
    known: list[Number] | None = None
    total_variation: Number = None
    settings: dict[str, Any] | None = None
    generations: tuple[Generation, ...] = ()
    problem: str = ""


class CurvePoint(_Record):
    epoch: float
    held_out: Number = None
    train: Number = None


class ReferenceDomain(_Record):
    curve: list[CurvePoint] = Field(default_factory=list)
    loss: Number = None
    epoch: Number = None


class Reference(_Record):
    """``reference/losses.json``."""

    domains: dict[str, ReferenceDomain]
    model: str | None = None
    unit: str | None = None
    measure: str | None = None


class Guard(_Record):
    open: bool
    forgetting: Number = None
    bound: Number = None


class Adjustment(_Record):
    """One line of ``finetune/adjustments.jsonl``."""

    step: int
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


class Result(_Record):
    model: str
    domain: str
    benchmark: str
    metric: str
    unit: str | None = None
    value: Number = None
    standard_error: Number = None
    n: int | None = None


class Answer(_Record):
    domain: str
    question: str
    expected: str | None = None
    base: str | None = None
    tuned: str | None = None


class Evaluation(_Record):
    """``evaluation/results.json``."""

    results: list[Result] = Field(default_factory=list)
    answers: list[Answer] = Field(default_factory=list)


class Step(_Record):
    name: str
    seconds: Number = None
    cached: bool = False


class Timings(_Record):
    """``timings.json``."""

    steps: list[Step] = Field(default_factory=list)
    finished: str | None = None


@dataclass(frozen=True)
class RunData:
    """Everything the page needs. ``problems`` maps a part (``detection``, ``evaluation``, …) to why it is not shown."""

    name: str
    folder: str
    config_text: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    counts: Counts | None = None
    detections: tuple[Detection, ...] = ()
    reference: Reference | None = None
    adjustments: tuple[Adjustment, ...] = ()
    evaluation: Evaluation | None = None
    timings: Timings | None = None
    problems: dict[str, str] = field(default_factory=dict)
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
    def unit(self) -> str:
        return self.counts.unit if self.counts else (self.reference.unit if self.reference and self.reference.unit else "nats/token")


def read_run(folder: Path) -> RunData:
    """Read every file of a run folder that is there.

    Raises:
        UserError: the folder itself does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; name the folder that holds the run's config.yaml")
    problems: dict[str, str] = {}
    config_text, config = _read_config(folder, problems)
    counts = _read(folder, "data.json", Counts, "data", "the records have not been read yet", problems)
    reference = _read(folder, "reference/losses.json", Reference, "reference", "no reference losses were measured (yet)", problems)
    evaluation = _read(folder, "evaluation/results.json", Evaluation, "evaluation", "nothing has been evaluated yet", problems)
    timings = _read(folder, "timings.json", Timings, "timings", "no step has been timed yet", problems)
    detections = _read_detections(folder, problems)
    adjustments = _read_adjustments(folder, problems)
    name = config.get("run")
    return RunData(
        name=name if isinstance(name, str) and name else clean(folder.resolve().name),
        folder=clean(str(folder)),
        config_text=config_text,
        config=config,
        counts=counts,
        detections=detections,
        reference=reference,
        adjustments=adjustments,
        evaluation=evaluation,
        timings=timings,
        problems=problems,
        domains=_domain_order(config, counts, detections, adjustments, reference, evaluation),
    )


_Model = TypeVar("_Model", bound=_Record)


def _read(folder: Path, name: str, model: type[_Model], part: str, meaning: str, problems: dict[str, str]) -> _Model | None:
    file = folder / name
    if not file.is_file():
        problems[part] = f"{name} is not in the run folder: {meaning}."
        return None
    return _attempt(lambda: model.model_validate(clean(json.loads(_text(file)))), name, part, problems)


def _attempt(read: Callable[[], _Model], name: str, part: str, problems: dict[str, str]) -> _Model | None:
    try:
        return read()
    except ValidationError as error:
        first = error.errors()[0]
        problems[part] = f"{name} is not as expected: {'.'.join(map(str, first['loc'])) or 'top level'}: {first['msg']}."
    except (ValueError, OSError, RecursionError) as error:
        problems[part] = f"{name} could not be read: {clean(' '.join(str(error).split()))}."
    return None


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _read_config(folder: Path, problems: dict[str, str]) -> tuple[str, dict[str, Any]]:
    file = folder / "config.yaml"
    if not file.is_file():
        problems["config"] = "config.yaml is not in the run folder, so the settings are unknown."
        return "", {}
    try:
        text = clean(_text(file))
        tree = clean(yaml.safe_load(text))
    except (yaml.YAMLError, OSError, RecursionError) as error:
        problems["config"] = f"config.yaml could not be read: {clean(' '.join(str(error).split()))}."
        return "", {}
    if not isinstance(tree, dict):
        problems["config"] = "config.yaml holds no keys and values."
        return text, {}
    return text, tree


def _read_detections(folder: Path, problems: dict[str, str]) -> tuple[Detection, ...]:
    found = []
    for file in sorted((folder / "detection").glob("**/distribution.json")):
        name = clean(str(file.relative_to(folder)))
        detection = _attempt(lambda file=file: _checked(clean(json.loads(_text(file)))), name, "detection", problems)  # type: ignore[misc]
        if detection is not None:
            samples = sorted((file.parent / "samples").glob("*.parquet"))
            generations, problem = read_generations(samples, detection.domains)
            found.append(detection.model_copy(update={"generations": generations, "problem": problem}))
    if not found and "detection" not in problems:
        problems["detection"] = (
            "detection/*/distribution.json is not in the run folder: knowledge detection was skipped or has not run yet."
        )
    return tuple(found)


def _checked(tree: Any) -> Detection:
    detection = Detection.model_validate(tree)
    sizes = {"share": detection.share, "ci95": detection.ci95, "known": detection.known}
    for key, values in sizes.items():
        if values is not None and len(values) != len(detection.domains):
            raise ValueError(f"{key} has {len(values)} entries for {len(detection.domains)} domains")
    return detection


def _read_adjustments(folder: Path, problems: dict[str, str]) -> tuple[Adjustment, ...]:
    name = "finetune/adjustments.jsonl"
    file = folder / name
    if not file.is_file():
        problems["adjustments"] = f"{name} is not in the run folder: fine-tuning has not started yet."
        return ()
    by_step: dict[int, Adjustment] = {}
    unreadable = 0
    for line in _text(file).split("\n"):
        if line.strip():
            try:
                adjustment = Adjustment.model_validate(clean(json.loads(line)))
            except (ValueError, RecursionError):
                unreadable += 1
            else:
                by_step[adjustment.step] = adjustment
    if unreadable:
        problems["adjustments"] = (
            f"{name}: {unreadable} line(s) could not be read and are left out (a line may have been cut off while written)."
        )
    elif not by_step:
        problems["adjustments"] = f"{name} is empty: nothing has been measured yet."
    return tuple(by_step[step] for step in sorted(by_step))


def _domain_order(
    config: dict[str, Any],
    counts: Counts | None,
    detections: Iterable[Detection],
    adjustments: tuple[Adjustment, ...],
    reference: Reference | None,
    evaluation: Evaluation | None,
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
    return tuple(dict.fromkeys(names))
