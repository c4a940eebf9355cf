"""What a reader should doubt: one sentence per kind of doubt, with the final values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from versatune_ray.report.outcome import Outcomes
from versatune_ray.report.read import RunData
from versatune_ray.report.writing import count, decimal, listing, percent, points, short
from versatune_ray.runs.artefacts import Adjustment, Detection, JudgeQuality
from versatune_ray.runs.thresholds import LOW_MASS, REPEATS_DIFFER

_LEFT_OUT = 0.05  # part of the generations that may be discarded, or degenerate, without a word
_DISTINCT, _FEW = 0.9, 100  # part of the texts that should differ, where there are so many
_CHANCE = 0.9  # log loss of a judge that knows nothing, relative to chance
_POSITION, _ERRORS = 0.02, 3  # liking for a place in a list, in probability and standard errors
_LETTERS = 500  # of a warning, whose domains may have any names


def warnings(run: RunData, result: Outcomes) -> list[str]:
    """Doubtful detections, what fine-tuning warned of, and signs of failure."""
    found = [*doubts(run.detections, run.failed), *of_adjustments(run.adjustments)]
    trials = run.sweep.trials if run.sweep else ()
    if lost := sum(one.error is not None for one in trials):
        whose = "its error is" if lost == 1 else "their errors are"
        part = f"{count(lost)} of {count(len(trials))} trials failed"
        found.append(f"{part}; {whose} in the table of trials.")
    if len(result.losses) > 1 and result.losses[0][0] > 0:
        look = "Check the learning rate, the data, and whether the detected shares are right."
        found.append(f"The held-out loss rose in every domain. {look}")
    if starved := list(_starved(run.adjustments)):
        end = f"The final share of {listing(starved)} is below {percent(0.001)}"
        found.append(f"{end}: hardly any sample of it is drawn any more.")
    passes = last_passes(run).items()
    often = [f"{short(name)} ({decimal(times, 1)} times)" for name, times in passes if times > 10]
    if often:
        found.append(f"Records were repeated in {listing(often)}; watch for memorising.")
    return found


def _starved(adjustments: Sequence[Adjustment]) -> Iterator[str]:
    """Domains whose share died within the last stage."""
    for last in adjustments[-1:]:
        start = next(one.share for one in adjustments if one.stage == last.stage)
        for name, end in last.share.items():
            if end is not None and end < 0.001 <= (start.get(name) or 0):
                yield short(name)


def last_passes(run: RunData) -> dict[str, float]:
    """How often each domain's records were gone through by the end."""
    found = next((one.passes for one in reversed(run.adjustments) if one.passes), None) or {}
    return {name: often for name, often in found.items() if often is not None}


def of_adjustments(adjustments: Sequence[Adjustment]) -> list[str]:
    """The warnings of fine-tuning, merged by kind: what was said last, when, and how often."""
    kinds: dict[str, list[tuple[int, str]]] = {}
    for one in adjustments:
        for text in one.warnings:
            # the words before the first name or number, and after the last: the values between move
            head, tail = re.split(r" in | of | \(", text)[0], text.rpartition(": ")[2]
            kinds.setdefault(re.sub(r"[\d.,]+", "", head + tail), []).append((one.step, text))
    found = []
    for told in kinds.values():
        (first, _), (last, text) = told[0], told[-1]
        when = f"said at step {count(last)}"
        if len(told) > 1:
            when = f"said {count(len(told))} times from step {count(first)} to {count(last)}"
        found.append(f"{text[0].upper()}{short(text[1:], _LETTERS)} ({when}).")
    return found


def judges(detections: Sequence[Detection]) -> list[tuple[list[Detection], JudgeQuality]]:
    """Each judge’s quality once, with the detections that share it: mostly one reads all models."""
    groups: list[tuple[list[Detection], JudgeQuality]] = []
    for one in detections:
        quality, names = one.judge_quality, one.domains
        same = (who for who, other in groups if other == quality and who[0].domains == names)
        if quality is not None and (group := next(same, None)) is not None:
            group.append(one)
        elif quality is not None:
            groups.append(([one], quality))
    return groups


