"""Which sample of which domain comes next: a pure function of (seed, step, shares so far)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from operator import index as integer
from typing import Any

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.apportion import EPSILON, apportion
from versatune_ray.mixture.arrays import FloatArray, IntArray, label
from versatune_ray.mixture.shard_order import ShardOrder
from versatune_ray.mixture.shares import check_shares
from versatune_ray.mixture.streams import stream

_ORDER = 2**64 - 1  # the stream that orders batches, where those of domains are 0 … k−1
# parts of a state that only some samplers have
_SELDOM = ("unit", "walks")


class DomainSampler:
    """Draws global batches whose domain counts follow the shares without variance (see
    ``apportion``).

    Each domain walks a seeded permutation of its samples, a new one each pass, so small domains
    repeat and large ones do not reach their end. Within a batch, every domain's samples are spread
    evenly over the places with seeded jitter, so that contiguous slices of a batch, one per rank,
    have the mix of the whole within about three samples per domain.

    The state is three numbers per domain; permutations are made again when a state is loaded.
    Orders come from sorting raw Philox words, a stream that NumPy keeps stable from version to
    version.
    """

    def __init__(
        self,
        sizes: npt.ArrayLike,
        batch_size: int,
        seed: int,
        names: Sequence[str] | None = None,
        max_passes: float | None = None,
        steps: int | None = None,
        walks: Sequence[npt.ArrayLike | ShardOrder | None] | None = None,
    ) -> None:
        """Start before the first batch.

        Args:
            sizes: samples per domain, [k], integers ≥ 0. A domain of size 0 is allowed as long as
                its share is 0.
            batch_size: samples per global batch, ≥ 1.
            seed: 0 … 2⁶⁴−1.
            names: domain names, for errors.
            max_passes: most passes over any domain, > 0; None: no cap. A domain's request ends at
                floor(max_passes · size) samples; what it would have had beyond goes to the other
                domains in proportion to their shares.
            steps: batches planned, ≥ 1. These samples are then spread over them: a domain that had
                them all at the beginning would be forgotten by the end.
            walks: of each domain the order of its samples, [n], the same in each pass, or from
                shard to shard; None: at random.

        Raises:
            ValueError: an argument out of range.
        """
        counted = np.array(sizes)
        if (
            counted.ndim != 1
            or not np.issubdtype(counted.dtype, np.integer)
            or not (counted >= 0).all()
            or not counted.any()
        ):
            raise ValueError(
                f"sizes: {sizes!r} are not integers ≥ 0, one per domain, with at least one above 0"
            )
        if names is not None and len(names) != counted.size:
            raise ValueError(f"{len(names)} domain names for {counted.size} domains")
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} is below 1")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: {seed} is not within 0 and 2**64 − 1")
        if max_passes is not None and not 0 < max_passes < np.inf:
            raise ValueError(f"max_passes: {max_passes} is not a finite number > 0")
        self._sizes: IntArray = counted.astype(np.int64)
        self._sizes.flags.writeable = False
        self._batch_size, self._seed, self._names = integer(batch_size), integer(seed), names
        if steps is not None and steps < 1:
            raise ValueError(f"steps: {steps} is below 1")
        self._max_passes = None if max_passes is None else float(max_passes)
        # without a cap there is nothing to spread
        self._steps = None if max_passes is None else steps
        self._step = 0
        self._counts: IntArray = np.zeros(counted.size, dtype=np.int64)
        self._deficits: FloatArray = np.zeros(counted.size)
        # All current permutations lie end to end, so that a batch is one gather; the pages of a
        # domain never drawn are never touched.
        self._start = np.cumsum(self._sizes) - self._sizes
        self._order = np.empty(
            int(self._sizes.sum()), dtype=np.int32 if self._sizes.max() < 2**31 else np.int64
        )
        self._pass_held: IntArray = np.full(counted.size, -1, dtype=np.int64)
        self._walks = {
            domain: self._checked(domain, walk)
            for domain, walk in enumerate(walks or ())
            if walk is not None
        }

    @property
    def sizes(self) -> IntArray:
        """Samples per domain, [k], read-only."""
        return self._sizes

    @property
    def step(self) -> int:
        """Batches drawn so far."""
        return self._step

    @property
    def counts(self) -> IntArray:
        """Samples drawn so far per domain, [k]."""
        return self._counts.copy()

    @property
    def deficits(self) -> FloatArray:
        """What was requested so far minus what was drawn, per domain, [k], in the unit of the
        shares.
        """
        return self._deficits.copy()

    @property
    def passes(self) -> FloatArray:
        """Passes over each domain so far, [k]: above 1, samples have repeated. An empty domain has
        0.
        """
        done: FloatArray = self._counts / np.maximum(self._sizes, 1)
        return done

    def next_batch(self, shares: npt.ArrayLike) -> tuple[IntArray, IntArray]:
        """Draw one global batch: (domain[b], index within that domain[b]), in training order.

        Raises:
            ValueError: no valid shares; an empty domain has a share (it is named); or every domain
                with a share has reached ``max_passes``. The sampler is then as it was before the
                call.
        """
        domain, index, request, given = self._choose(
            check_shares(shares, self._sizes.size, self._names)
        )
        drawn = np.bincount(domain, minlength=self._sizes.size)
        nth = np.arange(self._batch_size) - np.repeat(np.cumsum(drawn) - drawn, drawn)
        jitter = (
            self._stream(_ORDER, self._step).random_raw(self._batch_size) >> np.uint64(11)
        ) * 2.0**-53
        places = np.argsort((nth + jitter) / drawn[domain], kind="stable")
        self._deficits += request - given
        self._counts += drawn
        self._step += 1
        return domain[places], index[places]

    def _choose(self, shares: FloatArray) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        """The samples of the next batch, (domain[b], index[b]) by domain and in the order of its
        walk; and per domain [k] what was requested and what is given, in the unit of the shares.
        """
        request = self._request(shares)
        given = apportion(self._deficits + request, request, self._batch_size)
        domain = np.repeat(np.arange(given.size, dtype=np.int64), given)
        nth = np.arange(self._batch_size) - np.repeat(np.cumsum(given) - given, given)
        index = self._walk(domain, self._counts[domain] + nth)
        return domain, index, request, given.astype(np.float64)

    def shards_near(self, domain: int) -> list[int] | None:
        """The shards that a domain's next samples lie in, now and next; None where its order does
        not go by shards.
        """
        walk = self._walks.get(domain)
        if not isinstance(walk, ShardOrder) or not walk.size:
            return None
        pass_, offset = divmod(int(self._counts[domain]), walk.size)
        now, soon = walk.near(self._stream(domain, pass_), offset)
        if not soon.size:
            soon, _ = walk.near(self._stream(domain, pass_ + 1), 0)
        return [*map(int, now), *map(int, soon)]

    def state_dict(self) -> dict[str, Any]:
        """Plain Python numbers and lists, which JSON keeps exactly."""
        return {
            **self._identity(),
            "step": self._step,
            "counts": self._counts.tolist(),
            "deficits": self._deficits.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken: all later batches are those that the saved sampler
        would have drawn.

        Raises:
            ValueError: the state lacks a key, is inconsistent, or is of a sampler with other sizes,
                batch size, seed, max_passes, steps, unit or order.
        """
        mine = self._identity()
        if missing := [key for key in (*mine, "step", "counts", "deficits") if key not in state]:
            raise ValueError(f"sampler state: {', '.join(missing)} missing")
        for key in dict.fromkeys((*mine, *(key for key in _SELDOM if key in state))):
            there, here = state[key], mine.get(key)
            if not np.array_equal(there, here):  # type: ignore[arg-type]
                raise ValueError(
                    f"sampler state: {key} is {_brief(there)} there and {_brief(here)} here; "
                    f"the stream would not continue"
                )
        counts, deficits = np.array(state["counts"]), np.array(state["deficits"], dtype=np.float64)
        whole = (
            counts.shape == self._sizes.shape
            and np.issubdtype(counts.dtype, np.integer)
            and (counts >= 0).all()
        )
        if not whole or int(counts.sum()) != state["step"] * self._batch_size:
            raise ValueError(
                "sampler state: counts do not add up to step · batch_size samples; the state is "
                "damaged"
            )
        if (
            deficits.shape != self._sizes.shape
            or not abs(float(deficits.sum())) < 1e-3
            or not (deficits > -self._most_ahead).all()
        ):
            raise ValueError(
                f"sampler state: deficits are not one number above −{self._most_ahead:g} per "
                f"domain, summing to 0; the state is damaged"
            )
        self._step, self._counts, self._deficits = (
            int(state["step"]),
            counts.astype(np.int64),
            deficits,
        )

    @property
    def _most_ahead(self) -> float:
        """What no domain's count runs ahead of its request by, in the unit of the shares."""
        return 1.0

    def _identity(self) -> dict[str, Any]:
        mine: dict[str, Any] = {
            "seed": self._seed,
            "batch_size": self._batch_size,
            "sizes": self._sizes.tolist(),
            "max_passes": self._max_passes,
            "steps": self._steps,
        }
        if self._walks:
            mine["walks"] = {
                str(domain): zlib.crc32(walk.tobytes()) for domain, walk in self._walks.items()
            }
        return mine

    def _checked(self, domain: int, walk: npt.ArrayLike | ShardOrder) -> IntArray | ShardOrder:
        size = int(self._sizes[domain])
        if isinstance(walk, ShardOrder):
            if walk.size != size:
                raise ValueError(
                    f"walks: {walk.size} shards for {size} samples of {label(domain, self._names)}"
                )
            return walk
        order = np.asarray(walk, dtype=np.int64)
        if order.shape != (size,) or (np.sort(order) != np.arange(size)).any():
            raise ValueError(
                f"walks: that of {label(domain, self._names)} is no order of its {size} samples"
            )
        return order

    def _refuse_empty(self, shares: FloatArray) -> None:
        empty = (shares > 0) & (self._sizes == 0)
        if empty.any():
            domain = int(empty.argmax())
            raise ValueError(
                f"{label(domain, self._names)} has no samples but a share of {shares[domain]:.6g}"
            )

    def _spent(self) -> ValueError:
        by = f", or its part of them by step {self._step + 1} of {self._steps}"
        return ValueError(
            f"max_passes: every domain with a share has reached {self._max_passes} passes"
            f"{by if self._steps else ''}; raise it, stop earlier, or give others a share"
        )

    def _request(self, shares: FloatArray) -> FloatArray:
        """Samples requested of each domain in this batch, [k], summing to the batch size."""
        self._refuse_empty(shares)
        request: FloatArray = self._batch_size * (shares / shares.sum())
        if self._max_passes is None:
            return request
        by_now = 1.0 if self._steps is None else min(1.0, (self._step + 1) / self._steps)
        room = np.floor(self._max_passes * self._sizes) * by_now - (self._counts + self._deficits)
        open_ = shares > 0
        # What a full domain cannot take may fill the next one; each round closes at least one.
        while (over := open_ & (request > room + EPSILON)).any():
            request[over] = np.maximum(room[over], 0)
            open_ &= ~over
            if not open_.any():
                raise self._spent()
            left = self._batch_size - request[~open_].sum()
            request[open_] = left * shares[open_] / shares[open_].sum()
        return request

    def _walk(self, domain: IntArray, position: IntArray) -> IntArray:
        """The samples at these positions of the domains' endless walks; both sorted by domain, then
        position.
        """
        pass_, offset = np.divmod(position, self._sizes[domain])
        place = self._start[domain] + offset
        index: IntArray = self._order[place].astype(np.int64)
        new = np.flatnonzero(pass_ != self._pass_held[domain])
        if new.size:
            changes = np.flatnonzero(np.diff(domain[new]) | np.diff(pass_[new])) + 1
            for piece in np.split(new, changes):
                self._hold(int(domain[piece[0]]), int(pass_[piece[0]]))
                index[piece] = self._order[place[piece]]
        return index

    def _hold(self, domain: int, pass_: int) -> None:
        """Put the permutation of one pass over one domain in place."""
        start, size = int(self._start[domain]), int(self._sizes[domain])
        self._order[start : start + size] = self._permutation(domain, pass_)
        self._pass_held[domain] = pass_

    def _permutation(self, domain: int, pass_: int) -> IntArray:
        walk = self._walks.get(domain)
        if isinstance(walk, ShardOrder):
            return walk.permutation(self._stream(domain, pass_))
        if walk is not None:
            return walk
        # Sorting raw words, not Generator.permutation: NumPy may change what a Generator makes of
        # its bits.
        size = int(self._sizes[domain])
        return np.argsort(self._stream(domain, pass_).random_raw(size), kind="stable")

    def _stream(self, which: int, number: int) -> np.random.Philox:
        return stream(self._seed, which, number)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
