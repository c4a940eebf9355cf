"""What a detection found, as the run keeps it: ``distribution.json``, the samples beside it, and
the comparison of models.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from versatune_ray.detection.calibration import JudgeQuality, corrected, measure
from versatune_ray.detection.distribution import (
    Array,
    estimate,
    half_width,
    published_for,
    total_variation,
)
from versatune_ray.detection.generate import GENERATED, Generator
from versatune_ray.detection.judge import JudgeSpec, read_answers
from versatune_ray.detection.prompt import order_of
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import write_json
from versatune_ray.runs.parts import read_rows
from versatune_ray.runs.storage import bring, push
from versatune_ray.settings import Detection
from versatune_ray.settings.location import shown

if TYPE_CHECKING:
    from versatune_ray.detection.detect import Detected

_DEGENERATE = "degenerate generation (one token repeated)"


_LOW_MASS = 0.5


class Labelled(NamedTuple):
    """Texts whose domain is known: the folder of their parts, the domain of each, int [m], and the
    folder of the answers.
    """

    folder: Path
    truth: NDArray[np.int64]
    judged: Path


class Sequences(NamedTuple):
    """The first n sequences of a model with what the judge made of them; ``shares`` [n, k] is NaN
    where there is a reason instead.
    """

    ids: NDArray[np.int64]
    tokens: NDArray[np.int64]
    text_hash: NDArray[np.int64]
    degenerate: NDArray[np.bool_]
    shares: Array
    mass: Array
    answer: list[str | None]
    discarded: list[str | None]

    @property
    def kept(self) -> NDArray[np.bool_]:
        return np.array([reason is None for reason in self.discarded], dtype=bool)


def judged_sequences(
    spec: JudgeSpec, folder: Path, judged: Path, count: int, *, exclude_degenerate: bool
) -> Sequences:
    """Read sequences and answers together; texts stay on the disk."""
    table = read_rows(folder, GENERATED, ["id", "tokens", "text_hash", "degenerate", "discarded"])
    table = table.filter(pa.compute.less(table["id"], count))
    ids, degenerate = table["id"].to_numpy(), table["degenerate"].to_numpy()
    answers = read_answers(spec, judged, count)
    place = np.searchsorted(ids, answers.ids)
    shares, mass = (
        np.full((len(ids), len(spec.question.domains)), np.nan),
        np.full(len(ids), np.nan),
    )
    shares[place], mass[place] = answers.shares, answers.mass
    answer: list[str | None] = [None] * len(ids)
    discarded: list[str | None] = ["not judged"] * len(ids)
    for row, written, reason in zip(place, answers.answer, answers.discarded, strict=True):
        answer[row], discarded[row] = written, reason
    for row, reason in enumerate(table["discarded"].to_pylist()):
        if reason is not None:
            discarded[row] = reason
        elif exclude_degenerate and degenerate[row]:
            discarded[row] = _DEGENERATE
    shares[[reason is not None for reason in discarded]] = np.nan
    return Sequences(
        ids,
        table["tokens"].to_numpy(),
        table["text_hash"].to_numpy(),
        degenerate,
        shares,
        mass,
        answer,
        discarded,
    )


def summarize(
    one: Detected, spec: JudgeSpec, settings: Detection, labelled: Labelled | None
) -> dict[str, Any]:
    """State the distribution, its intervals, the judge's quality, and everything that was left out.

    Raises:
        UserError: fewer than two sequences could be judged, or the corrected shares are asked for
            and cannot be had.
    """
    source, domains = one.source, spec.question.domains
    found = judged_sequences(
        spec, source.folder, one.judged, one.count, exclude_degenerate=settings.exclude_degenerate
    )
    reasons = Counter(reason.split(":")[0] for reason in found.discarded if reason is not None)
    kept = found.kept
    if kept.sum() < 2:
        raise UserError(
            f"detection of {source.path}: {kept.sum()} of {len(kept)} sequences could be judged "
            f"({dict(reasons)})"
        )
    shares, repeat = found.shares[kept], found.ids[kept] % settings.repeats
    raw = estimate(shares, repeat, settings.repeats)
    quality, mass = (None, float("nan")) if labelled is None else _quality(spec, labelled)
    known, published = _known(source.path, domains), published_for(source.path, domains)
    cap = settings.samples * settings.repeats
    return {
        "name": source.name,
        "model": shown(source.path),
        "domains": list(domains),
        "share": raw.share.tolist(),
        "ci95": raw.ci95.tolist(),
        "repeats": [None if np.isnan(share).any() else share.tolist() for share in raw.repeats],
        "repeats_differ": raw.differ,
        "samples": len(kept),
        "tokens": int(found.tokens.sum()),
        "discarded": {"total": sum(reasons.values()), "reasons": dict(reasons)},
        "generations": {
            "empty": reasons["empty generation"],
            "degenerate": int(found.degenerate.sum()),
            "degenerate_excluded": settings.exclude_degenerate,
            "distinct": len(np.unique(found.text_hash)),
        },
        "tolerance": {
            "asked": settings.tolerance,
            "reached": half_width(raw),
            "rounds": one.rounds,
            "cap": cap,
        },
        "judge": shown(spec.model),
        "mass": float(found.mass[kept].mean()),
        "judge_quality": None if quality is None else _shown(quality, mass),
        "positions": _positions(spec, found.ids[kept], shares),
        "corrected": None if quality is None else _corrected(shares, quality, known, settings),
        "used": settings.estimate,
        "known": None if known is None else known.tolist(),
        "total_variation": None if known is None else total_variation(raw.share, known),
        "published": None
        if published is None
        else {"model": published[0], "share": published[1].tolist()},
        "settings": _settings(source, spec, settings),
        "work": one.work | {"reused": len(kept) - one.work["generated"]},
    }


def starting_share(distribution: Mapping[str, Any]) -> list[float]:
    """The shares that training starts with: ``used`` decides."""
    chosen = distribution["corrected"] if distribution.get("used") == "corrected" else distribution
    return list(chosen["share"])


def place_detection(one: Detected, spec: JudgeSpec, settings: Detection, folder: Path) -> None:
    """Write ``distribution.json`` and ``samples/`` of one model to a run's folder, unless they say
    the same already.
    """
    file, samples = folder / "distribution.json", folder / "samples"
    if file.is_file() and bring(samples):
        before = json.loads(file.read_text(encoding="utf-8"))
        if {**before, "work": 0} == {**json.loads(json.dumps(one.distribution)), "work": 0}:
            return
    work = folder / "samples.partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    found = judged_sequences(
        spec,
        one.source.folder,
        one.judged,
        one.count,
        exclude_degenerate=settings.exclude_degenerate,
    )
    for part in sorted(one.source.folder.glob("*.parquet")):
        table = pyarrow.parquet.read_table(part, columns=["id", "text", "tokens"])
        table = table.filter(pa.compute.less(table["id"], one.count))
        if not table.num_rows:
            continue
        rows = np.searchsorted(found.ids, table["id"].to_numpy())
        table = table.add_column(1, "repeat", pa.array(table["id"].to_numpy() % settings.repeats))
        for place, name in enumerate(spec.question.domains):
            table = table.append_column(name, pa.array(found.shares[rows, place]))
        table = table.append_column(
            "answer", pa.array([found.answer[row] for row in rows], pa.string())
        )
        table = table.append_column(
            "discarded", pa.array([found.discarded[row] for row in rows], pa.string())
        )
        pyarrow.parquet.write_table(table, work / part.name)
    push(samples, work)
    shutil.rmtree(samples, ignore_errors=True)
    work.replace(samples)
    write_json(file, one.distribution)
    push(file)


def account(distributions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a person should know of each detection at once: what was left out, how good the judge
    is, what does not fit.
    """
    lines = []
    for name, found in distributions.items():
        work, lost = found["work"], found["discarded"]
        line = (
            f"{name}: {found['samples']:,} sequences, {work['reused']:,} of them reused; "
            f"{lost['total']:,} discarded"
        )
        lines.append(
            line
            + (
                f" ({', '.join(f'{reason}: {n:,}' for reason, n in lost['reasons'].items())})"
                if lost["total"]
                else ""
            )
        )
        if found["mass"] < _LOW_MASS:
            given = f"{100 * found['mass']:.2g} %"
            lines.append(
                f"{name}: the judge gives the options only {given} of its probability; it wants to "
                f"say something else (see its prompt)"
            )
        tolerance = found["tolerance"]
        if tolerance["asked"] is not None and tolerance["reached"] > tolerance["asked"]:
            reached = f"± {100 * tolerance['reached']:.2f} %"
            way_out = f"raise samples or repeats beyond {tolerance['cap']:,} in all"
            lines.append(
                f"{name}: a tolerance of {100 * tolerance['asked']:g} % is not reached "
                f"({reached}); {way_out}"
            )
        for label in ("known", "published"):
            distance = _distance(found, label)
            if distance is not None:
                better = found["corrected"] or {}
                also = (
                    f", {total_variation(np.array(better['share']), distance[1]):.3f} corrected"
                    if "share" in better
                    else ""
                )
                lines.append(
                    f"{name}: total variation distance to the {label} distribution "
                    f"{distance[0]:.3f}{also}"
                )
    quality = next(iter(distributions.values()))["judge_quality"] if distributions else None
    if quality is not None:
        numbers = (
            f"accuracy {100 * quality['accuracy']:.1f} %, log loss {quality['log_loss']:.3f} nats "
            f"(chance {quality['chance']:.3f})"
        )
        worst = min(
            zip(quality["recall"], next(iter(distributions.values()))["domains"], strict=True)
        )
        lines.append(
            f"judge, on {sum(quality['records'])} labelled records: {numbers}; worst in {worst[1]} "
            f"({100 * worst[0]:.0f} %)"
        )
        if quality["log_loss"] >= quality["chance"]:
            lines.append(
                "judge: NO BETTER THAN CHANCE; mend its prompt or choose another before believing "
                "these shares"
            )
    return lines


