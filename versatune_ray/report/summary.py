"""The run in a few plain sentences, each of them read off the data."""

from __future__ import annotations

from versatune_ray.evaluation.scores import AVERAGE
from versatune_ray.report.benchmarks import scores_of
from versatune_ray.report.data import RunData
from versatune_ray.report.detections import Detection
from versatune_ray.report.outcome import Outcomes
from versatune_ray.report.sweep_charts import changes_text
from versatune_ray.report.tuning import StudyTable
from versatune_ray.report.writing import (
    count,
    decimal,
    interval,
    listing,
    percent,
    short,
    signed_percent,
)

_POLICIES = {
    "constant": "kept the starting shares all along",
    "versatune": "moved the shares towards what could still be learned",
    "expansion": "raised the targets while the other domains forgot little",
}
_STEADY = 0.0005  # shares that move less than 0.05 percentage points are called unchanged


def summary(run: RunData, result: Outcomes) -> tuple[str, ...]:
    """Sentences for the top of the page: what was tuned, found, given and gained. What is not there
    is not mentioned.
    """
    opening = [] if run.compares or run.measures_only else [_opening(run)]
    sentences = [*opening, *_compared(run), *_detections(run), *_shares(run)]
    sentences += [*_losses(result), *_accuracy(result), *_forgetting(run), *_benchmarks(run)]
    return tuple(sentence for sentence in sentences if sentence)


def _opening(run: RunData) -> str:
    k = len(run.domains)
    domains = (
        f"{k} domain{'s' if k != 1 else ''} ({listing([short(name) for name in run.domains])})"
        if k
        else "domains that are not known yet"
    )
    training = [adjustment for adjustment in run.adjustments if adjustment.step > 0]
    if run.detects_only and len(run.detections) > 1:
        return f"This run detected what {len(run.detections)} base models know of {domains}."
    if run.detects_only:
        return f"This run detected what {_model(run)} knows of {domains}."
    if not training:
        return f"This run is about {_model(run)} and {domains}; it has not been fine-tuned yet."
    last = training[-1]
    epochs = (
        f" ({last.epoch:.3g} epoch{'' if last.epoch == 1 else 's'})"
        if last.epoch is not None
        else ""
    )
    return (
        f"This run fine-tuned {_model(run)} on {domains}, for {last.step:,} optimizer "
        f"steps{epochs} up to the last measurement."
    )


def _model(run: RunData) -> str:
    if run.setting("detection.models") or not run.config:
        return (
            run.detections[0].called
            if len(run.detections) == 1
            else "several base models"
            if run.detections
            else "a base model"
        )
    return str(run.setting("model.path") or "a tiny base model made for this run")


def _benchmarks(run: RunData) -> list[str]:
    """The averages of all models on benchmarks."""
    found = {name: row[AVERAGE] for name, row in scores_of(run).items() if AVERAGE in row}
    if not found:
        return []
    measured = _number(len({(one.domain, one.benchmark) for one in run.benchmarks}), "benchmark")
    models = _number(len(found), "model")
    opening = (
        f"This run measured {models} on {measured}."
        if run.measures_only
        else f"{models} were measured on {measured}."
    )
    ranked = sorted(found.items(), key=lambda item: -item[1].value)
    told = [
        f"{short(name)} {percent(one.value)}"
        + (f" ± {decimal(100 * one.error, 1)}" if one.error is not None else "")
        for name, one in ranked
    ]
    return [opening, f"The averages over their domains are {listing(told)}."]


