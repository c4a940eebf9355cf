"""Random words that NumPy keeps stable from version to version, and a choice made of them."""

from __future__ import annotations

import numpy as np

from versatune_ray.mixture.arrays import IntArray

# the number of the stream that chooses among a domain's samples, where those of passes are 0, 1, …
_CHOICE = 2**64 - 1


def fixed_subset(size: int, count: int, seed: int, domain: int) -> IntArray:
    """``count`` of a domain's ``size`` samples at random, ascending, int64 [count]: always the
    same, and among those of a larger count.

    Raises:
        ValueError: more are asked for than there are.
    """
    if not 0 <= count <= size:
        raise ValueError(f"count: {count} is not within 0 and {size}")
    order = (
        np.argsort(stream(seed, domain, _CHOICE).random_raw(size), kind="stable")
        if count < size
        else np.arange(size)
    )
    return np.sort(order[:count]).astype(np.int64)


def stream(seed: int, which: int, number: int) -> np.random.Philox:
    """Random words that depend on nothing but (seed, which, number); distinct ones lie 2¹²⁸ counts
    apart.
    """
    return np.random.Philox(key=seed, counter=np.array([0, 0, which, number], dtype=np.uint64))
