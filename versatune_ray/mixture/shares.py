"""Shares of samples per domain: starting points, validation, and the floor under every share.

All functions return float64[k], ≥ 0, summing to 1 within 1e-12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray, check_targets, label, vector

SUM_TOLERANCE = 1e-12
# what rounding to float64 text or summing thousands of shares may cost; a real mistake is larger
INPUT_TOLERANCE = 1e-9


def check_shares(
    shares: npt.ArrayLike, k: int | None = None, names: Sequence[str] | None = None
) -> FloatArray:
    """Return a validated copy: finite, ≥ 0, summing to 1.

    A sum off by less than 1e-9 is rescaled to 1; within 1e-12 the values come back bit for bit.

    Raises:
        ValueError: another length than k, a NaN, infinite or negative share (its domain is named),
            or another sum.
    """
    array = vector(shares, "share", k, names)
    total = float(array.sum())
    if abs(total - 1) > INPUT_TOLERANCE:
        raise ValueError(f"shares sum to {total:.12g}, not to 1")
    return array if abs(total - 1) <= SUM_TOLERANCE else normalised(array)


def normalised(weights: FloatArray) -> FloatArray:
    """weights / Σ weights, for weights ≥ 0 with a positive sum."""
    # a sum of huge or of subnormal weights would overflow or lose digits
    scaled = weights / weights.max()
    return np.asarray(scaled / scaled.sum(), dtype=np.float64)


def floored(shares: FloatArray, min_share: float) -> FloatArray:
    """Lift every share to ``min_share`` and scale those above it down, so that ratios among them
    last (water-filling; ours).

    Raises:
        ValueError: k · min_share exceeds 1.
    """
    k = shares.size
    if min_share * k > 1 + SUM_TOLERANCE:
        raise ValueError(
            f"min_share: {min_share} for each of {k} domains exceeds 1; at most {1 / k:.6g} fits"
        )
    result = normalised(shares)
    if min_share == 0:
        return result
    low = np.zeros(k, dtype=bool)
    # Scaling the others down may push one of them under the floor in turn; each round settles at
    # least one domain.
    while (below := (result < min_share) & ~low).any():
        low |= below
        left = 1 - min_share * np.count_nonzero(low)
        result = np.where(low, min_share, shares)
        if not low.all():
            result[~low] *= left / shares[~low].sum()
    result[result.argmax()] += 1 - result.sum()
    return result


def uniform(k: int) -> FloatArray:
    """1/k for each of k domains. Raises ``ValueError`` for k < 1."""
    return np.full(_count(k), 1 / k)


def inverse(
    shares: npt.ArrayLike,
    form: Literal["reciprocal", "complement"] = "reciprocal",
    names: Sequence[str] | None = None,
) -> FloatArray:
    """The inverse of a distribution, a baseline of VersaTune (arXiv 2411.11266).

    ``reciprocal`` is the paper's (1/p_j) / Σ 1/p_i; ``complement`` is what its released code does,
    (1 − p_j) / Σ (1 − p_i). A single domain keeps everything.

    Raises:
        ValueError: no valid shares, an unknown form, or a share of 0 with ``reciprocal`` (its
            domain is named).
    """
    p = check_shares(shares, names=names)
    if form not in ("reciprocal", "complement"):
        raise ValueError(f"form: {form!r} is unknown; valid: 'reciprocal', 'complement'")
    if p.size == 1:
        return np.ones(1)
    if form == "complement":
        return normalised(np.clip(1 - p, 0, 1))
    if not p.all():
        raise ValueError(
            f"share of {label(int(p.argmin()), names)} is 0 and has no reciprocal; use "
            f"form='complement'"
        )
    return normalised(p.min() / p)


def specific(k: int, targets: Sequence[int]) -> FloatArray:
    """Everything on the targets, in equal parts: the paper's 100 % baseline. Raises ``ValueError``
    for invalid targets.
    """
    return uniform_remainder(k, targets, 1.0)


def uniform_remainder(k: int, targets: Sequence[int], target_share: float) -> FloatArray:
    """``target_share`` on the targets in equal parts, the rest in equal parts on the other domains:
    an expansion baseline.

    Raises:
        ValueError: invalid targets, ``target_share`` outside [0, 1], or no other domain to take the
            rest.
    """
    chosen = list(check_targets(targets, _count(k)))
    if not 0 <= target_share <= 1:
        raise ValueError(f"target_share: {target_share} is not within 0 and 1")
    others = k - len(chosen)
    if others == 0 and target_share < 1:
        raise ValueError(
            f"target_share: {target_share} leaves a rest, but every domain is a target"
        )
    result = np.full(k, (1 - target_share) / max(others, 1))
    result[chosen] = target_share / len(chosen)
    return result


def proportional(sizes: npt.ArrayLike, names: Sequence[str] | None = None) -> FloatArray:
    """Shares as the domains' sizes [k] (records or tokens). Raises ``ValueError`` for an invalid
    size, or if all are 0.
    """
    counts = vector(sizes, "size", names=names)
    if not counts.any():
        raise ValueError("sizes: every domain is empty")
    return normalised(counts)


def chameleon(
    embeddings: npt.ArrayLike,
    regularisation: float = 10.0,
    sharpness: float = 0.2,
    names: Sequence[str] | None = None,
) -> FloatArray:
    """Chameleon (arXiv 2505.24844): softmax(S / ΣS / 0.2), S = diag(K·(K + λ·k·I)⁻¹), the leverage
    of each domain among all, for K the centred products of the domains' mean embeddings [k, d].

    λ = 10 and 0.2, and that K is centred and S sums to 1, are those of the public code, for
    fine-tuning; it takes the mean of a proxy model's middle hidden layer over 2,048 samples of each
    domain. Two domains are always alike; so are more where none differs.

    Raises:
        ValueError: no embedding for each domain, of finite numbers, or a setting out of range.
    """
    table = np.array(embeddings, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise ValueError("embeddings: expected a row of finite numbers for each domain")
    if names is not None and len(names) != len(table):
        raise ValueError(f"embeddings: {len(table)} rows for {len(names)} domains")
    for name, value in (("regularisation", regularisation), ("sharpness", sharpness)):
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name}: {value} is not a finite number > 0")
    k, apart = len(table), table - table.mean(axis=0)  # as centring the products does
    kernel = apart @ apart.T
    leverage = np.linalg.solve(kernel + regularisation * k * np.eye(k), kernel).diagonal()
    if leverage.sum() <= 0:
        return uniform(k)
    leverage = leverage / leverage.sum()
    return normalised(np.exp((leverage - leverage.max()) / sharpness))


def temperature(
    shares: npt.ArrayLike, tau: float, names: Sequence[str] | None = None
) -> FloatArray:
    """p_j^(1/τ) / Σ p_i^(1/τ): τ > 1 flattens, τ < 1 sharpens; a share of 0 stays 0. Raises
    ``ValueError`` unless 0 < τ < ∞.
    """
    p = check_shares(shares, names=names)
    if not (np.isfinite(tau) and tau > 0):
        raise ValueError(f"tau: {tau} is not a finite number > 0")
    # Relative to the largest share, so that a sharp τ cannot take every power to 0 at once.
    return normalised((p / p.max()) ** (1 / tau))


def _count(k: int) -> int:
    if k < 1:
        raise ValueError(f"k: {k} domains; at least one is needed")
    return k
