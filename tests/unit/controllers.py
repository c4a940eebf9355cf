"""Weight controllers of two domains, undecorated, and reports of ranks to them."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from versatune_ray.mixture import VersaTune
from versatune_ray.settings.recipe import Recipe, StagePlan
from versatune_ray.training.adjustment import Report
from versatune_ray.training.controller import WeightController

START = np.array([0.5, 0.5])


def stage(
    policy: Any,
    name: str | None = None,
    sources: tuple[int, ...] = (0, 1),
    start: Any = START,
    first: int = 0,
    steps: int = 99,
) -> StagePlan:
    recipe = Recipe(
        steps, 8, 100, learning_rate=1e-3, warmup=0.0, weight_decay=0.0, max_grad_norm=0.0, seed=0
    )
    return StagePlan(
        name,
        sources,
        (10, 10),
        start,
        policy,
        recipe,
        adjust_every=10,
        epoch_samples=80,
        first=first,
    )


def controller(
    policy: Any = None, reference: Any = (1.0, 1.0), timeout: float = 5.0, **more: float
) -> WeightController:
    return WeightController(
        ["law", "code"],
        [stage(policy or VersaTune(sigma=1.0))],
        np.array(reference),
        timeout,
        **more,
    )


def report(
    step: int, sums: list[float], counts: list[float], samples: tuple[int, int] = (3, 1)
) -> Report:
    zero, some = np.zeros(2), np.array(samples)
    return Report(
        0,
        step,
        step / 10,
        np.array(sums),
        np.array(counts),
        zero,
        zero,
        some,
        some * 10,
        np.zeros(2),
        {"training": 1.0},
    )


def exchange(actor: WeightController, *reports: Report, attempt: int = 1) -> list[Any]:
    async def run() -> list[Any]:
        return await asyncio.gather(
            *(actor.exchange(attempt, {rank: told}) for rank, told in enumerate(reports))
        )

    return asyncio.run(run())


def drawn(step: int, law: float | None, code: float | None, passes: tuple[float, float]) -> Report:
    """A report of training losses, of one token per domain; None: not drawn."""
    losses, counts = (
        np.array([law or 0.0, code or 0.0]),
        np.array([law is not None, code is not None]).astype(float),
    )
    samples = counts.astype(np.int64)
    return Report(
        0, step, step / 10, None, None, losses, counts, samples, samples, np.array(passes)
    )