def _distance(found: Mapping[str, Any], label: str) -> tuple[float, Array] | None:
    share = found["known"] if label == "known" else (found["published"] or {}).get("share")
    return (
        None
        if share is None
        else (total_variation(np.array(found["share"]), np.array(share)), np.array(share))
    )


def write_comparison(distributions: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """One CSV line per model and domain: share and interval, and what is known beside it."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(
            [
                "model",
                "domain",
                "share",
                "low",
                "high",
                "corrected",
                "corrected_low",
                "corrected_high",
                "published",
                "known",
            ]
        )
        for name, found in distributions.items():
            better, published = found["corrected"] or {}, found["published"] or {}
            for place, domain in enumerate(found["domains"]):
                right = better["ci95"][place] if "ci95" in better else ["", ""]
                others = [
                    (values or {}).get("share", [""] * len(found["domains"]))[place]
                    for values in (better, published)
                ]
                known = "" if found["known"] is None else found["known"][place]
                lines.writerow(
                    [
                        name,
                        domain,
                        found["share"][place],
                        *found["ci95"][place],
                        others[0],
                        *right,
                        others[1],
                        known,
                    ]
                )
    push(file)


def comparison(distributions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a table for the terminal: percent ± half of the 95 % interval, and what was
    published below where the model is known.
    """
    domains = next(iter(distributions.values()))["domains"]
    width = max(len("published"), *(len(name) for name in distributions))
    columns = [max(13, len(name)) for name in domains]

    def line(name: str, cells: list[str]) -> str:
        return "  ".join(
            [
                f"{name:<{width}}",
                *(f"{cell:>{wide}}" for cell, wide in zip(cells, columns, strict=True)),
            ]
        )

    lines = [line("%", domains)]
    for name, found in distributions.items():
        halves = [(high - low) / 2 for low, high in found["ci95"]]
        lines.append(
            line(
                name,
                [
                    f"{100 * share:.1f} ± {100 * half:4.1f}"
                    for share, half in zip(found["share"], halves, strict=True)
                ],
            )
        )
        for label, share in (
            ("published", (found["published"] or {}).get("share")),
            ("known", found["known"]),
        ):
            if share is not None:
                lines.append(line(f"  {label}", [f"{100 * value:.1f}       " for value in share]))
    return lines


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


def _shown(quality: JudgeQuality, mass: float) -> dict[str, Any]:
    return {
        "records": quality.records.tolist(),
        "confusion": quality.confusion.tolist(),
        "recall": quality.recall.tolist(),
        "accuracy": quality.accuracy,
        "log_loss": quality.log_loss,
        "chance": float(np.log(len(quality.records))),
        "mass": mass,
    }


def _corrected(
    shares: Array, quality: JudgeQuality, known: Array | None, settings: Detection
) -> dict[str, Any]:
    try:
        found = corrected(shares, quality)
    except ValueError as error:
        if settings.estimate == "corrected":
            raise UserError(
                f"detection.estimate: corrected cannot be had: {error}; use raw, or another judge"
            ) from None
        return {"problem": str(error)}
    distance = None if known is None else total_variation(found.share, known)
    return {"share": found.share.tolist(), "ci95": found.ci95.tolist(), "total_variation": distance}


def _positions(spec: JudgeSpec, ids: NDArray[np.int64], shares: Array) -> dict[str, Any] | None:
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
    return {
        "share": means.mean(axis=0).tolist(),
        "standard_error": (np.sqrt(errors.sum(axis=0)) / len(means)).tolist(),
    }


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
