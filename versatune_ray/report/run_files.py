"""Read the files of a run's folder into ``RunData``.

Any file may be missing or half written: the page is most wanted when a run stopped early. What
cannot be read becomes one plain sentence in ``RunData.problems``, which the page prints in place of
the section.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from versatune_ray.errors import UserError, redacted
from versatune_ray.report.data import Adjustment, Counts, Evaluation, Reference, RunData, Timings
from versatune_ray.report.detections import Detection, read_detections, read_failed
from versatune_ray.report.reading import Problems, Record, attempt, one_line, text_of
from versatune_ray.report.tuning import (
    Replay,
    read_replay,
    read_study,
    read_sweep,
)
from versatune_ray.report.writing import clean
from versatune_ray.settings.location import shown

_Model = TypeVar("_Model", bound=Record)


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
