"""What a policy is told at an adjustment, from the reports, and from the log so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from versatune_ray.mixture import Budget, Feedback, comparable
from versatune_ray.settings.recipe import StagePlan
from versatune_ray.training.adjustment import Array, Gradients, Report


def feedback_of(
    domains: Sequence[str],
    stage: StagePlan,
    report: Report,
    lines: Sequence[Mapping[str, Any]],
    before: Array,
    losses: tuple[Array, Array | None],
    reference: Array | None,
) -> Feedback:
    """Of all domains.

    Args:
        report: of any rank. lines: of the stage, so far. before: passes of earlier stages, [k].
        losses: now, and at the adjustment before, which may be of an earlier stage.

    Raises:
        ValueError: as ``Feedback``.
    """
    passes = report.passes + before
    history = np.array([list(line["loss"].values()) for line in lines]).reshape(-1, len(domains))
    now = (report.passes > 0) & (report.loss_sums is None)
    trained = [*(trained_in(line, domains, before) for line in lines), now]
    history = comparable(history, losses[0], trained)
    rows = np.stack([*(passes_in(line, domains) for line in lines), passes]) - before
    sizes, recipe = np.array(stage.records, dtype=np.float64), stage.recipe
    gradients = report.gradients or Gradients(None)
    return Feedback(
        report.step,
        losses[0],
        history[-1] if lines else losses[1],
        reference,
        domains,
        history,
        gradients.products,
        passes,
        Budget(recipe.steps, recipe.batch_size, sizes, np.rint(rows * sizes)),
        [
            [[line["gradient_products"][one][other] for other in domains] for one in domains]
            for line in lines
            if "gradient_products" in line
        ],
        gradients.variances,
        gradients.held_out,
    )


def trained_in(line: Mapping[str, Any], domains: Sequence[str], before: Array | float) -> Array:
    """Which losses of a line of the log are training losses, [k]: until a stage has drawn from a
    domain, its loss is still a held-out one. ``before``: passes of earlier stages.
    """
    return (passes_in(line, domains) > before) & (line.get("feedback") == "train")


def measured(domains: Sequence[str], gradients: Gradients | None) -> dict[str, Any]:
    """What was measured of the gradients, for the log: else a replay could not ask such a policy
    again.
    """

    def named(values: Array) -> dict[str, float]:
        return dict(zip(domains, values.tolist(), strict=True))

    if gradients is None or gradients.products is None:
        return {}
    rows = zip(domains, gradients.products, strict=True)
    found: dict[str, Any] = {"gradient_products": {name: named(row) for name, row in rows}}
    if gradients.variances is not None:
        found["gradient_variances"] = named(gradients.variances)
    if gradients.held_out is not None:
        found["held_out_products"] = named(gradients.held_out)
    return found


def passes_in(line: Mapping[str, Any], domains: Sequence[str]) -> Array:
    """Over each domain's records, [k], as a line of the log has them."""
    passes = line.get("passes") or {}
    return np.array([passes.get(name) or 0.0 for name in domains])
