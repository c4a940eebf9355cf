"""Which records come next: the sampler that a recipe asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains import DomainData
from versatune_ray.mixture import DomainSampler, ShardOrder, TokenSampler
from versatune_ray.settings.recipe import Recipe

Indices = NDArray[np.int64]
# between the seeds of two orders: no two of small seeds and few orders meet
_ORDERS = 0x9E3779B97F4A7C15


def sampler_of(
    recipe: Recipe, data: Sequence[DomainData], chosen: Sequence[Indices | None]
) -> DomainSampler:
    """``chosen``: of each domain's training records, those that are used; None: all."""

    def of(domain: int, column: str) -> NDArray[np.int64]:
        values = np.asarray(getattr(data[domain].train, column))
        records = chosen[domain]
        return values if records is None else values[records]

    def walk(domain: int, order: str) -> Indices | ShardOrder | None:
        at_once = recipe.shards_at_once
        if order == "random":
            return None if at_once is None else ShardOrder(of(domain, "shards"), at_once)
        lengths = of(domain, "lengths")
        return np.arange(lengths.size) if order == "given" else np.argsort(lengths, kind="stable")

    seed = (recipe.seed + recipe.order * _ORDERS) % 2**64
    names = [domain.name for domain in data]
    orders = recipe.orders or ("random",) * len(data)
    walks = [walk(domain, order) for domain, order in enumerate(orders)]
    more = (recipe.batch_size, seed, names, recipe.max_passes, recipe.steps, walks)
    if recipe.counted == "samples":
        sizes = [
            len(domain.train) if records is None else len(records)
            for domain, records in zip(data, chosen, strict=True)
        ]
        return DomainSampler(sizes, *more)
    column = "response_tokens" if recipe.counted == "response" else "lengths"
    return TokenSampler([of(domain, column) for domain in range(len(data))], *more)
