"""Means over seeds with 95 % intervals, and differences between methods that shared their seeds
(Student's t), for many methods at once (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from versatune_ray.runs.thresholds import LEVEL, Z

_Z2 = Z**2


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` runs and the half width of its 95 % interval; ``nan`` with one run.

    Of a difference also ``p``, the chance of one so large where there is none, and ``holm``, that
    of one so large anywhere among the differences that are looked at together; else ``nan``.
    """

    mean: float
    half_width: float
    n: int
    p: float = math.nan
    holm: float = math.nan

    @property
    def sure(self) -> bool:
        """Whether the difference by itself is told from 0."""
        return self.p < LEVEL

    @property
    def sure_among_all(self) -> bool:
        """Whether it still is, for all that were looked at."""
        return self.holm < LEVEL


def estimate(values: Sequence[float], asked: int | None = None, whole: float = 1.0) -> Estimate:
    """Mean of ``values`` with its 95 % interval under Student's t with n − 1 degrees of freedom.

    Args:
        asked: the questions of which each value is the part that was right, in units of ``whole``.
            Where none or all were right in every run, the runs do not differ, and the half width is
            Wilson's for as many questions: from 0 or ``whole`` to the other end.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("values: none")
    mean = float(np.mean(values))
    if n == 1:
        return Estimate(mean, math.nan, 1)
    if asked and (not any(values) or all(value == whole for value in values)):
        return Estimate(mean, whole * _Z2 / (asked + _Z2), n)
    from scipy import stats

    return Estimate(mean, float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * _error(values), n)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Mean of ``ours − theirs`` over the seeds that both have: what the seed does to both cancels.
    None without a seed in common.

    Differences that are all alike say how coarse the measure is, not how sure it is: their p is
    that of the signs, 2^(1 − n).
    """
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    found, n = estimate(differences), len(differences)
    if n == 1:
        return found
    error = _error(differences)
    if error > 1e-12 * max(map(abs, differences)):
        from scipy import stats

        p = 2 * float(stats.t.sf(abs(found.mean) / error, n - 1))
    else:
        p = 2.0 ** (1 - n) if found.mean else 1.0
    return replace(found, p=p)


def adjusted(found: Mapping[str, Estimate | None]) -> dict[str, Estimate | None]:
    """The differences with ``holm`` filled in, over all of them that have a p (Holm 1979)."""
    ranked = sorted(
        (one.p, name) for name, one in found.items() if one is not None and not math.isnan(one.p)
    )
    result, least = dict(found), 0.0
    for place, (p, name) in enumerate(ranked):
        least = min(1.0, max(least, (len(ranked) - place) * p))
        one = found[name]
        assert one is not None
        result[name] = replace(one, holm=least)
    return result


def _error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))
