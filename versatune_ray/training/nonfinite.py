"""Which records a loss that is no number comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from versatune_ray.domains import DomainData
from versatune_ray.training.batches import Layout
from versatune_ray.training.parallel import Parallel
from versatune_ray.training.step import Array, Drawn, not_finite


@torch.no_grad()
def find_not_finite(
    drawn: Drawn, nats: Array, data: Sequence[DomainData], layout: Layout, parallel: Parallel
) -> str:
    """Find out what is not finite in a step; the same on every rank. ``nats``: this rank's, per
    domain [k].
    """
    mine: list[str] = []
    bad = ~np.isfinite(nats)
    for batch in drawn.batches if bad.any() else ():
        samples = batch.samples.take(np.flatnonzero(bad[batch.samples.domain]))
        named: list[Any] = [samples]
        # A single rank cannot go through a sharded model: all its samples of the domain are named.
        if not parallel.in_step and len(samples):
            singles = (samples.take(np.array([row])) for row in range(len(samples)))
            passes = [layout.collate(single, None).to(parallel.device) for single in singles]
            named = [
                one.samples
                for one in passes
                if not torch.isfinite(parallel.forward(one.inputs, train=False)).all()
            ]
        mine += [
            f"{data[domain].name}: {location}"
            for found in named
            for domain, location in zip(found.domain, found.locations(), strict=True)
        ]
    return not_finite(text for texts in parallel.gather(mine) for text in texts)