def doubts(detections: Sequence[Detection], failed: Iterable[str]) -> list[str]:
    """The sentences about detections, most serious first; none where nothing is odd."""
    names = listing([short(name) for name in failed])
    reasons = "the reasons are under “Detected shares”"
    found = [f"{names} could not be detected; {reasons}."] if names else []
    groups = judges(detections)
    for group, quality in groups:
        of = f" of {listing([short(one.called) for one in group])}" if len(groups) > 1 else ""
        found += [f"The judge{of} {told}." for told in _of_judge(quality)]
    for about, sentence in _KINDS.items():
        pairs = ((short(one.called), about(one)) for one in detections)
        told = [f"{name} ({text})" for name, text in pairs if text]
        found += [sentence.replace("{}", listing(told))] if told else []
    return found


def _of_judge(quality: JudgeQuality) -> Iterator[str]:
    loss, chance, mass = quality.log_loss, quality.chance, quality.mass
    if loss is not None and chance is not None and loss >= _CHANCE * chance:
        numbers = f"log loss {decimal(loss, 2)} nats, chance {decimal(chance, 2)}"
        mend = "mend its prompt or choose another before believing the shares"
        yield f"is hardly better than chance ({numbers}): {mend}"
    if mass is not None and mass < LOW_MASS:
        part = f"only {percent(mass, 0)} of its probability on the options"
        yield f"puts {part}: it wants to answer something else"


def _differ(one: Detection) -> str:
    p = one.repeats_differ
    return f"p < {REPEATS_DIFFER}" if p is not None and p < REPEATS_DIFFER else ""


def _tolerance(one: Detection) -> str:
    asked, reached = (one.tolerance.asked, one.tolerance.reached) if one.tolerance else (None, None)
    if asked is None or reached is None or reached <= asked:
        return ""
    return f"± {points(reached, 2)} points instead of ± {points(asked, 2)}"


def _lost(one: Detection) -> str:
    return _part(one.discarded.total, one.samples) if one.discarded else ""


def _degenerate(one: Detection) -> str:
    made = one.generations
    told = _part(made.degenerate, one.samples) if made else ""
    counted = "left out" if made and made.degenerate_excluded else "counted in the shares"
    return f"{told}, {counted}" if told else ""


def _part(some: int | None, total: int | None) -> str:
    return percent(some / total) if some is not None and total and some > _LEFT_OUT * total else ""


def _same(one: Detection) -> str:
    distinct, n = one.generations.distinct if one.generations else None, one.samples or 0
    few = distinct is not None and n >= _FEW and distinct < _DISTINCT * n
    return f"{count(distinct)} different texts in {count(n)}" if few else ""


def _position(one: Detection) -> str:
    found = one.positions
    if found is None or not found.standard_error:
        return ""
    even = 1 / len(found.share)
    away = [
        (abs(share - even), place, share)
        for place, (share, error) in enumerate(zip(found.share, found.standard_error, strict=True))
        if error is not None and abs(share - even) > max(_ERRORS * error, _POSITION)
    ]
    _, place, share = max(away, default=(0, 0, None))
    told = f"place {place + 1} gets {percent(share)} instead of {percent(even)}"
    return told if away else ""


def _moved(one: Detection) -> str:
    """The shares whose two intervals do not meet, furthest first."""
    if one.amended is None:
        return ""
    apart = []
    ends = zip(one.raw.ci95, one.amended.ci95, strict=True)
    shares = zip(one.domains, one.share, one.amended.share, strict=True)
    for (name, before, after), ((low, high), (least, most)) in zip(shares, ends, strict=True):
        if low is None or high is None or least is None or most is None:
            continue
        if high < least or most < low:
            told = f"{short(name)} {percent(before)} → {percent(after)}"
            apart.append((abs(before - after), told))
    return listing([told for _, told in sorted(apart, reverse=True)], 3)


_KINDS: dict[Callable[[Detection], str], str] = {
    _differ: "Repeats should agree, but differ more than chance allows: {}. "
    "The intervals come from the repeats, and are wide.",
    _tolerance: "The tolerance was not reached: {}. More generations would be needed.",
    _lost: "Many generations could not be judged and were discarded: {}. "
    "If some domains are discarded more often, the shares are off.",
    _degenerate: "Many generations only repeat a few tokens: {}.",
    _same: "Many generations are the same text as another: {}. "
    "Small models repeat themselves; in large ones look at the sampling.",
    _position: "The judge likes some places in the list of options better than others: {}.",
    _moved: "The judge’s confusions move some shares further than their intervals: {}. "
    "It matters which of the two is used.",
}