def _compared(run: RunData) -> list[str]:
    """What a sweep, a study and a replay were about and what came of them."""
    found = []
    if run.sweep and run.sweep.trials:
        found.append(
            f"This run searched {listing([short(key) for key in run.sweep.keys])} in "
            f"{_number(len(run.sweep.trials), 'trial')}."
        )
        best = run.sweep.best
        found += (
            [
                f"The best had {short(changes_text(best), 120)}, with a score of "
                f"{percent(best.score, 2)}."
            ]
            if best
            else []
        )
    if run.study:
        names = {method for table in run.study for method in table.rows}
        seeds = max((n for table in run.study for n in table.seeds), default=0)
        over = f" over {_number(seeds, 'seed')}" if seeds else ""
        found.append(f"This run compared {_number(len(names), 'method')}{over}.")
        found += [_told_apart(table) for table in run.study[:1]]
    if run.replay and run.replay.settings:
        found.append(
            f"Recorded losses were put through "
            f"{_number(len(run.replay.settings), 'other setting')}, without training."
        )
    if run.compares and not found:
        found.append("This run compares settings; what it found could not be read.")
    return found


def _told_apart(table: StudyTable) -> str:
    """Which methods the first table tells from its baseline, among all of them; its title says
    whether lower or higher is better.
    """
    clear = [
        (f"“{short(name)}”", one)
        for name, one in table.differences.items()
        if one is not None and one.clear_among_all
    ]
    sides = [
        ("below", [name for name, one in clear if (one.mean or 0) < 0]),
        ("above", [name for name, one in clear if (one.mean or 0) > 0]),
    ]
    parts = [
        f"{listing(names, 4)} {'is' if len(names) == 1 else 'are'} clearly {side}"
        for side, names in sides
        if names
    ]
    if not parts and all(
        one is None or one.half_width is None for one in table.differences.values()
    ):
        return "One seed gives no intervals, so no method is told apart from another."
    told_apart = " and ".join(parts) if parts else "no method is clearly apart from"
    return f"{short(table.title, 80)}: {told_apart} “{short(table.baseline)}”."


def _number(n: int, thing: str) -> str:
    return f"{count(n)} {thing}{'s' if n != 1 else ''}"


def _detections(run: RunData) -> list[str]:
    if len(run.detections) < 2:
        return [sentence for detection in run.detections for sentence in _detected(detection)]
    spans = []
    for name in run.domains:
        found = [
            (item.start.share[item.domains.index(name)], short(item.called))
            for item in run.detections
            if name in item.domains
        ]
        spans.append(
            (max(found)[0] - min(found)[0], name, min(found), max(found))
            if found
            else (-1.0, name, (0.0, ""), (0.0, ""))
        )
    width, name, low, high = max(
        spans, key=lambda span: span[0], default=(0.0, "", (0.0, ""), (0.0, ""))
    )
    if width <= 0:
        return []
    return [
        f"They differ most in {short(name)}: from {percent(low[0])} ({low[1]}) to "
        f"{percent(high[0])} ({high[1]}) of what they write."
    ]


def _detected(detection: Detection) -> list[str]:
    found = detection.start
    order = sorted(range(len(detection.domains)), key=lambda index: -found.share[index])
    if not order:
        return []
    top, low = order[0], order[-1]
    spread = (
        f" (95 % interval {interval(*found.ci95[top])})" if found.ci95[top][0] is not None else ""
    )
    read = (
        f"From {detection.samples:,} of its own generations, detection"
        if detection.samples
        else "Detection"
    )
    amended = (
        ", corrected by the judge’s measured confusions," if found == detection.amended else ""
    )
    sentence = (
        f"{read}{amended} estimated what the base model knows: most of it is "
        f"{short(detection.domains[top])} "
        f"with {percent(found.share[top])}{spread}, least is {short(detection.domains[low])} with "
        f"{percent(found.share[low])}."
    )
    away = (
        detection.corrected.total_variation
        if amended and detection.corrected
        else detection.total_variation
    )
    if away is not None and detection.known is not None:
        sentence += (
            f" The pre-training mixture is known here, and the estimate is {percent(away)} away "
            f"from it (total variation)."
        )
    return [sentence]


