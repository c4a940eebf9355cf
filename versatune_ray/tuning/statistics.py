"""Means over seeds with 95 % intervals, and differences between methods that shared their seeds
(Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` runs and the half width of its 95 % interval; ``nan`` with one run."""

    mean: float
    half_width: float
    n: int

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of ``values`` with its 95 % interval under Student's t with n − 1 degrees of freedom.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("values: none")
    if n == 1:
        return Estimate(float(values[0]), math.nan, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(float(np.mean(values)), float(stats.t.ppf(0.975, n - 1)) * error, n)


def paired_difference(ours: dict[int, float], theirs: dict[int, float]) -> Estimate:
    """Mean of ``ours − theirs`` over the seeds that both have: what the seed does to both cancels.

    Raises:
        ValueError: no seed in common.
    """
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
