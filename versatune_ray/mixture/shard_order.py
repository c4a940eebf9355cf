"""An order of samples that goes from shard to shard, so that only a few of them need to be at
hand.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import IntArray


class ShardOrder:
    """Each pass takes a domain's shards in a new order, ``at_once`` of them at a time, and the
    samples of those at random.

    With ``at_once`` ≥ the number of shards it is a permutation of all samples, as without.
    """

    def __init__(self, shards: npt.ArrayLike, at_once: int) -> None:
        """``shards``: the one that each sample lies in, [n], integers."""
        if at_once < 1:
            raise ValueError(f"at_once: {at_once} is below 1")
        self.at_once = at_once
        self.shards, self._place, self._sizes = np.unique(
            np.asarray(shards), return_inverse=True, return_counts=True
        )
        self._place = self._place.astype(np.int32)

    @property
    def size(self) -> int:
        """Samples."""
        return self._place.size

    def permutation(self, stream: np.random.Philox) -> IntArray:
        """The samples of a pass in order, [n]. Sorting raw words, as ``DomainSampler`` does."""
        window = self._window(stream)
        order: IntArray = np.lexsort((stream.random_raw(self.size), window[self._place]))
        return order

    def near(self, stream: np.random.Philox, offset: int) -> list[IntArray]:
        """The shards that a pass draws from at ``offset``, and those that it draws from next;
        empty where it then ends.
        """
        window = self._window(stream)
        ends = np.cumsum(np.bincount(window, self._sizes))
        now = int(np.searchsorted(ends, offset, side="right"))
        return [self.shards[window == number] for number in (now, now + 1)]

    def tobytes(self) -> bytes:
        """What the order follows from, for the identity of a sampler."""
        return self._place.tobytes() + bytes(str(self.at_once), "ascii")

    def _window(self, stream: np.random.Philox) -> IntArray:
        """In which group of a pass each shard is, [shards]."""
        order = np.argsort(stream.random_raw(self.shards.size), kind="stable")
        window = np.empty(self.shards.size, dtype=np.int64)
        window[order] = np.arange(self.shards.size) // self.at_once
        return window
