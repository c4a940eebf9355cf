"""What came of the run, per domain: the numbers behind the summary and the before/after table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from versatune_ray.report.data import OWN, Result, RunData
from versatune_ray.report.reading import Number

Key = tuple[str, str]  # (model, domain)


@dataclass(frozen=True)
class Outcome:
    """One domain before (``base``) and after (``tuned``). Accuracies are shares between 0 and 1."""

    domain: str
    loss_before: Number = None
    loss_after: Number = None
    records: int | None = None
    accuracy_before: Number = None
    accuracy_after: Number = None
    error_before: Number = None
    error_after: Number = None
    questions: int | None = None

    @property
    def loss_change(self) -> Number:
        """(after − before) / before."""
        if self.loss_before is None or self.loss_after is None or self.loss_before <= 0:
            return None
        return (self.loss_after - self.loss_before) / self.loss_before

    @property
    def accuracy_change(self) -> Number:
        """after − before."""
        if self.accuracy_before is None or self.accuracy_after is None:
            return None
        return self.accuracy_after - self.accuracy_before

    @property
    def accuracy_clear(self) -> bool:
        """Whether the change is more than two standard errors of the difference (taken as
        independent, which is cautious).
        """
        if self.accuracy_change is None or self.error_before is None or self.error_after is None:
            return False
        return abs(self.accuracy_change) > 2 * math.hypot(self.error_before, self.error_after)


@dataclass(frozen=True)
class Outcomes:
    """All domains in order, their plain mean, and where the losses come from."""

    domains: tuple[Outcome, ...]
    mean: Outcome | None
    losses_from: str


def outcomes(run: RunData) -> Outcomes:
    """Before and after per domain, from the evaluation; losses fall back on the first and last
    adjustment.
    """
    results = run.evaluation.results if run.evaluation else []
    losses = {
        (r.model, r.domain): r for r in results if r.benchmark == "held_out" and r.metric == "loss"
    }
    answers = {
        (r.model, r.domain): r
        for r in results
        if r.benchmark == "questions" and r.metric == "exact_match"
    }
    measured = [adjustment for adjustment in run.adjustments if adjustment.loss]
    losses_from = "evaluation" if losses else "adjustments" if len(measured) > 1 else ""
    rows = []
    for domain in run.domains:
        before, after = answers.get(("base", domain)), answers.get(("tuned", domain))
        loss_before, loss_after = _value(losses, "base", domain), _value(losses, "tuned", domain)
        if losses_from == "adjustments":
            loss_before, loss_after = measured[0].loss.get(domain), measured[-1].loss.get(domain)
        records = losses.get(("tuned", domain)) or losses.get(("base", domain))
        row = Outcome(
            domain=domain,
            loss_before=loss_before,
            loss_after=loss_after,
            records=records.n if records else None,
            accuracy_before=_share(before, before.value) if before else None,
            accuracy_after=_share(after, after.value) if after else None,
            error_before=_share(before, before.standard_error) if before else None,
            error_after=_share(after, after.standard_error) if after else None,
            questions=(after or before).n if (after or before) else None,  # type: ignore[union-attr]
        )
        if (row.loss_before, row.loss_after, row.accuracy_before, row.accuracy_after) != (
            None,
            None,
            None,
            None,
        ):
            rows.append(row)
    return Outcomes(tuple(rows), _mean(rows), losses_from)


def other_results(run: RunData) -> tuple[Result, ...]:
    """What was measured besides benchmarks, and the held-out loss and the questions' exact match of
    the base and the tuned model.
    """
    results = run.evaluation.results if run.evaluation else []
    return tuple(
        r
        for r in results
        if not r.is_benchmark and (r.benchmark not in OWN or r.model not in ("base", "tuned"))
    )


def _mean(rows: list[Outcome]) -> Outcome | None:
    """Every domain counts the same; errors combine as those of independent domains."""
    both = [row for row in rows if row.loss_change is not None]
    asked = [row for row in rows if row.accuracy_change is not None]
    if len(rows) < 2 or not (both or asked):
        return None
    return Outcome(
        domain="Mean over domains",
        loss_before=_average([row.loss_before for row in both]),
        loss_after=_average([row.loss_after for row in both]),
        records=_total([row.records for row in both]),
        accuracy_before=_average([row.accuracy_before for row in asked]),
        accuracy_after=_average([row.accuracy_after for row in asked]),
        error_before=_combined([row.error_before for row in asked]),
        error_after=_combined([row.error_after for row in asked]),
        questions=_total([row.questions for row in asked]),
    )


def _average(values: list[Number]) -> Number:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def _combined(errors: list[Number]) -> Number:
    present = [error for error in errors if error is not None]
    return math.hypot(*present) / len(errors) if present and len(present) == len(errors) else None


def _total(counts: list[int | None]) -> int | None:
    return (
        sum(count for count in counts if count is not None)
        if any(count is not None for count in counts)
        else None
    )


def _value(results: Mapping[Key, Result], model: str, domain: str) -> Number:
    found = results.get((model, domain))
    return found.value if found else None


def _share(result: Result, value: Number) -> Number:
    in_percent = (result.unit or "").strip().lower() in ("%", "percent", "percentage")
    return value / 100 if in_percent and value is not None else value
