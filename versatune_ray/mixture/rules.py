"""What the rules of others have in common."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray
from versatune_ray.mixture.feedback import Feedback
from versatune_ray.mixture.shares import normalised


class Rival:
    """A policy without a guard; its flags say what it goes by."""

    needs_reference: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_variances: ClassVar[bool] = False
    needs_held_out_gradient: ClassVar[bool] = False
    needs_budget: ClassVar[bool] = False
    multiplicative: ClassVar[bool] = False
    counts_records: ClassVar[bool] = False  # its shares are meant as parts of the samples

    def guard_state(self, shares: npt.ArrayLike, feedback: Feedback) -> None:
        return None


def exponentiated(weights: FloatArray, exponents: FloatArray) -> FloatArray:
    """Proportional to weights·exp(exponents), without overflow; a weight of 0, to which a small one
    may have come, stays 0.
    """
    best = exponents[weights > 0].max()
    return normalised(weights * np.exp(np.minimum(exponents - best, 0)))


def mixed(shares: FloatArray, part: float) -> FloatArray:
    return normalised((1 - part) * shares + part / shares.size)


def is_number(value: object, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def positive(name: str, value: float) -> None:
    if not (is_number(value) and value > 0 and np.isfinite(value)):
        raise ValueError(f"{name}: {value!r} is not a finite number above 0")


def share(name: str, value: float) -> None:
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{name}: {value!r} is not within 0 and 1")


def whole(name: str, value: float, least: int) -> None:
    if not (is_number(value, int) and value >= least):
        raise ValueError(f"{name}: {value!r} is not a whole number of at least {least}")
