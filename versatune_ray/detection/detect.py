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

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from versatune_ray.detection.distribution import estimate, half_width, samples_needed
from versatune_ray.detection.generate import GENERATED, generate, generator, text_row
from versatune_ray.detection.judge import judge
from versatune_ray.detection.judge_spec import JudgeSpec, judge_spec
from versatune_ray.detection.summary import judged_sequences, summarize
from versatune_ray.detection.texts import Detected, Labelled
from versatune_ray.domains.fingerprint import fingerprint
from versatune_ray.domains.labelled import labelled_sources, labelled_texts
from versatune_ray.domains.spec import expand
from versatune_ray.errors import UserError, is_disk_full, one_line
from versatune_ray.runs.cache import cached
from versatune_ray.runs.folder import say
from versatune_ray.settings import Config, Subject

_PILOT = 400  # sequences of the first round
_MARGIN = 1.05  # a bare forecast of the sequences needed falls short half of the time
_PART_ROWS = 128


@dataclass
class Detections:
    """The models of a job: those that were detected, by name, and why others were not."""

    spec: JudgeSpec
    detected: dict[str, Detected] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    reused: bool = True  # nothing had to be generated or judged
    seconds: dict[str, float] = field(default_factory=lambda: {"generation": 0.0, "judging": 0.0})


def detect_models(subjects: Sequence[Subject], config: Config, *, gpu: bool) -> Detections:
    """Detect what every model knows. A model that cannot be detected does not stop the others.

    Raises:
        UserError: the judge cannot be used, the disk is full, or there is one model only and it
            cannot be detected.
    """
    settings, cache = config.detection, config.cache_folder
    result = Detections(judge_spec(config, gpu=gpu))
    spec = result.spec
    spec.check_labels()  # before anything is spent
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
    for name, detected in list(result.detected.items()):
        with _Failing(name, result, alone):
            detected.distribution = summarize(detected, spec, settings, labelled)
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
        model = result.detected[name]
        began = time.monotonic()
        with _Failing(name, result, alone):
            made = generate(model.source, count, gpu=result.spec.gpu)
            model.count, model.rounds = count, model.rounds + 1
            model.work["generated"] += made
            which = f" ({number} of {len(targets)})" if len(targets) > 1 else ""
            say(
                "detection",
                f"{name}{which}: {made:,} sequences generated, {count - made:,} were there before",
            )
        result.seconds["generation"] += time.monotonic() - began
    models = [result.detected[name] for name in targets if name in result.detected]
    if not models:
        return
    texts = [model.texts(exclude_degenerate=exclude_degenerate) for model in models]
    if labelled is not None:
        texts.append(labelled.texts)
    began = time.monotonic()
    judged = judge(result.spec, texts)
    result.seconds["judging"] += time.monotonic() - began
    for model, texts_judged in zip(models, judged, strict=False):
        model.work["judged"] += texts_judged
    say(
        "detection",
        f"{sum(judged):,} texts judged"
        + (", labelled ones among them" if labelled is not None and judged[-1] else ""),
    )
    generated = any(model.work["generated"] for model in models)
    result.reused = result.reused and not any(judged) and not generated


def _wanted(spec: JudgeSpec, detected: Detected, config: Config) -> int:
    """Sequences needed for the tolerance, at most N × T; those that are there, if it is reached or
    not asked for.
    """
    settings = config.detection
    if settings.tolerance is None:
        return detected.count
    sequences = judged_sequences(
        spec, detected.texts(exclude_degenerate=settings.exclude_degenerate)
    )
    kept = sequences.kept
    if kept.sum() < 2:
        return detected.count  # told by the summary
    shares = sequences.shares[kept]
    so_far = estimate(shares, sequences.ids[kept] % settings.repeats, settings.repeats)
    reached = half_width(so_far)
    say(
        "detection",
        f"{detected.source.name}: {detected.count:,} sequences, widest interval "
        f"± {100 * reached:.2f} % of {100 * settings.tolerance:g} %",
    )
    if reached <= settings.tolerance:
        return detected.count
    per_kept = detected.count / int(kept.sum())
    needed = samples_needed(so_far, shares, settings.tolerance) * per_kept
    cap = settings.samples * settings.repeats
    return min(cap, max(detected.count + 1, round(_MARGIN * needed)))


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
        inputs.append([name, side, fingerprint(listed, config.data.fingerprint)])
    parts = {"inputs": inputs, "limit": limit, "fraction": config.data.validation_fraction}

    def build(work: Path) -> None:
        texts = labelled_texts(config.domains, config.data, limit)
        rows = [
            text_row(0, text, 0, False) | {"truth": domain}
            for domain, name in enumerate(texts)
            for text in texts[name]
        ]
        schema = pa.schema([*GENERATED.items(), ("truth", pa.int64())])
        for start in range(0, len(rows), _PART_ROWS):
            numbered = [
                row | {"id": number}
                for number, row in enumerate(rows[start : start + _PART_ROWS], start)
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
