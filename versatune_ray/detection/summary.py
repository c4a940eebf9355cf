"""From the judge's answers to a model's ``Distribution``: shares and their intervals, how good the
judge is, and everything that was left out.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from versatune_ray.detection.answers import read_answers
from versatune_ray.detection.calibration import JudgeQuality, corrected, measure
from versatune_ray.detection.distribution import (
    Array,
    estimate,
    half_width,
    published_for,
    total_variation,
)
from versatune_ray.detection.distribution_file import (
    Corrected,
    Discarded,
    Distribution,
    Generations,
    MeasuredJudge,
    Positions,
    Published,
    Tolerance,
    Uncorrectable,
)
from versatune_ray.detection.generate import GENERATED, Generator
from versatune_ray.detection.judge_spec import JudgeSpec
from versatune_ray.detection.prompt import order_of
from versatune_ray.detection.texts import Detected, Labelled, Sequences, Texts
from versatune_ray.errors import UserError
from versatune_ray.runs.parts import read_rows
from versatune_ray.settings import Detection
from versatune_ray.settings.location import shown

_DEGENERATE = "degenerate generation (a token or a short cycle of them, repeated)"


def judged_sequences(spec: JudgeSpec, texts: Texts) -> Sequences:
    """Read sequences and answers together; texts stay on the disk."""
    columns = ["id", "tokens", "text_hash", "degenerate", "discarded"]
    table = read_rows(texts.folder, GENERATED, columns)
    table = table.filter(pc.less(table["id"], texts.size))
    ids, degenerate = table["id"].to_numpy(), table["degenerate"].to_numpy()
    answers = read_answers(spec, texts.judged, texts.size)
    rows = np.searchsorted(ids, answers.ids)
    shares = np.full((len(ids), len(spec.question.domains)), np.nan)
    mass = np.full(len(ids), np.nan)
    shares[rows], mass[rows] = answers.shares, answers.mass
    answer: list[str | None] = [None] * len(ids)
    discarded: list[str | None] = ["not judged"] * len(ids)
    for row, written, reason in zip(rows, answers.answer, answers.discarded, strict=True):
        answer[row], discarded[row] = written, reason
    for row, reason in enumerate(table["discarded"].to_pylist()):
        if reason is not None:
            discarded[row] = reason
        elif texts.exclude_degenerate and degenerate[row]:
            discarded[row] = _DEGENERATE
    shares[[reason is not None for reason in discarded]] = np.nan
    tokens, text_hash = table["tokens"].to_numpy(), table["text_hash"].to_numpy()
    return Sequences(ids, tokens, text_hash, degenerate, shares, mass, answer, discarded)


def summarize(
    detected: Detected, spec: JudgeSpec, settings: Detection, labelled: Labelled | None
) -> Distribution:
    """State the distribution, its intervals, the judge's quality, and everything that was left out.

    Raises:
        UserError: fewer than two sequences could be judged, or the corrected shares are asked for
            and cannot be had.
    """
    source, domains = detected.source, spec.question.domains
    sequences = judged_sequences(
        spec, detected.texts(exclude_degenerate=settings.exclude_degenerate)
    )
    reasons = Counter(reason.split(":")[0] for reason in sequences.discarded if reason is not None)
    kept = sequences.kept
    if kept.sum() < 2:
        raise UserError(
            f"detection of {source.path}: {kept.sum()} of {len(kept)} sequences could be judged "
            f"({dict(reasons)})"
        )
    shares, repeat = sequences.shares[kept], sequences.ids[kept] % settings.repeats
    raw = estimate(shares, repeat, settings.repeats)
    quality, mass = (None, float("nan")) if labelled is None else _quality(spec, labelled)
    known, published = _known(source.path, domains), published_for(source.path, domains)
    return Distribution(
        name=source.name,
        model=shown(source.path),
        domains=list(domains),
        share=raw.share.tolist(),
        ci95=raw.ci95.tolist(),
        repeats=[None if np.isnan(share).any() else share.tolist() for share in raw.repeats],
        repeats_differ=raw.differ,
        samples=len(kept),
        tokens=int(sequences.tokens.sum()),
        texts="/".join(source.folder.parts[-3:]),
        discarded=Discarded(sum(reasons.values()), dict(reasons)),
        generations=Generations(
            empty=reasons["empty generation"],
            degenerate=int(sequences.degenerate.sum()),
            degenerate_excluded=settings.exclude_degenerate,
            distinct=len(np.unique(sequences.text_hash)),
        ),
        tolerance=Tolerance(
            asked=settings.tolerance,
            reached=half_width(raw),
            rounds=detected.rounds,
            cap=settings.samples * settings.repeats,
        ),
        judge=shown(spec.model),
        mass=float(sequences.mass[kept].mean()),
        judge_quality=None if quality is None else _measured(quality, mass),
        positions=_positions(spec, sequences.ids[kept], shares),
        corrected=None if quality is None else _corrected(shares, quality, known, settings),
        used=settings.estimate,
        known=None if known is None else known.tolist(),
        total_variation=None if known is None else total_variation(raw.share, known),
        published=None if published is None else Published(published[0], published[1].tolist()),
        settings=_settings(source, spec, settings),
        work=detected.work | {"reused": len(kept) - detected.work["generated"]},
    )


def _quality(spec: JudgeSpec, labelled: Labelled) -> tuple[JudgeQuality | None, float]:
    """How the judge does on texts whose domain is known, and the mean probability that it gives to
    the options at all.
    """
    answers = read_answers(spec, labelled.judged, len(labelled.truth))
    kept = np.array([reason is None for reason in answers.discarded], dtype=bool)
    truth, k = labelled.truth[answers.ids[kept]], len(spec.question.domains)
    if np.bincount(truth, minlength=k).min() < 2:
        return None, float("nan")
    return measure(answers.shares[kept], truth, k), float(answers.mass[kept].mean())


def _measured(quality: JudgeQuality, mass: float) -> MeasuredJudge:
    return MeasuredJudge(
        records=quality.records.tolist(),
        confusion=quality.confusion.tolist(),
        recall=quality.recall.tolist(),
        accuracy=quality.accuracy,
        log_loss=quality.log_loss,
        chance=float(np.log(len(quality.records))),
        mass=mass,
    )


def _corrected(
    shares: Array, quality: JudgeQuality, known: Array | None, settings: Detection
) -> Corrected | Uncorrectable:
    try:
        correction = corrected(shares, quality)
    except ValueError as error:
        if settings.estimate == "corrected":
            raise UserError(
                f"detection.estimate: corrected cannot be had: {error}; use raw, or another judge"
            ) from None
        return Uncorrectable(str(error))
    distance = None if known is None else total_variation(correction.share, known)
    return Corrected(correction.share.tolist(), correction.ci95.tolist(), distance)


def _positions(spec: JudgeSpec, ids: NDArray[np.int64], shares: Array) -> Positions | None:
    """Mean probability by place in the list of options. Every domain stands everywhere equally
    often: 1/k without a liking for a place.
    """
    if spec.question.orders == 1:
        return None
    by_position = np.zeros_like(shares)
    np.put_along_axis(by_position, spec.question.positions(ids), shares, axis=1)
    # Orders that some texts are missing from must not weigh less.
    orders = order_of(ids, spec.question.orders)
    groups = [by_position[orders == order] for order in range(spec.question.orders)]
    means = np.array([group.mean(axis=0) for group in groups if len(group) > 1])
    errors = np.array(
        [group.var(axis=0, ddof=1) / len(group) for group in groups if len(group) > 1]
    )
    if len(means) < spec.question.orders:
        return None
    standard_error = np.sqrt(errors.sum(axis=0)) / len(means)
    return Positions(means.mean(axis=0).tolist(), standard_error.tolist())


def _settings(source: Generator, spec: JudgeSpec, settings: Detection) -> dict[str, Any]:
    judge = spec.settings
    return {
        "start_token": source.start_is,
        "generation": source.generation.model_dump(),
        "seed": source.seed,
        "judge": {
            name: getattr(judge, name)
            for name in ("kind", "labels", "answer", "permute", "max_text_tokens")
        },
        "prompt": spec.question.template,
        "preset": settings.preset,
    }


def _known(model: str, domains: tuple[str, ...]) -> Array | None:
    """The pre-training mixture of a base model made here, in the order of ``domains``; None for any
    other.
    """
    path = Path(model) / "pretraining.json"
    if not path.is_file():
        return None
    facts = json.loads(path.read_text(encoding="utf-8"))
    shares = dict(zip(facts["domains"], facts["mixture"], strict=True))
    return np.array([shares[name] for name in domains]) if set(shares) == set(domains) else None
