"""What came of a run, in numbers: per domain before and after, and each model's scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from versatune_ray.evaluation.scores import Score, scores
from versatune_ray.report.read import RunData
from versatune_ray.runs.artefacts import PerDomain, Result

_ERRORS = ("error_before", "error_after")


@dataclass(frozen=True)
class Change:
    """Before and after; ``error`` is the standard error of the difference, taken as of independent
    measurements, which is cautious. None: not known.
    """

    before: float | None = None
    after: float | None = None
    error_before: float | None = None
    error_after: float | None = None
    n: int | None = None

    @property
    def known(self) -> bool:
        """Whether there is anything."""
        return self.before is not None or self.after is not None

    @property
    def move(self) -> float | None:
        """after − before."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def relative(self) -> float | None:
        """(after − before) / before."""
        return self.move / self.before if self.move is not None and self.before else None

    @property
    def error(self) -> float | None:
        there = self.error_before is not None and self.error_after is not None
        return math.hypot(self.error_before or 0, self.error_after or 0) if there else None

    @property
    def beyond(self) -> float:
        """How far it moved, where that is more than two standard errors; else 0."""
        move, error = self.move or 0.0, self.error
        return move if error and abs(move) > 2 * error else 0.0


@dataclass(frozen=True)
class Outcome:
    """One domain before and after; exact matches are shares of 1."""

    domain: str
    loss: Change
    exact: Change

    @property
    def verdict(self) -> float | None:
        """Above 0: better, below: worse, 0: within the error; None: nothing with an error."""
        if self.exact.error:
            return self.exact.beyond
        return -self.loss.beyond if self.loss.error else None


@dataclass(frozen=True)
class Outcomes:
    """All domains in order, their plain mean, and whether the losses are of an evaluation."""

    domains: tuple[Outcome, ...]
    mean: Outcome | None
    evaluated: bool

    @property
    def all(self) -> list[Outcome]:
        """With the mean, if any, as the last."""
        return [*self.domains, self.mean] if self.mean else list(self.domains)

    @property
    def losses(self) -> list[tuple[float, str]]:
        """Relative changes, with their domains, the best first."""
        changes = ((one.loss.relative, one.domain) for one in self.domains)
        return sorted((change, name) for change, name in changes if change is not None)


def outcomes(run: RunData) -> Outcomes:
    """Before and after per domain, from the evaluation; losses fall back on the first and the last
    adjustment.
    """
    found = {(one.model, one.domain, one.benchmark, one.metric): one for one in run.results}

    def change(domain: str, benchmark: str, metric: str) -> Change:
        pair = [found.get((model, domain, benchmark, metric)) for model in ("base", "tuned")]
        (before, error_before), (after, error_after) = map(_share, pair)
        counted = pair[1] or pair[0]
        return Change(before, after, error_before, error_after, counted.n if counted else None)

    evaluated = any(one.benchmark == "held_out" and one.metric == "loss" for one in run.results)
    measured = [one.loss for one in run.adjustments if one.loss]
    tuned = [
        one.loss
        for one in run.adjustments
        if one.loss and (run.exported is None or one.step == run.exported.step)
    ]
    rows = []
    for domain in run.domains:
        loss = change(domain, "held_out", "loss")
        if not evaluated and tuned and len(measured) > 1:
            loss = Change(measured[0].get(domain), tuned[-1].get(domain))
        rows.append(Outcome(domain, loss, change(domain, "questions", "exact_match")))
    rows = [row for row in rows if row.loss.known or row.exact.known]
    losses = [row.loss for row in rows if row.loss.relative is not None]
    asked = [row.exact for row in rows if row.exact.move is not None]
    mean = None
    if len(rows) > 1 and (losses or asked):
        mean = Outcome("Mean over domains", _mean(losses), _mean(asked))
    return Outcomes(tuple(rows), mean, evaluated)


def _share(result: Result | None) -> tuple[float | None, float | None]:
    """Value and error; percentages as shares."""
    if result is None:
        return None, None
    whole = 100 if (result.unit or "").strip().lower() in ("%", "percent", "percentage") else 1
    value, error = result.value, result.standard_error
    return value and value / whole, error and error / whole


def _mean(changes: Sequence[Change]) -> Change:
    """Every domain counts the same; errors combine as those of independent domains."""

    def mean(key: str, total: Callable[[list[float]], float]) -> float | None:
        values = [getattr(one, key) for one in changes]
        return total(values) / len(values) if values and None not in values else None

    counts = [one.n for one in changes if one.n is not None]
    before, after = mean("before", sum), mean("after", sum)
    errors = [mean(key, lambda values: math.hypot(*values)) for key in _ERRORS]
    return Change(before, after, errors[0], errors[1], sum(counts) if counts else None)


def scores_of(run: RunData) -> dict[str, dict[str, Score]]:
    """Model → domain → score on the benchmarks, with the average."""
    fields = ("model", "domain", "benchmark", "value", "standard_error")
    kept = [one for one in run.benchmarks if one.value is not None]
    return scores([{name: getattr(one, name) for name in fields} for one in kept])


def share_ends(run: RunData) -> tuple[PerDomain, PerDomain] | None:
    """The first shares and the last ones, where there are two."""
    rows = [one.share for one in run.adjustments if one.share]
    return (rows[0], rows[-1]) if len(rows) > 1 else None
