"""Run a policy over recorded losses, without a model: to compare settings, or to check a finished
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray, vector
from versatune_ray.mixture.feedback import Budget, Feedback, comparable
from versatune_ray.mixture.policies import Policy, apply_policy
from versatune_ray.mixture.shares import check_shares


def replay(
    policy: Policy,
    shares: npt.ArrayLike,
    losses: npt.ArrayLike,
    reference_loss: npt.ArrayLike | None,
    initial_loss: npt.ArrayLike | None = None,
    names: Sequence[str] | None = None,
    steps: Sequence[int] | None = None,
    gradient_products: npt.ArrayLike | None = None,
    passes: npt.ArrayLike | None = None,
    budget: Budget | None = None,
    gradient_variances: npt.ArrayLike | None = None,
    held_out_products: npt.ArrayLike | None = None,
    trained: npt.ArrayLike | None = None,
) -> FloatArray:
    """Return shares [t+1, k]: row 0 is ``shares``, row i what the policy makes of row i−1 and of
    the losses of adjustment i.

    The losses were measured under other shares than these, so this shows what a policy would
    answer, not what training would give.

    Args:
        policy: any policy.
        shares: starting shares [k].
        losses: [t, k], the losses at adjustments 1 … t, in nats per response token; t may be 0.
        reference_loss: ℓ_ref [k], or None for a policy that does without.
        initial_loss: ℓ(0) [k], measured before step 1; None if unknown (a policy that needs it
            refuses).
        names: domain names, for errors.
        steps: [t], the optimizer step of each adjustment, which some policies go by; None: 1 … t.
        gradient_products: [t, k, k] of the adjustments, for a policy that needs them.
        passes: [t, k], over the domains' records up to each adjustment; None if unknown.
        budget: of the whole run, ``drawn`` at each adjustment, [t, k]; None if unknown.
        gradient_variances, held_out_products: [t, k], as ``gradient_products``.
        trained: [t + 1, k], which losses, ``initial_loss`` first, are training losses; None: none.

    Raises:
        ValueError: no valid shares; a loss is NaN, infinite, negative or missing (step and domain
            are named); the policy refuses, or its answer is no distribution; or there is not one
            step, one matrix of products or one row of passes for each adjustment.
    """
    start = check_shares(shares, names=names)
    table = np.asarray(losses, dtype=np.float64)
    if table.size == 0:
        table = table.reshape(0, start.size)
    if table.ndim != 2:
        raise ValueError(
            f"losses: expected one row per adjustment, found an array of shape {table.shape}"
        )
    if table.shape[1] != start.size:
        raise ValueError(f"losses: {table.shape[1]} values per adjustment for {start.size} domains")
    at = range(1, len(table) + 1) if steps is None else steps
    rows = [start]
    previous: npt.ArrayLike | None = initial_loss
    history = (
        [] if initial_loss is None else [vector(initial_loss, "initial loss", start.size, names)]
    )
    products = (
        [None] * len(table)
        if gradient_products is None
        else np.asarray(gradient_products, dtype=np.float64)
    )
    seen, variances, held_out = (
        [None] * len(table) if values is None else np.asarray(values, dtype=np.float64)
        for values in (passes, gradient_variances, held_out_products)
    )
    kinds = None if trained is None else np.asarray(trained, dtype=np.bool_)
    told = zip(at, table, products, seen, variances, held_out, strict=True)
    earlier = np.zeros((len(history), start.size))
    for row, (step, loss, product, passed, variance, out) in enumerate(told):
        known = history
        if kinds is not None and history:
            known = list(comparable(history, loss, kinds[: row + 2][-len(history) - 1 :]))
            previous = known[-1]
        rows.append(
            apply_policy(
                policy,
                rows[-1],
                Feedback(
                    step,
                    loss,
                    previous,
                    reference_loss,
                    names,
                    known,
                    product,
                    passed,
                    budget and replace(budget, drawn=np.vstack([earlier, budget.drawn[: row + 1]])),
                    () if gradient_products is None else products[:row],  # type: ignore[arg-type]
                    variance,
                    out,
                ),
            )[1]
        )
        history.append(loss)
        previous = loss
    return np.stack(rows)


def mean_shares(
    steps: npt.ArrayLike, shares: npt.ArrayLike, names: Sequence[str] | None = None
) -> FloatArray:
    """The average mixture of a finished run, [k]: each adjustment's shares weighted by the steps
    they were in force.

    Training on it without change tells whether a run's dynamics helped, or only the mixture that it
    came to.

    Args:
        steps: [t + 1], the optimizer step of each adjustment, from 0 to the last.
        shares: [t + 1, k], the shares decided at each; the last ones were never trained on.

    Raises:
        ValueError: fewer than two adjustments, steps that do not rise, or a row that is no
            distribution.
    """
    at = np.asarray(steps, dtype=np.float64)
    table = np.stack(
        [check_shares(row, names=names) for row in np.asarray(shares, dtype=np.float64)]
    )
    lasted = np.diff(at)
    if at.shape != (len(table),) or len(at) < 2 or (lasted <= 0).any():
        raise ValueError(
            "steps: expected the rising steps of at least two adjustments, one for each row of "
            "shares"
        )
    return check_shares(lasted @ table[:-1] / lasted.sum(), names=names)
