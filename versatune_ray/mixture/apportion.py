"""Whole samples for fractional requests, batch after batch, without variance.

The deficit of a domain is what was requested of it so far minus what it was given. Each batch gives
every domain the whole samples it is owed; the samples left over round some of the fractions up,
those first that would otherwise be due soonest.

Why not simply the largest fractions: with, say, six domains of 50 parts and 32 domains of one part,
they let a deficit grow to 1.56 although shares never move. Soonest-due first is
earliest-deadline-first over unit jobs, one per sample, each open from the batch in which its
request begins to the batch in which it is complete. The requests themselves are a fractional
schedule of these jobs, so a whole one exists, and earliest-deadline-first finds it: with steady
shares no count is ever a full sample away from its request. Deadlines in later batches assume that
shares stay as they are, which gently moving shares nearly do.

Whatever the shares do, no count runs a full sample ahead, and none falls a full sample behind while
every domain is asked for at least one sample per batch. Otherwise, how far one can fall behind
depends on what no rule can know, the shares to come: shares jumping at random kept it within 1.3,
shares that read the counts and keep dropping the domains just served can drive any rule to about ln
k.
"""

from __future__ import annotations

import numpy as np

from versatune_ray.mixture.arrays import FloatArray, IntArray

EPSILON = 1e-9  # accumulated float64 rounding of a deficit; far above it, far below one sample


def apportion(deficit: FloatArray, request: FloatArray, batch_size: int) -> IntArray:
    """Return samples to give now, [k], each ≥ 0 and summing to ``batch_size``.

    Only a domain with a positive deficit is given anything, and none more than its deficit rounded
    up.

    Args:
        deficit: samples owed, [k], this batch's request included; sums to ``batch_size``, each >
            −1.
        request: this batch's request, [k], in samples; taken as the request of the batches to come.
        batch_size: samples to give.
    """
    due: IntArray = np.maximum(np.floor(deficit + EPSILON), 0).astype(np.int64)
    left = batch_size - int(due.sum())
    if left < 0:
        return _most_overdue(deficit, due, batch_size)
    fraction = deficit - due
    candidates = np.flatnonzero(fraction > EPSILON)
    owed, rate = fraction[candidates], request[candidates]
    # A rate of 1e-300 would overflow the quotient; to a sampler it is as good as never.
    batches_left = np.ceil(
        np.divide(1 - owed - EPSILON, rate, out=np.full(owed.size, np.inf), where=rate > EPSILON)
    )
    soonest = np.lexsort((-owed, batches_left))  # stable: remaining ties go to the earlier domain
    due[candidates[soonest[:left]]] += 1
    return due


def _most_overdue(deficit: FloatArray, due: IntArray, batch_size: int) -> IntArray:
    """More is due than fits: level the deficits, the largest first."""
    domain = np.repeat(np.arange(due.size), due)
    nth = np.arange(domain.size) - np.repeat(np.cumsum(due) - due, due)
    level = deficit[domain] - nth
    chosen = np.lexsort((domain, -level))[:batch_size]
    given: IntArray = np.bincount(domain[chosen], minlength=due.size).astype(np.int64)
    return given