def _shares(run: RunData) -> list[str]:
    rows = [adjustment for adjustment in run.adjustments if adjustment.share]
    if len(rows) < 2:
        return []
    stages = list(dict.fromkeys(short(row.stage) for row in rows if row.stage is not None))
    if len(stages) > 1:
        return [f"It went through {_number(len(stages), 'stage')}: {listing(stages, 6)}."]
    policy = run.setting("mixture.policy")
    opening = (
        f"The controller {_POLICIES.get(str(policy), 'set the shares')}, with {len(rows) - 1} "
        f"adjustment{'s' if len(rows) > 2 else ''}"
    )
    first, last = rows[0].share, rows[-1].share
    moves = sorted(
        (
            (after - before, name)
            for name in run.domains
            if (before := first.get(name)) is not None and (after := last.get(name)) is not None
        ),
        key=lambda move: -abs(move[0]),
    )
    more, less = (
        [name for move, name in moves if move > _STEADY],
        [name for move, name in moves if move < -_STEADY],
    )
    if not more and not less:
        return [opening + "; no domain’s share changed noticeably."]

    def listed(names: list[str]) -> str:
        return listing(
            [f"{short(name)} ({percent(first[name])} → {percent(last[name])})" for name in names], 3
        )

    parts = ([f"gave more to {listed(more)}"] if more else []) + (
        [f"less to {listed(less)}"] if less else []
    )
    return [f"{opening}: it {' and '.join(parts)}."]


def _losses(result: Outcomes) -> list[str]:
    changes = sorted(
        (row.loss_change, short(row.domain))
        for row in result.domains
        if row.loss_change is not None
    )
    if not changes:
        return []
    source = (
        "Held-out loss"
        if result.losses_from == "evaluation"
        else "The measured loss (first against last adjustment)"
    )
    fell, rose = [c for c in changes if c[0] < 0], [c for c in changes if c[0] > 0]
    if len(changes) <= 6:
        every = listing([f"{name} {signed_percent(change)}" for change, name in changes])
        verdict = (
            "fell in every domain"
            if len(fell) == len(changes)
            else f"fell in {len(fell)} of {len(changes)} domains"
        )
        return [f"{source} {verdict}: {every}."]
    sentence = (
        f"{source} fell in {len(fell)} of {len(changes)} domains; the change runs from "
        f"{signed_percent(changes[0][0])} ({changes[0][1]})"
    )
    return [
        f"{sentence} to {signed_percent(changes[-1][0])} ({changes[-1][1]})"
        + (f", and {len(rose)} rose." if rose else ".")
    ]


def _accuracy(result: Outcomes) -> list[str]:
    rows = [row for row in result.domains if row.accuracy_change is not None]
    if not rows:
        return []
    mean = result.mean or rows[0]
    better = [
        short(row.domain) for row in rows if row.accuracy_clear and (row.accuracy_change or 0) > 0
    ]
    worse = [
        short(row.domain) for row in rows if row.accuracy_clear and (row.accuracy_change or 0) < 0
    ]
    scope = "on average over the domains" if result.mean else f"in {short(rows[0].domain)}"
    told = [(word, names) for word, names in (("better", better), ("worse", worse)) if names]
    parts = [
        f"clearly {word} in {'every domain' if len(names) == len(rows) > 1 else listing(names)}"
        for word, names in told
    ]
    verdict = " and ".join(parts) if parts else "no domain changed by more than two standard errors"
    return [
        f"Exact match on the questions went from {percent(mean.accuracy_before)} to "
        f"{percent(mean.accuracy_after)} {scope}; {verdict}."
    ]


def _forgetting(run: RunData) -> list[str]:
    degrees = [
        (value, name, adjustment.step)
        for adjustment in run.adjustments
        for name, value in (adjustment.forgetting_degree or {}).items()
        if value is not None
    ]
    if not degrees:
        return []
    largest, name, step = max(degrees)
    if largest <= 0:
        return ["Nothing was forgotten: no domain’s loss rose between two measurements."]
    return [
        f"The largest forgetting between two measurements was a loss rise of {percent(largest)} in "
        f"{short(name)}, at step {step:,}."
    ]
