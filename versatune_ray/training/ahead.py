"""Shards of token stores behind a URI: those that the next steps draw from are brought while the
device works, and those behind are dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from versatune_ray.domains import Records
from versatune_ray.mixture import DomainSampler


class ShardsAhead:
    """What every rank does for itself: of the ranks of a machine one brings a shard, for all of
    them, and they are in the same step.

    A machine holds the shards that a domain draws from, as many that come next, and those that it
    drew from before, which a rank may still be reading.
    """

    def __init__(self, records: Sequence[Records]):
        """``records``: those that each domain trains on."""
        self._fetched = [
            (domain, one.store) for domain, one in enumerate(records) if one.store.is_fetched
        ]
        self._thread = ThreadPoolExecutor(1, "shards")
        # the last changes of what is near, each the shards of one domain
        self._near: dict[int, deque[frozenset[int]]] = {}

    def follow(self, sampler: DomainSampler) -> None:
        """Bring what the steps from here on draw from, and return at once."""
        for domain, store in self._fetched:
            shards = sampler.shards_near(domain)
            if shards is None:
                continue
            near, held = frozenset(shards), self._near.setdefault(domain, deque())
            if held and held[-1] == near:
                continue
            held.append(near)
            if len(held) > 2:
                for shard in held.popleft() - held[0] - near:
                    store.drop(shard)
            for shard in shards:
                if len(held) == 1 or shard not in held[0]:
                    self._thread.submit(store.bring, shard)
