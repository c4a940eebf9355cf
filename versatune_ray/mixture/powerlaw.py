"""A policy of ours that looks to the end of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray
from versatune_ray.mixture.feedback import Budget, Feedback
from versatune_ray.mixture.rules import Rival, positive, share
from versatune_ray.mixture.shares import check_shares, normalised

# of exponents that learning curves have; a loss that rises has none
_STEEPEST = 1.5
# weight of the prior, in measurements
_TRUST = 2.0


@dataclass(frozen=True)
class PowerLaw(Rival):
    """Ours: fit every domain's learning curve, and spend what is left of the run for the lowest
    mean loss at its end.

    The excess loss e_j = max(ℓ_j − ℓ_ref,j, 0) is taken for a power law of the samples that were
    drawn of the domain, e_j = c_j·n_j^(−a_j). a_j is the median of the slopes between any two
    measurements (Theil–Sen), drawn towards ``prior`` while these are few, and within 0 and 1.5;
    log c_j is then the median over measurements. With B samples left, m solves

        minimise Σ c_j·(n_j + m_j)^(−a_j)   subject to   Σ m_j = B,  0 ≤ m_j ≤ passes·size_j − n_j,

    which is convex: all domains that are not at a bound have the same gain per sample μ, n_j + m_j
    = (a_j·c_j/μ)^(1/(a_j + 1)), and μ is found by bisection. P_j = (1 − λ)/k + λ·m_j/B.

    ``Balanced`` is the same with one exponent for all, at the optimum already: its shares follow
    what is left, these also how fast it goes, when it ends, and that a domain is used up. A domain
    whose loss rises with its samples has a_j = 0 and gets (1 − λ)/k alone. Effects between domains
    are left out.

    Attributes:
        strength: λ, as in ``Balanced``. passes: most passes over a domain's records; twice the
            run's average if that is more. prior: exponent before anything is known; 0.5 is ours.

    Raises:
        ValueError: a setting out of range; ``update`` without a reference loss or a budget.
    """

    needs_reference: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True
    counts_records: ClassVar[bool] = True

    strength: float = 0.9
    passes: float = 4.0
    prior: float = 0.5

    def __post_init__(self) -> None:
        share("strength", self.strength)
        positive("passes", self.passes)
        positive("prior", self.prior)

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        """Shares do not depend on those before, but where nothing is left to learn, or to draw,
        they stay.
        """
        before = check_shares(shares, feedback.loss.size, feedback.names)
        reference = feedback.needed("reference_loss", "the power law")
        budget: Budget = feedback.needed("budget", "the power law")
        left = float((budget.steps - feedback.step) * budget.batch_size)
        excess = np.maximum(np.vstack([feedback.history, feedback.loss]) - reference, 0)
        if left <= 0 or not excess[-1].any():
            return before
        curves = [
            fit(drawn, values, self.prior, budget.batch_size)
            for drawn, values in zip(budget.drawn.T, excess.T, strict=True)
        ]
        scale, slope = np.array(curves).T
        drawn, total = budget.drawn[-1], budget.steps * budget.batch_size
        most = max(self.passes, 2 * total / float(budget.sizes.sum())) * budget.sizes - drawn
        spent = spend(left, scale, slope, np.maximum(drawn, budget.batch_size), np.maximum(most, 0))
        if not spent.any():
            return before
        return normalised((1 - self.strength) / before.size + self.strength * spent / spent.sum())


def fit(
    drawn: FloatArray, excess: FloatArray, prior: float, least: float = 1
) -> tuple[float, float]:
    """(c, a) of excess = c·drawn^(−a), from measurements [t] of which some may have drawn nothing,
    or be at the reference; (0, a) where the last one is.

    ``least``: samples that a domain counts with which had fewer, or none; those of a step.
    """
    if excess[-1] <= 0:
        return 0.0, prior
    known = (drawn > 0) & (excess > 0)
    if not known.any():
        return float(excess[-1] * least**prior), prior
    x, y = np.log(np.maximum(drawn[known], least)), np.log(excess[known])
    one, other = np.triu_indices(x.size, 1)
    apart = x[other] - x[one] > 1e-9
    slope = prior
    if apart.any():
        slopes = -(y[other] - y[one])[apart] / (x[other] - x[one])[apart]
        told = x.size - 1
        slope = (_TRUST * prior + told * float(np.median(slopes))) / (_TRUST + told)
    slope = min(max(slope, 0.0), _STEEPEST)
    return float(np.exp(np.median(y + slope * x))), slope


def spend(
    left: float, scale: FloatArray, slope: FloatArray, drawn: FloatArray, most: FloatArray
) -> FloatArray:
    """Samples m [k] within 0 and ``most`` that sum to ``left`` (or to all that there are) and
    minimise Σ scale·(drawn + m)^(−slope); 0 where more samples gain nothing.
    """
    gains = scale * slope
    useful = (gains > 0) & (most > 0)
    found = np.zeros(drawn.size)
    if not useful.any():
        return found
    n, top, c, a = drawn[useful], most[useful], gains[useful], slope[useful]

    def at(log_price: float) -> FloatArray:
        wanted = np.exp((np.log(c) - log_price) / (a + 1)) - n
        return np.asarray(np.clip(wanted, 0, top))

    # gain per sample now, at which nothing is bought, and when all is bought
    high = float((np.log(c) - (a + 1) * np.log(n)).max())
    low = float((np.log(c) - (a + 1) * np.log(n + top)).min())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).sum() > left else (low, middle)
    found[useful] = at(high)
    return found
