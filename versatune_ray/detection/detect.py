"""Detection of one base model or many: each writes, one judge reads them all, and every
distribution is estimated and explained.

Sequences and answers are kept as they come in stores that grow, so a job that is killed, repeated
or enlarged does only what is missing. With a tolerance this happens in rounds: a pilot, then as
many sequences as the widest interval asks for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from versatune_ray.detection.distribution import estimate, half_width, samples_needed
from versatune_ray.detection.generate import GENERATED, Generator, generate, generator, text_row
from versatune_ray.detection.judge import JudgeSpec, Texts, judge, judge_spec
from versatune_ray.detection.summary import Labelled, judged_sequences, summarize
from versatune_ray.domains.labelled import labelled_sources, labelled_texts
from versatune_ray.domains.sources import expand, fingerprint
from versatune_ray.errors import UserError, is_disk_full, one_line
from versatune_ray.runs.cache import cached
from versatune_ray.runs.folder import say
from versatune_ray.settings import Config, Subject

_PILOT = 400  # sequences of the first round
_MARGIN = 1.05  # a bare forecast of the sequences needed falls short half of the time
_PART_ROWS = 128


@dataclass
class Detected:
    """One model: its sequences, the judge's answers about them, and its distribution as in
    ``distribution.json``.
    """

    source: Generator
    judged: Path
    count: int = 0
    rounds: int = 0
    work: dict[str, int] = field(default_factory=lambda: {"generated": 0, "judged": 0})
    distribution: dict[str, Any] = field(default_factory=dict)


@dataclass
class Detections:
    """The models of a job: those that were detected, by name, and why others were not."""

    spec: JudgeSpec
    detected: dict[str, Detected] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    reused: bool = True  # nothing had to be generated or judged
    seconds: dict[str, float] = field(default_factory=lambda: {"generation": 0.0, "judging": 0.0})


def detect(subjects: Sequence[Subject], config: Config, *, gpu: bool) -> Detections:
    """Detect what every model knows. A model that cannot be detected does not stop the others.

    Raises:
        UserError: the judge cannot be used, the disk is full, or there is one model only and it
            cannot be detected.
    """
    settings, cache = config.detection, config.cache_folder
    result = Detections(judge_spec(config, gpu=gpu))
    spec = result.spec
    # labels that the judge's tokenizer cannot tell apart are told before anything is spent
    assert spec.requests
    alone = len(subjects) == 1
    for subject in subjects:
        name = subject.name or Path(subject.path).name
        with _Failing(name, result, alone):
            source = generator(name, subject.path, subject.engine, config, gpu=gpu)
            result.detected[name] = Detected(source, spec.folder(cache, source.folder.name))
    labelled = _labelled(config, spec)
    if settings.estimate == "corrected" and labelled is None:
        raise UserError(
            "detection.estimate: corrected needs at least two labelled texts of every domain "
            "(domains.NAME.labelled, or records)"
        )
    cap = settings.samples * settings.repeats
    targets = dict.fromkeys(
        result.detected, cap if settings.tolerance is None else min(cap, _PILOT)
    )
    while targets:
        _round(result, targets, labelled, alone, exclude_degenerate=settings.exclude_degenerate)
        wanted = {}
        for name, count in targets.items():
            if name in result.detected and count < cap:
                with _Failing(name, result, alone):
                    wanted[name] = _wanted(spec, result.detected[name], config)
        targets = {name: count for name, count in wanted.items() if count > targets[name]}
    for name, one in list(result.detected.items()):
        with _Failing(name, result, alone):
            one.distribution = summarize(one, spec, settings, labelled)
    return result


def _round(
    result: Detections,
    targets: Mapping[str, int],
    labelled: Labelled | None,
    alone: bool,
    *,
    exclude_degenerate: bool,
) -> None:
    """Bring the models of ``targets`` to their numbers of sequences, one after another, then judge
    all of them in one pass.
    """
    for number, (name, count) in enumerate(targets.items(), 1):
        one = result.detected[name]
        began = time.monotonic()
        with _Failing(name, result, alone):
            made = generate(one.source, count, gpu=result.spec.gpu)
            one.count, one.rounds = count, one.rounds + 1
            one.work["generated"] += made
            place = f" ({number} of {len(targets)})" if len(targets) > 1 else ""
            say(
                "detection",
                f"{name}{place}: {made:,} sequences generated, {count - made:,} were there before",
            )
        result.seconds["generation"] += time.monotonic() - began
    there = [result.detected[name] for name in targets if name in result.detected]
    if not there:
        return
    texts = [Texts(one.source.folder, one.count, one.judged, exclude_degenerate) for one in there]
    if labelled is not None:
        texts.append(Texts(labelled.folder, len(labelled.truth), labelled.judged))
    began = time.monotonic()
    answered = judge(result.spec, texts)
    result.seconds["judging"] += time.monotonic() - began
    for one, number in zip(there, answered, strict=False):
        one.work["judged"] += number
    say(
        "detection",
        f"{sum(answered):,} texts judged"
        + (", labelled ones among them" if labelled is not None and answered[-1] else ""),
    )
    result.reused = (
        result.reused and not any(answered) and not any(one.work["generated"] for one in there)
    )


def _wanted(spec: JudgeSpec, one: Detected, config: Config) -> int:
    """Sequences needed for the tolerance, at most N × T; those that are there, if it is reached or
    not asked for.
    """
    settings = config.detection
    if settings.tolerance is None:
        return one.count
    sequences = judged_sequences(
        spec,
        one.source.folder,
        one.judged,
        one.count,
        exclude_degenerate=settings.exclude_degenerate,
    )
    kept = sequences.kept
    if kept.sum() < 2:
        return one.count  # told by the summary
    found = estimate(
        sequences.shares[kept], sequences.ids[kept] % settings.repeats, settings.repeats
    )
    reached = half_width(found)
    say(
        "detection",
        f"{one.source.name}: {one.count:,} sequences, widest interval ± {100 * reached:.2f} % of "
        f"{100 * settings.tolerance:g} %",
    )
    if reached <= settings.tolerance:
        return one.count
    needed = (
        samples_needed(found, sequences.shares[kept], settings.tolerance)
        * one.count
        / int(kept.sum())
    )
    return min(settings.samples * settings.repeats, max(one.count + 1, round(_MARGIN * needed)))


def _labelled(config: Config, spec: JudgeSpec) -> Labelled | None:
    """Held-out records as texts for the judge; None where it is not to be measured."""
    limit = config.detection.judge.records
    if not limit:
        return None
    without = [name for name, domain in config.domains.items() if not labelled_sources(domain)[1]]
    if without:
        say(
            "detection",
            f"the judge is not measured: no labelled texts or records of {', '.join(without)}",
        )
        return None
    inputs = []  # in domain order, which the truth is told in
    for name, domain in config.domains.items():
        side, specs = labelled_sources(domain)
        listed = [
            source
            for spec in specs
            for source in expand(spec, f"domains.{name}.{side}", texts=side == "labelled")
        ]
        inputs.append([name, side, fingerprint(listed)])
    parts = {"inputs": inputs, "limit": limit, "fraction": config.data.validation_fraction}

    def build(work: Path) -> None:
        texts = labelled_texts(config.domains, config.data, limit)
        rows = [
            text_row(0, text, 0, False) | {"truth": place}
            for place, name in enumerate(texts)
            for text in texts[name]
        ]
        schema = pa.schema([*GENERATED.items(), ("truth", pa.int64())])
        for start in range(0, len(rows), _PART_ROWS):
            numbered = [
                row | {"id": start + place}
                for place, row in enumerate(rows[start : start + _PART_ROWS])
            ]
            pyarrow.parquet.write_table(
                pa.Table.from_pylist(numbered, schema), work / f"{start:06}.parquet"
            )
        np.save(work / "truth.npy", np.array([row["truth"] for row in rows], dtype=np.int64))

    folder, _ = cached(config.cache_folder, "labelled", parts, build)
    truth = np.load(folder / "truth.npy")
    few = [
        name
        for name, count in zip(
            config.domains, np.bincount(truth, minlength=len(config.domains)), strict=True
        )
        if count < 2
    ]
    if few:
        say(
            "detection",
            f"the judge is not measured: fewer than two labelled texts of {', '.join(few)}",
        )
        return None
    return Labelled(folder, truth, spec.folder(config.cache_folder, folder.name))


class _Failing:
    """Context in which one model may fail: it is set aside with its reason. A full disk, or the
    only model, ends the job.
    """

    def __init__(self, name: str, result: Detections, alone: bool):
        self._name, self._result, self._alone = name, result, alone

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, Exception) or self._alone or is_disk_full(error):
            return False
        self._result.detected.pop(self._name, None)
        self._result.failed[self._name] = one_line(error)
        say("detection", f"{self._name}: cannot be detected: {one_line(error)}")
        return True
