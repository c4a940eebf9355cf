"""What came of a run, in words (``verdict.txt.jinja``), and a few numbers to head it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from versatune_ray.evaluation.scores import AVERAGE
from versatune_ray.report.outcome import Outcomes, outcomes, scores_of, share_ends
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import STEADY
from versatune_ray.report.templates import sentences
from versatune_ray.report.writing import (
    change,
    count,
    decimal,
    duration,
    gain,
    percent,
    setting,
    short,
    sign,
    within,
)
from versatune_ray.runs.comparisons import Trial


@dataclass(frozen=True)
class Verdict:
    """What came of a run. ``opening`` says what it did, ``sentences`` what came of it, most
    important first; ``numbers`` head a page (label, value, note).
    """

    opening: str
    sentences: tuple[str, ...]
    numbers: tuple[tuple[str, str, str], ...] = ()


def verdict(run: RunData) -> Verdict:
    """The verdict on a run of any kind, every word of it read off its files."""
    result = outcomes(run)
    bare = run.compares or run.measures_only
    tuned = bool(result.domains or run.adjustments) and not (bare or run.detects_only)
    facts = _training(run, result) if tuned else {} if bare else _knowledge(run)
    last = next((one for one in reversed(run.adjustments) if one.step > 0), None)
    names = [short(name) for name in run.domains]
    facts |= {"run": run, "result": result, "names": names, "last": last}
    opening, *said = sentences("verdict.txt.jinja", _NOTHING | facts | _compared(run))
    if not (tuned or bare):
        known = 1 if facts.get("written") or facts.get("apart") else 0
        said = [" ".join([opening, *said[:known]]), *said[known:]]
    return Verdict(opening, tuple(said or [opening]), tuple(_numbers(run, result)) if tuned else ())


# what the template may ask for where there is nothing to say
_NOTHING: dict[str, Any] = dict.fromkeys(
    ("written", "apart", "ceilings", "judged", "losses", "asked", "beside", "adjusted", "forgotten")
) | {"stages": ()}


def _training(run: RunData, result: Outcomes) -> dict[str, Any]:
    """What came of a fine-tuning."""
    rows = [(row.verdict, short(row.domain)) for row in result.domains]
    judged = [(one, name) for one, name in rows if one is not None]
    losses, mean = result.losses, result.mean
    other = outcomes(run.baseline).mean if run.baseline else None
    pair = (mean and mean.loss.after, other and other.loss.after)
    degrees = [
        (value, name, one.step)
        for one in run.adjustments
        for name, value in (one.forgetting_degree or {}).items()
        if value is not None
    ]
    return {
        "judged": len(judged),
        "better": [name for one, name in judged if one > 0],
        "worse": [name for one, name in judged if one < 0],
        "unclear": [name for one, name in judged if one == 0],
        "losses": [f"{short(name)} {change(moved)}" for moved, name in losses],
        "fell": sum(moved < -STEADY for moved, _ in losses),
        "rose": sum(moved > STEADY for moved, _ in losses),
        "asked": next((r for r in (mean, *result.domains) if r and r.exact.move is not None), None),
        "beside": pair if None not in pair else None,
        "stages": list(dict.fromkeys(short(r.stage) for r in run.adjustments if r.stage)),
        "forgotten": max(degrees, default=None),
    } | _moved(run)


def _moved(run: RunData) -> dict[str, Any]:
    """Which shares went up and down."""
    first, last = share_ends(run) or ({}, {})
    pairs = [(first.get(name), last.get(name), short(name)) for name in run.domains]
    moves = sorted(
        (b - a, f"{name} ({percent(a)} → {percent(b)})")
        for a, b, name in pairs
        if a is not None and b is not None
    )
    return {
        "adjusted": sum(bool(one.share) for one in run.adjustments) - 1 if first else 0,
        "more": [told for move, told in reversed(moves) if move > STEADY],
        "less": [told for move, told in moves if move < -STEADY],
    }


def _knowledge(run: RunData) -> dict[str, Any]:
    """What a model knows, or several do, and what there is to learn."""
    found: dict[str, Any] = {"ceilings": list(_ceilings(run))}
    called = [(short(one.called), one) for one in run.detections]
    if len(called) == 1:
        ((_, one),) = called
        pairs = sorted(zip(one.start.share, one.domains, strict=True), reverse=True)
        shown = [f"{short(name)} ({percent(share)})" for share, name in pairs]
        about = {"samples": one.samples, "shares": shown, "corrected": one.used == "corrected"}
        about["guessed"] = bool(one.judge_quality and one.judge_quality.guesses)
        return found | {"written": about if len(shown) > 1 else None}
    apart, widest = None, 0.0
    for domain in run.domains:
        ends = sorted(
            (one.start.share[one.domains.index(domain)], name)
            for name, one in called
            if domain in one.domains
        )
        if ends and ends[-1][0] - ends[0][0] > widest:
            widest = ends[-1][0] - ends[0][0]
            low, high = (f"{percent(share)} ({name})" for share, name in (ends[0], ends[-1]))
            apart = {"name": domain, "low": low, "high": high}
    return found | {"apart": apart}


def _ceilings(run: RunData) -> Iterator[str]:
    for name, one in (run.reference.domains if run.reference else {}).items():
        before = one.curve[0].held_out if one.curve else None
        if before and one.loss is not None:
            less = percent(max(1 - one.loss / before, 0))
            yield f"{less} in {short(name)} ({decimal(before)} → {decimal(one.loss)})"


def changes_text(trial: Trial) -> str:
    """What a trial changed: ``ε 0.5, δ 0.1``."""
    parts = [f"{sign(key)} {setting(value)}" for key, value in trial.changes.items()]
    return ", ".join(parts) or trial.trial


def _compared(run: RunData) -> dict[str, Any]:
    """What benchmarks, a sweep and a study found."""
    found = {name: row[AVERAGE] for name, row in scores_of(run).items() if AVERAGE in row}
    ranked = sorted(found.items(), key=lambda item: -item[1].value)
    pairs = [(name, f"{percent(one.value)} {within(one.error)}") for name, one in ranked]
    best, study = run.sweep.best if run.sweep else None, run.study[0] if run.study else None
    away = {name: one for name, one in (study.differences if study else {}).items() if one}
    clear = [(f"“{short(name)}”", one) for name, one in away.items() if one.clear_among_all]
    return {
        "averages": [f"{short(name)} {told.rstrip()}" for name, told in pairs],
        "benchmarks": len({(one.domain, one.benchmark) for one in run.benchmarks}),
        "best": changes_text(best) if best else "",
        "methods": len({method for one in run.study for method in one.rows}),
        "seeds": max((n for one in run.study for n in one.seeds), default=0),
        "single": all(one.half_width is None for one in away.values()),
        "below": [name for name, one in clear if (one.mean or 0) < 0],
        "above": [name for name, one in clear if (one.mean or 0) >= 0],
    }


def _numbers(run: RunData, result: Outcomes) -> Iterable[tuple[str, str, str]]:
    """Four or five numbers for the head of a page."""
    if not result.domains:
        return
    mean, losses = result.mean or result.domains[0], result.losses
    over = "mean over domains" if result.mean else short(mean.domain)
    loss, exact = mean.loss, mean.exact
    if loss.relative is not None:
        arrow = f"{decimal(loss.before)} → {decimal(loss.after)}"
        yield "held-out loss", change(loss.relative), f"{arrow}, {over}"
    if exact.move is not None:
        error = f"{within(exact.error)}, " if exact.error else ""
        arrow = f"{percent(exact.before)} → {percent(exact.after)}"
        yield "exact match", f"{gain(exact.move)} points", f"{error}{arrow}"
    if len(losses) > 1:
        worst, name = losses[-1]
        label = "most forgotten" if worst > 0 else "least gained"
        yield label, change(worst), f"loss in {short(name)}"
    if ends := share_ends(run):
        shares = [[end.get(name) or 0 for name in run.domains] for end in ends]
        moved = sum(abs(b - a) for a, b in zip(*shares, strict=True)) / 2
        yield "share moved", percent(moved), "from the first mixture to the last"
    if run.seconds:
        trained = f"{count(run.adjustments[-1].step)} optimizer steps" if run.adjustments else ""
        yield "time", duration(run.seconds), trained
