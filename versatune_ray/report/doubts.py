"""What a reader should doubt: of detections, one sentence per kind of doubt, naming the models; of
fine-tuning, what it warned of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from versatune_ray.report.data import Adjustment, RunData
from versatune_ray.report.detections import Detection, JudgeQuality
from versatune_ray.report.outcome import Outcomes
from versatune_ray.report.writing import count, decimal, listing, ordinal, percent, short

_LEFT_OUT = 0.05  # part of the generations that may be discarded, or degenerate, without a word
_DISTINCT = 0.9  # part of the texts that should differ from each other …
_FEW = 100  # … where there are at least so many
_CHANCE = 0.9  # log loss of a judge that knows nothing, relative to chance
_MASS = 0.5
_DIFFER = 0.001  # p-value below which repeats do not look like repeats
_POSITION = 0.02  # liking for a place in the list of options, in probability …
_ERRORS = 3  # … and in standard errors
_WARNINGS = 8  # shown; a run of a thousand adjustments may have told many
_LETTERS = 500  # of a warning, whose domains may have any names


def doubts(detections: Sequence[Detection], failed: Iterable[str]) -> list[str]:
    """The sentences, most serious first; none where nothing is odd."""
    names = [short(name) for name in failed]
    found = (
        [f"{listing(names)} could not be detected; the reasons are under “Detected shares”."]
        if names
        else []
    )
    found += _judge(detections)
    kinds: tuple[tuple[str, Callable[[Detection], str]], ...] = (
        (
            "Repeats should agree, but differ more than chance allows: {}. The intervals come from "
            "the repeats, and are wide.",
            _differ,
        ),
        ("The tolerance was not reached: {}. More generations would be needed.", _tolerance),
        (
            "Many generations could not be judged and were discarded: {}. If some domains are "
            "discarded more often, the shares are off.",
            _lost,
        ),
        ("Many generations only repeat a few tokens: {}.", _degenerate),
        (
            "Many generations are the same text as another: {}. Small models repeat themselves; in "
            "large ones look at the sampling.",
            _same,
        ),
        ("The judge likes some places in the list of options better than others: {}.", _position),
        (
            "The judge’s confusions move some shares further than their intervals: {}. It matters "
            "which of the two is used.",
            _moved,
        ),
    )
    for sentence, about in kinds:
        told = [
            f"{short(detection.called)} ({text})"
            for detection in detections
            if (text := about(detection))
        ]
        found += [sentence.replace("{}", listing(told))] if told else []
    return found


def of_adjustments(adjustments: Sequence[Adjustment]) -> list[str]:
    """The warnings of fine-tuning as they came, with their steps; of many, the first ones and how
    many more there are.
    """
    lines = [
        (adjustment.step, short(warning, _LETTERS))
        for adjustment in adjustments
        for warning in adjustment.warnings
    ]
    found = [f"At step {count(step)}: {warning}." for step, warning in lines[:_WARNINGS]]
    left = len(lines) - len(found)
    return found + (
        [f"Fine-tuning warned {count(left)} more times; see finetune/adjustments.jsonl."]
        if left
        else []
    )


def judges(detections: Sequence[Detection]) -> list[tuple[list[Detection], JudgeQuality]]:
    """Each judge’s quality once, with the detections that share it: mostly one judge reads all
    models.
    """
    groups: list[tuple[list[Detection], JudgeQuality]] = []
    for detection in detections:
        quality = detection.judge_quality
        if quality is None:
            continue
        same = next(
            (
                group
                for group, other in groups
                if other == quality and group[0].domains == detection.domains
            ),
            None,
        )
        if same is None:
            groups.append(([detection], quality))
        else:
            same.append(detection)
    return groups


def _judge(detections: Sequence[Detection]) -> list[str]:
    groups = judges(detections)
    found = []
    for group, quality in groups:
        whom = (
            "The judge"
            if len(groups) == 1
            else f"The judge of {listing([short(detection.called) for detection in group])}"
        )
        if (
            quality.log_loss is not None
            and quality.chance is not None
            and quality.log_loss >= _CHANCE * quality.chance
        ):
            numbers = f"{decimal(quality.log_loss, 2)} nats, chance {decimal(quality.chance, 2)}"
            found.append(
                f"{whom} is hardly better than chance (log loss {numbers}): mend its prompt or "
                f"choose another before believing the shares."
            )
        if quality.mass is not None and quality.mass < _MASS:
            found.append(
                f"{whom} puts only {percent(quality.mass, 0)} of its probability on the options: "
                f"it wants to answer something else."
            )
    return found


def _differ(detection: Detection) -> str:
    return (
        "p < 0.001"
        if detection.repeats_differ is not None and detection.repeats_differ < _DIFFER
        else ""
    )


def _tolerance(detection: Detection) -> str:
    found = detection.tolerance
    if (
        found is None
        or found.asked is None
        or found.reached is None
        or found.reached <= found.asked
    ):
        return ""
    return (
        f"± {decimal(100 * found.reached, 2)} points instead of ± {decimal(100 * found.asked, 2)}"
    )


def _lost(detection: Detection) -> str:
    return _part(detection.discarded.total, detection.samples) if detection.discarded else ""


def _degenerate(detection: Detection) -> str:
    found = detection.generations
    told = _part(found.degenerate, detection.samples) if found else ""
    return (
        f"{told}, {'left out' if found.degenerate_excluded else 'counted in the shares'}"
        if found and told
        else ""
    )


def _same(detection: Detection) -> str:
    distinct = detection.generations.distinct if detection.generations else None
    if (
        distinct is None
        or not detection.samples
        or detection.samples < _FEW
        or distinct >= _DISTINCT * detection.samples
    ):
        return ""
    return f"{count(distinct)} different texts in {count(detection.samples)}"


def _position(detection: Detection) -> str:
    found = detection.positions
    if found is None or not found.standard_error:
        return ""
    even = 1 / len(found.share)
    away = [
        (abs(share - even), place, share)
        for place, (share, error) in enumerate(
            zip(found.share, found.standard_error, strict=True), 1
        )
        if error is not None and abs(share - even) > max(_ERRORS * error, _POSITION)
    ]
    if not away:
        return ""
    _, place, share = max(away)
    return f"the {ordinal(place)} gets {percent(share)} instead of {percent(even)}"


def _moved(detection: Detection) -> str:
    if detection.amended is None:
        return ""
    apart = []
    for index, name in enumerate(detection.domains):
        (low, high), (least, most) = detection.raw.ci95[index], detection.amended.ci95[index]
        if (
            low is not None
            and high is not None
            and least is not None
            and most is not None
            and (high < least or most < low)
        ):
            move = f"{percent(detection.share[index])} → {percent(detection.amended.share[index])}"
            apart.append(
                (
                    abs(detection.share[index] - detection.amended.share[index]),
                    f"{short(name)} {move}",
                )
            )
    return listing([told for _, told in sorted(apart, reverse=True)], 3)


def _part(some: int | None, total: int | None) -> str:
    return percent(some / total) if some is not None and total and some > _LEFT_OUT * total else ""


def warnings(run: RunData, result: Outcomes) -> tuple[str, ...]:
    """What a careful reader should look at twice: doubtful detections, what fine-tuning warned of,
    and failure signs.
    """
    found = doubts(run.detections, run.failed) + of_adjustments(run.adjustments)
    lost = [trial for trial in run.sweep.trials if trial.error is not None] if run.sweep else []
    if lost:
        told_how = (
            "its error is in the table of trials"
            if len(lost) == 1
            else "their errors are in the table of trials"
        )
        found.append(
            f"{count(len(lost))} of {count(len(run.sweep.trials if run.sweep else ()))} trials "
            f"failed; {told_how}."
        )
    changes = [row.loss_change for row in result.domains if row.loss_change is not None]
    if len(changes) > 1 and all(change > 0 for change in changes):
        found.append(
            "The held-out loss rose in every domain. Check the learning rate, the data, and "
            "whether the detected shares are right."
        )
    if run.adjustments:
        last = run.adjustments[-1]
        start = next(one for one in run.adjustments if one.stage == last.stage).share
        starved = [
            short(name)
            for name, share in last.share.items()
            if share is not None and share < 0.001 <= (start.get(name) or 0)
        ]
        if starved:
            found.append(
                f"The final share of {listing(starved)} is below {percent(0.001)}: hardly any "
                f"sample of it is drawn any more."
            )
    repeated = [short(name) for name, passes in _last_passes(run).items() if passes > 10]
    if repeated:
        found.append(
            f"Records of {listing(repeated)} were repeated more than ten times; watch for "
            f"memorising."
        )
    return tuple(found)


def _last_passes(run: RunData) -> dict[str, float]:
    for adjustment in reversed(run.adjustments):
        if adjustment.passes:
            return {name: value for name, value in adjustment.passes.items() if value is not None}
    return {}
