"""What came of a run, in words, and a few numbers to head it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from versatune_ray.evaluation.scores import AVERAGE
from versatune_ray.report.outcome import Outcomes, outcomes, scores_of, share_ends
from versatune_ray.report.read import RunData
from versatune_ray.report.tables import STEADY
from versatune_ray.report.writing import (
    count,
    decimal,
    duration,
    listing,
    percent,
    plural,
    setting,
    short,
    sign,
    signed_percent,
    signed_points,
)
from versatune_ray.runs.comparisons import StudyTable, Trial


@dataclass(frozen=True)
class Verdict:
    """What came of a run. ``sentences`` say it, most important first; ``numbers`` head a page
    (label, value, note).
    """

    sentences: tuple[str, ...]
    numbers: tuple[tuple[str, str, str], ...] = ()


def verdict(run: RunData) -> Verdict:
    """The verdict on a run of any kind, every word of it read off its files."""
    result = outcomes(run)
    if run.compares:
        return Verdict(tuple(_compared(run)))
    if run.measures_only:
        return Verdict((" ".join(_benchmarks(run)),))
    if run.detects_only or not (result.domains or run.adjustments):
        first = " ".join([opening(run), *_detections(run)])
        return Verdict((first, *_ceilings(run), *_benchmarks(run), *_compared(run)))
    judged = {}
    for row in result.domains:
        known = row.exact if row.exact.error else row.loss
        good = known.move or 0.0 if known is row.exact else -(known.move or 0.0)
        judged[row.domain] = ((good > 0) - (good < 0)) * known.clear if known.error else None
    better, worse, unclear = (
        tuple(short(name) for name, sign in judged.items() if sign == kind) for kind in (1, -1, 0)
    )
    said = [
        *_beyond(better, worse, unclear, len(judged)),
        *_losses(result),
        *_exact(result),
        *_beside(run, result),
    ]
    said += [*_moved(run), *_forgetting(run), *_benchmarks(run), *_compared(run)]
    said = said or [opening(run)]
    return Verdict(tuple(said), tuple(_numbers(run, result)) if result.domains else ())


def _beyond(
    better: Sequence[str], worse: Sequence[str], unclear: Sequence[str], domains: int
) -> list[str]:
    if not (better or worse or unclear):
        return []
    parts = [f"better in {listing(better)}"] if better else []
    parts += [f"worse in {listing(worse)}" if worse else "worse in none"]
    rest = f"; in {listing(unclear)} the change is within the error" if unclear else ""
    if not better and not worse:
        return ["No domain changed by more than two standard errors."]
    if len(better) == domains > 1:
        return ["Better in every domain, beyond two standard errors."]
    told = " and ".join(parts)
    return [f"{told[0].upper()}{told[1:]}, beyond two standard errors{rest}."]


def _losses(result: Outcomes) -> list[str]:
    rows = [(row.loss.relative, short(row.domain)) for row in result.domains]
    changes = sorted((change, name) for change, name in rows if change is not None)
    if not changes:
        return []
    source = "Held-out loss" if result.evaluated else "The measured loss (first to last adjustment)"
    counts = {
        "fell": sum(change < -STEADY for change, _ in changes),
        "rose": sum(change > STEADY for change, _ in changes),
    }
    parts = [
        f"{word} in every domain" if n == len(changes) else f"{word} in {n} of {len(changes)}"
        for word, n in counts.items()
        if n
    ]
    scope = " and ".join(parts) or "hardly moved"
    shown = [f"{name} {signed_percent(change)}" for change, name in changes]
    told = listing(shown) if len(changes) <= 6 else f"from {shown[0]} to {shown[-1]}"
    return [f"{source} {scope}: {told}."]


def _exact(result: Outcomes) -> list[str]:
    rows = [row for row in result.domains if row.exact.move is not None]
    if not rows:
        return []
    mean = result.mean or rows[0]
    scope = "on average over the domains" if result.mean else f"in {short(rows[0].domain)}"
    before, after = percent(mean.exact.before), percent(mean.exact.after)
    return [f"Exact match on the questions went from {before} to {after} {scope}."]


def _beside(run: RunData, result: Outcomes) -> list[str]:
    """How the mean loss stands to that of the run beside it."""
    other = outcomes(run.baseline).mean if run.baseline else None
    mean = result.mean
    if other is None or mean is None or mean.loss.after is None or not other.loss.after:
        return []
    away = signed_percent(mean.loss.after / other.loss.after - 1)
    pair = f"{decimal(mean.loss.after)} against {decimal(other.loss.after)}"
    return [f"The mean loss is {pair} with {short(run.baseline_name)} ({away}), one run each."]


_POLICIES = {
    "constant": "kept the starting shares all along",
    "versatune": "moved the shares towards what could still be learned",
    "expansion": "raised the targets while the other domains forgot little",
    "balanced": "moved the shares from equal ones towards what lags behind",
}


def _moved(run: RunData) -> list[str]:
    rows = [one for one in run.adjustments if one.share]
    if len(rows) < 2:
        return []
    stages = list(dict.fromkeys(short(one.stage) for one in rows if one.stage is not None))
    if len(stages) > 1:
        return [f"It went through {plural(len(stages), 'stage')}: {listing(stages, 6)}."]
    done = _POLICIES.get(str(run.setting("mixture.policy")), "set the shares")
    opening = f"The controller {done}, with {plural(len(rows) - 1, 'adjustment')}"
    first, last = rows[0].share, rows[-1].share
    moves = sorted(
        ((last.get(name) or 0) - (first.get(name) or 0), name)
        for name in run.domains
        if name in first and name in last
    )

    def told(names: Iterable[str]) -> str:
        pairs = [f"{short(one)} ({percent(first[one])} → {percent(last[one])})" for one in names]
        return listing(pairs, 3)

    more = [name for move, name in reversed(moves) if move > STEADY]
    less = [name for move, name in moves if move < -STEADY]
    if not more and not less:
        return [f"{opening}; no domain’s share changed noticeably."]
    parts = [f"gave more to {told(more)}"] if more else []
    parts += [f"less to {told(less)}"] if less else []
    return [f"{opening}: it {' and '.join(parts)}."]


def _forgetting(run: RunData) -> list[str]:
    degrees = [
        (value, name, one.step)
        for one in run.adjustments
        for name, value in (one.forgetting_degree or {}).items()
        if value is not None
    ]
    if not degrees:
        return []
    largest, name, step = max(degrees)
    if largest <= 0:
        return ["Nothing was forgotten: no domain’s loss rose between two measurements."]
    where = f"{percent(largest)} in {short(name)}, at step {count(step)}"
    return [f"The largest forgetting between two measurements was a loss rise of {where}."]


def _numbers(run: RunData, result: Outcomes) -> Iterable[tuple[str, str, str]]:
    """Four or five numbers for the head of a page."""
    mean = result.mean or result.domains[0]
    over = "mean over domains" if result.mean else short(mean.domain)
    if mean.loss.relative is not None:
        arrow = f"{decimal(mean.loss.before)} → {decimal(mean.loss.after)}"
        yield "held-out loss", signed_percent(mean.loss.relative), f"{arrow}, {over}"
    if mean.exact.move is not None:
        error = f"± {100 * mean.exact.error:.1f}, " if mean.exact.error else ""
        arrow = f"{percent(mean.exact.before)} → {percent(mean.exact.after)}"
        yield "exact match", f"{signed_points(mean.exact.move)} points", f"{error}{arrow}"
    changes = [(row.loss.relative, row.domain) for row in result.domains]
    known = [(change, name) for change, name in changes if change is not None]
    if len(known) > 1:
        worst, name = max(known)
        label = "most forgotten" if worst > 0 else "least gained"
        yield label, signed_percent(worst), f"loss in {short(name)}"
    ends = share_ends(run)
    if ends:
        first, last = ends
        moved = sum(abs((last.get(one) or 0) - (first.get(one) or 0)) for one in run.domains) / 2
        yield "share moved", percent(moved), "from the first mixture to the last"
    steps = run.timings.steps if run.timings else []
    if spent := sum(one.seconds or 0 for one in steps):
        trained = f"{count(run.adjustments[-1].step)} optimizer steps" if run.adjustments else ""
        yield "time", duration(spent), trained


def _model(run: RunData) -> str:
    if run.setting("detection.models") or not run.config:
        names = [one.called for one in run.detections]
        return names[0] if len(names) == 1 else "several base models" if names else "a base model"
    return str(run.setting("model.path") or "a tiny base model made for this run")


def opening(run: RunData) -> str:
    """One sentence that says what the run did to what."""
    k = len(run.domains)
    names = listing([short(name) for name in run.domains])
    domains = f"{plural(k, 'domain')} ({names})" if k else "domains that are not known yet"
    if run.detects_only:
        several = len(run.detections) > 1
        whom = f"{len(run.detections)} base models know" if several else f"{_model(run)} knows"
        return f"This run detected what {whom} of {domains}."
    last = next((one for one in reversed(run.adjustments) if one.step > 0), None)
    if last is None:
        return f"This run is about {_model(run)} and {domains}; it has not been fine-tuned yet."
    epochs = "" if last.epoch is None else f" ({last.epoch:.3g} epoch{'s' * (last.epoch != 1)})"
    long = f"{count(last.step)} optimizer steps{epochs} up to the last measurement"
    return f"This run fine-tuned {_model(run)} on {domains}, for {long}."


def _ceilings(run: RunData) -> list[str]:
    """What there is to learn, where that was measured."""
    found = []
    for name, one in (run.reference.domains if run.reference else {}).items():
        before = one.curve[0].held_out if one.curve else None
        if before and one.loss is not None:
            less = 1 - one.loss / before
            much = f"{percent(max(less, 0))} in {short(name)}"
            found.append(f"{much} ({decimal(before)} → {decimal(one.loss)})")
    return [f"Alone, a domain’s loss can fall by so much: {listing(found)}."] if found else []


def _benchmarks(run: RunData) -> list[str]:
    """The averages of all models on benchmarks."""
    found = {name: row[AVERAGE] for name, row in scores_of(run).items() if AVERAGE in row}
    if not found:
        return []
    measured = plural(len({(one.domain, one.benchmark) for one in run.benchmarks}), "benchmark")
    models = plural(len(found), "model")
    said = f"{models} were measured on {measured}."
    said = f"This run measured {models} on {measured}." if run.measures_only else said
    ranked = sorted(found.items(), key=lambda item: -item[1].value)
    errors = {
        name: f" ± {100 * one.error:.1f}" if one.error is not None else "" for name, one in ranked
    }
    told = [f"{short(name)} {percent(one.value)}{errors[name]}" for name, one in ranked]
    return [said, f"The averages over their domains are {listing(told)}."]


def changes_text(trial: Trial) -> str:
    """What a trial changed: ``ε 0.5, δ 0.1``."""
    parts = [f"{sign(key)} {setting(value)}" for key, value in trial.changes.items()]
    return ", ".join(parts) or trial.trial


def _compared(run: RunData) -> list[str]:
    """What a sweep, a study and a replay were about and what came of them."""
    found = []
    if run.sweep and run.sweep.trials:
        keys = listing([short(key) for key in run.sweep.keys])
        told = f"This run searched {keys} in {plural(len(run.sweep.trials), 'trial')}."
        if best := run.sweep.best:
            score = percent(best.score, 2)
            told += f" The best had {short(changes_text(best), 120)}, with a score of {score}."
        found.append(told)
    if run.study:
        names = {method for one in run.study for method in one.rows}
        seeds = max((n for one in run.study for n in one.seeds), default=0)
        over = f" over {plural(seeds, 'seed')}" if seeds else ""
        told = f"This run compared {plural(len(names), 'method')}{over}."
        found.append(f"{told} {_told_apart(run.study[0])}")
    if run.replay and run.replay.settings:
        others = plural(len(run.replay.settings), "other setting")
        found.append(f"Recorded losses were put through {others}, without training.")
    if run.compares and not found:
        found.append("This run compares settings; what it found could not be read.")
    return found


def _told_apart(study: StudyTable) -> str:
    """Which methods a table tells from its baseline, among all of them; its title says whether
    lower or higher is better.
    """
    differences = [(name, one) for name, one in study.differences.items() if one is not None]
    if all(one.half_width is None for _, one in differences):
        return "One seed gives no intervals, so no method is told apart from another."
    clear = [
        (f"“{short(name)}”", one.mean or 0) for name, one in differences if one.clear_among_all
    ]
    parts = []
    for side, below in (("below", True), ("above", False)):
        names = [name for name, mean in clear if (mean < 0) == below]
        parts += [
            f"{listing(names, 4)} {'is' if len(names) == 1 else 'are'} clearly {side}"
        ] * bool(names)
    told = " and ".join(parts) or "no method is clearly apart from"
    return f"{short(study.title, 80)}: {told} “{short(study.baseline)}”."


def _detections(run: RunData) -> list[str]:
    if len(run.detections) == 1:
        found, names = run.detections[0].start, run.detections[0].domains
        order = sorted(range(len(names)), key=lambda index: -found.share[index])
        shown = [f"{short(names[k])} ({percent(found.share[k])})" for k in order]
        if len(shown) < 2:
            return []
        of = run.detections[0].samples
        read = f"in {count(of)} generations " if of else ""
        amended = ", corrected by the judge’s measured confusions" * (
            run.detections[0].used == "corrected"
        )
        return [
            f"What it writes {read}is most of all {shown[0]} and least of all {shown[-1]}{amended}."
        ]
    spans = []
    for name in run.domains:
        there = [one for one in run.detections if name in one.domains]
        ends = sorted(
            (one.start.share[one.domains.index(name)], short(one.called)) for one in there
        )
        spans += [(ends[-1][0] - ends[0][0], name, ends[0], ends[-1])] if ends else []
    width, name, low, high = max(spans, default=(0.0, "", (0.0, ""), (0.0, "")))
    if width <= 0:
        return []
    ends_told = f"from {percent(low[0])} ({low[1]}) to {percent(high[0])} ({high[1]})"
    return [f"They differ most in {short(name)}: {ends_told} of what they write."]
