"""Loss-driven rules of others, as policies: to compare with, on the same data and path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray
from versatune_ray.mixture.feedback import Feedback
from versatune_ray.mixture.shares import check_shares, normalised


@dataclass(frozen=True)
class ExponentialLoss:
    """What the released code of VersaTune does in place of Algorithm 2: P_j ∝ P_j(t−1)·exp(ℓ_j(t)). No reference, no σ, no settings."""

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        return normalised(before * np.exp(feedback.loss - feedback.loss.max()))

    def guard_state(self, shares: npt.ArrayLike, feedback: Feedback) -> None:
        return None
