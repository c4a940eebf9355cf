"""What a detection leaves in its run: ``distribution.json`` and the samples of every model, the
comparison of all, and what a person should know at once.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from versatune_ray.detection.distribution import total_variation
from versatune_ray.detection.distribution_file import Corrected, Distribution
from versatune_ray.detection.judge_spec import JudgeSpec
from versatune_ray.detection.summary import judged_sequences
from versatune_ray.detection.texts import Detected
from versatune_ray.runs.cache import write_json
from versatune_ray.runs.storage import bring, push
from versatune_ray.runs.thresholds import LOW_MASS
from versatune_ray.settings import Detection

_COLUMNS = "model domain share low high corrected corrected_low corrected_high published known"


def place_detection(detected: Detected, spec: JudgeSpec, settings: Detection, folder: Path) -> None:
    """Write ``distribution.json`` and ``samples/`` of one model to a run's folder, unless they say
    the same already. The texts, which are nearly all of the bytes, stay in the store that
    ``texts`` of the file names.
    """
    file, samples = folder / "distribution.json", folder / "samples"
    content = detected.distribution.as_json()
    if file.is_file() and bring(samples):
        before = json.loads(file.read_text(encoding="utf-8"))
        if {**before, "work": 0} == {**json.loads(json.dumps(content)), "work": 0}:
            return
    work = folder / "samples.partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    found = judged_sequences(spec, detected.texts(exclude_degenerate=settings.exclude_degenerate))
    columns: dict[str, Any] = {"id": found.ids, "repeat": found.ids % settings.repeats}
    columns |= {"tokens": found.tokens}
    columns |= dict(zip(spec.question.domains, found.shares.T, strict=True))
    for name, words in (("answer", found.answer), ("discarded", found.discarded)):
        columns[name] = pa.array(words, pa.string())
    pyarrow.parquet.write_table(pa.table(columns), work / "judged.parquet")
    push(samples, work)
    shutil.rmtree(samples, ignore_errors=True)
    work.replace(samples)
    write_json(file, content)
    push(file)


def account(distributions: Mapping[str, Distribution]) -> list[str]:
    """What a person should know of each detection at once: what was left out, how good the judge
    is, what does not fit.
    """
    lines = [line for name, item in distributions.items() for line in _account_of(name, item)]
    return lines + _judge(next(iter(distributions.values()))) if distributions else lines


def _account_of(name: str, distribution: Distribution) -> list[str]:
    reused, lost = distribution.work["reused"], distribution.discarded
    line = (
        f"{name}: {distribution.samples:,} sequences, {reused:,} of them reused; "
        f"{lost.total:,} discarded"
    )
    if lost.total:
        line += f" ({', '.join(f'{reason}: {n:,}' for reason, n in lost.reasons.items())})"
    lines = [line]
    if distribution.mass < LOW_MASS:
        lines.append(
            f"{name}: the judge gives the options only {100 * distribution.mass:.2g} % of its "
            f"probability; it wants to say something else (see its prompt)"
        )
    tolerance = distribution.tolerance
    if tolerance.asked is not None and tolerance.reached > tolerance.asked:
        lines.append(
            f"{name}: a tolerance of {100 * tolerance.asked:g} % is not reached "
            f"(± {100 * tolerance.reached:.2f} %); raise samples or repeats beyond "
            f"{tolerance.cap:,} in all"
        )
    corrected = distribution.corrected
    for label, share in _beside(distribution).items():
        distance = _distance(distribution.share, share)
        also = (
            f", {_distance(corrected.share, share):.3f} corrected"
            if isinstance(corrected, Corrected)
            else ""
        )
        lines.append(
            f"{name}: total variation distance to the {label} distribution {distance:.3f}{also}"
        )
    return lines


def _judge(distribution: Distribution) -> list[str]:
    """How good the judge is, which is the same for all models."""
    quality = distribution.judge_quality
    if quality is None:
        return []
    recall, worst = min(zip(quality.recall, distribution.domains, strict=True))
    lines = [
        f"judge, on {sum(quality.records)} labelled records: "
        f"accuracy {100 * quality.accuracy:.1f} %, log loss {quality.log_loss:.3f} nats "
        f"(chance {quality.chance:.3f}); worst in {worst} ({100 * recall:.0f} %)"
    ]
    if quality.log_loss >= quality.chance:
        lines.append(
            "judge: NO BETTER THAN CHANCE; mend its prompt or choose another before believing "
            "these shares"
        )
    return lines


def _beside(distribution: Distribution) -> dict[str, list[float]]:
    """Shares to compare with, by what they are."""
    published = distribution.published
    shares = {
        "known": distribution.known,
        "published": None if published is None else published.share,
    }
    return {label: share for label, share in shares.items() if share is not None}


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return total_variation(np.array(one), np.array(other))


def write_comparison(distributions: Mapping[str, Distribution], file: Path) -> None:
    """One CSV line per model and domain: share and interval, and what is known beside it."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        lines = csv.writer(stream)
        lines.writerow(_COLUMNS.split())
        for name, item in distributions.items():
            k = len(item.domains)
            better = item.corrected if isinstance(item.corrected, Corrected) else None
            corrected = (
                [("", "", "")] * k
                if better is None
                else [
                    (share, *interval)
                    for share, interval in zip(better.share, better.ci95, strict=True)
                ]
            )
            published = [""] * k if item.published is None else item.published.share
            known = [""] * k if item.known is None else item.known
            for row in zip(
                item.domains, item.share, item.ci95, corrected, published, known, strict=True
            ):
                domain, share, interval, right, of_authors, true = row
                lines.writerow([name, domain, share, *interval, *right, of_authors, true])
    push(file)


def comparison(distributions: Mapping[str, Distribution]) -> list[str]:
    """Lines of a table for the terminal: percent ± half of the 95 % interval, and what was
    published below where the model is known.
    """
    domains = next(iter(distributions.values())).domains
    width = max(len("published"), *(len(name) for name in distributions))
    columns = [max(13, len(name)) for name in domains]

    def line(name: str, cells: Sequence[str]) -> str:
        padded = (f"{cell:>{wide}}" for cell, wide in zip(cells, columns, strict=True))
        return "  ".join([f"{name:<{width}}", *padded])

    lines = [line("%", domains)]
    for name, item in distributions.items():
        halves = [(high - low) / 2 for low, high in item.ci95]
        cells = [
            f"{100 * share:.1f} ± {100 * half:4.1f}"
            for share, half in zip(item.share, halves, strict=True)
        ]
        lines.append(line(name, cells))
        beside = _beside(item)
        lines += [
            line(f"  {label}", [f"{100 * value:.1f}       " for value in beside[label]])
            for label in ("published", "known")
            if label in beside
        ]
    return lines
