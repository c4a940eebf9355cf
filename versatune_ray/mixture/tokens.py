"""Shares of tokens: which records come next, where they are of different lengths.

Each domain's records wait in the order of its walk. Were they divisible, each domain would be given
its share of the tokens at every moment: a record would begin when the domain's earlier ones are
through, and end when it is itself. Whole records are given by these two moments, on a clock that
counts the tokens of all domains: of those that have begun by the end of a batch, the ``batch_size``
that end first. This is weighted fair queueing with its test of eligibility (WF²Q, Bennett & Zhang
1996), which bounds deviations by one packet, a batch at a time; with records of one token each it
is ``apportion``.

Where a batch ends on that clock depends on which records it has. The end is looked for at which
both agree; records are whole, so that they may miss by a part of one. With steady shares no
domain's tokens are further from its share of all tokens than the longest record (of any domain: a
batch that has to hold such a record takes its tokens from all).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray, IntArray
from versatune_ray.mixture.sampler import DomainSampler
from versatune_ray.mixture.shard_order import ShardOrder

# a share that counts as one, so that what a domain is owed is given at last
_LEAST = 1e-12


def fair_queue(
    begins: FloatArray, ends: FloatArray, length: FloatArray, batch_size: int
) -> tuple[IntArray, float]:
    """Return the places [batch_size] of the records to give now, ascending, and the moment before
    which all records that begin have to be among these: else there are others to choose from.

    Args:
        begins: moments on the clock of tokens, [n], n ≥ ``batch_size``; a batch begins at 0.
        ends: the same, [n]; length: tokens, [n].
        batch_size: records to give.
    """
    by_end, by_begin = _order(ends), _order(begins)
    rank = np.empty(begins.size, dtype=np.int64)
    rank[by_begin] = np.arange(begins.size)
    rank, sizes, starts = rank[by_end], length[by_end], begins[by_begin]

    def given(begun: int) -> tuple[IntArray, float]:
        """Of the ``begun`` records that begin first: those that end first, and their tokens."""
        chosen = np.flatnonzero(rank < begun)[:batch_size]
        return chosen, float(sizes[chosen].sum())

    # the most records that have all begun by the end of the batch which is made of them
    low, high = batch_size, begins.size
    best = given(low)
    guess = int(np.searchsorted(starts, best[1], side="right"))
    while low < high:
        guess = guess if low < guess <= high else (low + high + 1) // 2
        found = given(guess)
        if starts[guess - 1] <= found[1]:
            low, best = guess, found
        else:
            high = guess - 1
        guess = int(np.searchsorted(starts, found[1], side="right"))
    if low < begins.size:
        # with one record more, the batch may miss its end by less
        others = given(low + 1)
        if 0 < starts[low] - others[1] < best[1] - starts[low]:
            low, best = low + 1, others
    # where all have begun, one that begins before the end would have been the next
    return np.sort(by_end[best[0]]), float(starts[low - 1]) if low < begins.size else best[1]


def _order(values: FloatArray) -> IntArray:
    """A stable argsort, but for differences of less than about 1e-10: whole numbers that sort as
    the floats do, with places for their last bits, sort several times as fast.
    """
    bits = np.int64(max(1, int(values.size - 1).bit_length()))
    whole = values.view(np.int64).copy()
    whole ^= (whole >> 63) & np.int64(2**63 - 1)
    keys = (whole >> bits << bits) | np.arange(values.size)
    keys.sort()
    return np.asarray(keys & ((np.int64(1) << bits) - 1))


class TokenSampler(DomainSampler):
    """A ``DomainSampler`` whose shares count tokens: batches have as many samples, of which each
    domain has as many as its share of the tokens takes (see the module).

    Deficits are in tokens. A cap on passes counts samples, as there; where it leaves fewer records
    than the shares ask for, those that are left are given.
    """

    def __init__(
        self,
        lengths: Sequence[npt.ArrayLike],
        batch_size: int,
        seed: int,
        names: Sequence[str] | None = None,
        max_passes: float | None = None,
        steps: int | None = None,
        walks: Sequence[npt.ArrayLike | ShardOrder | None] | None = None,
    ) -> None:
        """``lengths``: tokens of each sample of each domain; one without any counts as one token.
        The rest as of ``DomainSampler``.

        Raises:
            ValueError: an argument out of range.
        """
        each = [np.maximum(np.asarray(one), 1).astype(np.int32) for one in lengths]
        super().__init__(
            [one.size for one in each], batch_size, seed, names, max_passes, steps, walks
        )
        self._lengths = np.concatenate(each)
        self._mean = np.array([one.mean() if one.size else 1.0 for one in each])
        self._longest = int(self._lengths.max())
        self._check = [zlib.crc32(one.tobytes()) for one in each]
        # tokens in the order of the passes that are held
        self._walked = np.empty_like(self._lengths)
        # passes that were looked into before they began
        self._coming: dict[tuple[int, int], IntArray] = {}

    @property
    def _most_ahead(self) -> float:
        # Where a cap leaves few records, a batch is made of those that there are, whoever's they
        # are: nobody is ahead by more than all that it may give.
        if self._max_passes is not None:
            return float(self._lengths.sum()) * (1 + self._max_passes)
        return 2.0 * self._longest

    def _identity(self) -> dict[str, Any]:
        return super()._identity() | {"unit": ["tokens", *self._check]}

    def _choose(self, shares: FloatArray) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        self._refuse_empty(shares)
        share, until = self._within_cap(shares / shares.sum())
        most: FloatArray = (
            np.full(share.size, np.inf)
            if self._max_passes is None
            else np.floor(self._max_passes * self._sizes)
        ) - self._counts
        most[(share == 0) & (self._deficits <= 0)] = 0
        pace = np.maximum(share, _LEAST)
        until *= 1.1
        while True:
            domain, position, length, through, all_ = self._waiting(pace * until, most)
            ends = (through - self._deficits[domain]) / pace[domain]
            begins = ends - length / pace[domain]
            near = np.arange(domain.size) if all_ else np.flatnonzero(begins < until)
            if near.size >= self._batch_size:
                places, end = fair_queue(begins[near], ends[near], length[near], self._batch_size)
                if all_ or end < until:
                    break
            elif all_:
                raise self._spent()
            until *= 1.5
        places = near[places]
        domain, length = domain[places], length[places]
        given: FloatArray = np.bincount(domain, length, share.size).astype(np.float64)
        return domain, self._index(domain, position[places]), share * length.sum(), given

    def _waiting(
        self, request: FloatArray, most: FloatArray
    ) -> tuple[IntArray, IntArray, FloatArray, FloatArray, bool]:
        """The records that begin before each domain has had its ``request`` of tokens, [k], and
        its deficit, but no more than ``most``, [k]: domain, position on its walk, tokens, tokens up
        to its end, [n] each; and whether no others are left at all.
        """
        wanted = self._deficits + request
        ahead = np.where(wanted > 0, np.ceil(1.5 * wanted / self._mean) + 2, 0)
        while True:
            count = np.minimum(ahead, most).astype(np.int64)
            domain = np.repeat(np.arange(count.size, dtype=np.int64), count)
            before = np.cumsum(count) - count
            position = np.arange(domain.size) - np.repeat(before - self._counts, count)
            length = self._peek(np.flatnonzero(count), domain, position)
            sums = np.append(0.0, np.cumsum(length))
            missing = wanted - (sums[before + count] - sums[before])
            short = (missing > 0) & (count < most)
            if not short.any():
                through = sums[1:] - np.repeat(sums[before], count)
                return domain, position, length, through, bool((count >= most).all())
            ahead[short] += np.ceil(missing[short] / self._mean[short]) + 1

    def _within_cap(self, shares: FloatArray) -> tuple[FloatArray, float]:
        """The shares that the cap on passes leaves, [k], and about how many tokens a batch has of
        them.

        Raises:
            ValueError: every domain with a share has reached it.
        """
        tokens = self._batch_size / float((shares / self._mean).sum())
        if self._max_passes is None:
            return shares, tokens
        by_now = 1.0 if self._steps is None else min(1.0, (self._step + 1) / self._steps)
        # at least one sample, where the cap is not reached: what is due may be a part of one
        samples = np.floor(self._max_passes * self._sizes)
        room = np.maximum(samples * by_now - self._counts, samples > self._counts) * self._mean
        room -= self._deficits
        share, open_ = shares.copy(), shares > 0
        while (over := open_ & (share * tokens > room * (1 + 1e-9))).any():
            share[over] = np.maximum(room[over], 0) / tokens
            open_ &= ~over
            if not open_.any():
                if not (samples > self._counts)[shares > 0].any():
                    raise self._spent()
                return share / share.sum() if share.any() else shares, tokens
            share[open_] = (1 - share[~open_].sum()) * shares[open_] / shares[open_].sum()
            tokens = self._batch_size / float((share / self._mean).sum())
        return share / share.sum(), tokens

    def _peek(self, there: IntArray, domain: IntArray, position: IntArray) -> FloatArray:
        """Tokens of the samples at these positions of the domains ``there``; the pass in progress
        stays in place.
        """
        now = self._counts[there] // self._sizes[there]
        stale = self._pass_held[there] != now
        for one, pass_ in zip(there[stale].tolist(), now[stale].tolist(), strict=True):
            self._hold(one, pass_)
        offset = position - (self._pass_held * self._sizes)[domain]
        beyond = np.flatnonzero(offset >= self._sizes[domain])
        offset[beyond] = 0
        length: FloatArray = self._walked[self._start[domain] + offset].astype(np.float64)
        for places, one, pass_, rest in self._passes(domain, position, beyond):
            length[places] = self._lengths[self._start[one] + self._ahead(one, pass_)[rest]]
        return length

    def _index(self, domain: IntArray, position: IntArray) -> IntArray:
        """The samples at these positions, of passes that were looked into."""
        offset = position - (self._pass_held * self._sizes)[domain]
        beyond = np.flatnonzero(offset >= self._sizes[domain])
        offset[beyond] = 0
        index: IntArray = self._order[self._start[domain] + offset].astype(np.int64)
        for places, one, pass_, rest in self._passes(domain, position, beyond):
            index[places] = self._ahead(one, pass_)[rest]
        return index

    def _passes(
        self, domain: IntArray, position: IntArray, which: IntArray
    ) -> Iterator[tuple[IntArray, int, int, IntArray]]:
        """``which`` of the positions, by domain and pass: places, domain, pass, places in it."""
        if which.size:
            pass_, offset = np.divmod(position[which], self._sizes[domain[which]])
            changes = np.flatnonzero(np.diff(domain[which]) | np.diff(pass_)) + 1
            for piece in np.split(np.arange(which.size), changes):
                places = which[piece]
                yield places, int(domain[places[0]]), int(pass_[piece[0]]), offset[piece]

    def _ahead(self, domain: int, pass_: int) -> IntArray:
        """A pass that has not begun."""
        if (domain, pass_) not in self._coming:
            self._coming[domain, pass_] = super()._permutation(domain, pass_)
        return self._coming[domain, pass_]

    def _permutation(self, domain: int, pass_: int) -> IntArray:
        found = self._coming.pop((domain, pass_), None)
        return super()._permutation(domain, pass_) if found is None else found

    def _hold(self, domain: int, pass_: int) -> None:
        super()._hold(domain, pass_)
        start, size = int(self._start[domain]), int(self._sizes[domain])
        held = slice(start, start + size)
        self._walked[held] = self._lengths[held][self._order[held]]
