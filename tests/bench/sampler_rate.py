"""Samples per second that ``DomainSampler`` draws from 1,000 domains of mixed sizes while their
shares move, in millions.

usage: python tests/bench/sampler_rate.py [--quick]

Shares take a random step before every batch. Permutations are made before the measuring starts,
until every domain has been drawn, and their time is added to every sample's as its part of one pass
over all records. The headline is the batch size ``HEADLINE``; all of ``BATCHES`` are in the detail,
beside ``TokenSampler`` on records of mixed lengths (``tokens``), and a plain draw by NumPy:
``Generator.choice`` of a domain for every place by share, then a uniform random record of each,
with replacement. That one knows no passes and no resuming, and its counts scatter around the
shares.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import common
import numpy as np

from versatune_ray.mixture import DomainSampler, TokenSampler

GOAL = 1.0
K, HEADLINE = 1_000, 1_024
BATCHES = (128, 1_024, 8_192, 65_536)
ROUNDS, SECONDS = 7, 1.0  # per batch size and side
DOMAIN_SIZES = (50, 200_000)  # log-uniform between them


def moving(seed: int) -> Iterator[Any]:
    """Shares of K domains that never stand still."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=K)
    while True:
        logits += 0.02 * rng.normal(size=K)
        shares = np.exp(logits)
        yield shares / shares.sum()


def rate(draw: Callable[[Any], Any], shares: Iterator[Any], batch: int, seconds: float) -> float:
    """Samples per second of ``draw`` alone, without the time that it takes to move the shares."""
    spent, drawn = 0.0, 0
    while spent < seconds:
        share = next(shares)
        began = time.perf_counter()
        draw(share)
        spent += time.perf_counter() - began
        drawn += batch
    return drawn / spent


def plain(sizes: Any, batch: int, seed: int) -> Callable[[Any], Any]:
    rng = np.random.default_rng(seed)

    def draw(shares: Any) -> Any:
        domain = rng.choice(K, size=batch, p=shares)
        return domain, rng.integers(0, sizes[domain])

    return draw


def parent(quick: bool) -> None:
    rounds, seconds = (2, 0.1) if quick else (ROUNDS, SECONDS)
    sizes = np.exp(np.random.default_rng(0).uniform(*np.log(DOMAIN_SIZES), K)).astype(np.int64)
    lengths = np.exp(np.random.default_rng(1).normal(5, 1, DOMAIN_SIZES[1])).astype(np.int64)
    found: dict[int, dict[str, list[float]]] = {}
    for batch in BATCHES:
        sampler, shares = DomainSampler(sizes, batch, seed=0), moving(0)
        began = time.perf_counter()
        while not sampler.counts.all():
            sampler.next_batch(np.full(K, 1 / K))
        permuting = (time.perf_counter() - began) / int(sizes.sum())  # seconds per sample
        by_tokens = TokenSampler([lengths[:size] for size in sizes], batch, seed=0)
        while not by_tokens.counts.all():
            by_tokens.next_batch(np.full(K, 1 / K))
        sides = {
            "ours": sampler.next_batch,
            "tokens": by_tokens.next_batch,
            "choice": plain(sizes, batch, 0),
        }
        found[batch] = {side: [] for side in (*sides, "drawing_alone")}
        for number in range(rounds):
            for side in list(sides) if number % 2 == 0 else list(sides)[::-1]:
                alone = rate(sides[side], shares, batch, seconds)
                if side == "ours":
                    found[batch]["drawing_alone"].append(alone / 1e6)
                    alone = 1 / (1 / alone + permuting)
                found[batch][side].append(alone / 1e6)
    detail: dict[str, Any] = {
        "unit": "million samples/s",
        "batch_size": HEADLINE,
        "domains": K,
        "records": int(sizes.sum()),
        "rounds": rounds,
        "by_batch_size": {
            batch: {side: round(statistics.median(values), 3) for side, values in both.items()}
            | {"us_per_batch": round(batch / statistics.median(both["drawing_alone"]), 1)}
            for batch, both in found.items()
        },
    }
    common.report("sampler_rate", found[HEADLINE]["ours"], GOAL, detail | common.machine())


if __name__ == "__main__":
    common.run(__doc__, parent, {})
