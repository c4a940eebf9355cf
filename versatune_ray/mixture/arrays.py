"""Reading per-domain numbers: float64 vectors in domain order, and errors that name the domain."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def label(domain: int, names: Sequence[str] | None) -> str:
    """How errors call a domain: its quoted name if known, else ``domain 3``."""
    return repr(names[domain]) if names is not None else f"domain {domain}"


def vector(
    values: npt.ArrayLike | None,
    what: str,
    k: int | None = None,
    names: Sequence[str] | None = None,
) -> FloatArray:
    """Copy ``values`` into float64[k], each finite and ≥ 0.

    ``what`` is the quantity in the singular, for errors. Without ``k`` the length of ``names``
    counts, else that of ``values``.

    Raises:
        ValueError: missing, not one-dimensional, of another length, or a value is NaN, infinite or
            negative (its domain is named).
    """
    if values is None:
        raise ValueError(f"{what}: missing")
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what}: {values!r} is not one number per domain") from None
    if array.ndim != 1:
        raise ValueError(
            f"{what}: expected one number per domain, found an array of shape {array.shape}"
        )
    if names is not None and k is not None and len(names) != k:
        raise ValueError(f"{len(names)} domain names for {k} domains")
    expected = k if k is not None else len(names) if names is not None else array.size
    if array.size < expected:
        raise ValueError(
            f"{what} of {label(array.size, names)} is missing: {array.size} values for {expected} "
            f"domains"
        )
    if array.size > expected:
        raise ValueError(f"{what}: {array.size} values for {expected} domains")
    if array.size == 0:
        raise ValueError(f"{what}: at least one domain is needed")
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        domain = int(bad.argmax())
        raise ValueError(
            f"{what} of {label(domain, names)} is {array[domain]}; it must be a finite number ≥ 0"
        )
    return array


def square(values: npt.ArrayLike, what: str, k: int) -> FloatArray:
    """Copy ``values`` into float64[k, k] of finite numbers.

    Raises:
        ValueError: another shape, or a number that is NaN or infinite.
    """
    array = np.array(values, dtype=np.float64)
    if array.shape != (k, k):
        raise ValueError(
            f"{what}: expected {k} rows of {k} numbers, found an array of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: {array[~np.isfinite(array)][0]} is not a finite number")
    return array


def check_targets(targets: Sequence[int], k: int | None = None) -> tuple[int, ...]:
    """Return target domains as distinct indices, each in 0 … k−1 (k unknown: ≥ 0).

    Raises:
        ValueError: none given, one given twice, not an integer, or out of range (the valid range is
            named).
    """
    try:
        if any(isinstance(target, bool | np.bool_) for target in targets):
            raise TypeError
        chosen = tuple(index(target) for target in targets)
    except TypeError:
        raise ValueError(
            f"targets: {targets!r} are not domain indices; give a list of integers"
        ) from None
    if not chosen:
        raise ValueError("targets: at least one domain is needed")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"targets: {chosen} names a domain twice")
    for target in chosen:
        if target < 0 or (k is not None and target >= k):
            raise ValueError(
                f"targets: {target} is no domain index; valid are 0 to "
                f"{'k−1' if k is None else k - 1}"
            )
    return chosen
