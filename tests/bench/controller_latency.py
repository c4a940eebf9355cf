"""How fast the controller answers many ranks at an adjustment: the time allowed over the time
measured, 256 and 1,024 ranks.

usage: python tests/bench/controller_latency.py [--quick]        (--quick: 64 and 256 ranks, three
rounds)

The controller is the real Ray actor, with 50 domains, held-out feedback and the VersaTune policy.
Eight ranks share a node, of which the first speaks to the controller for all. Nodes are simulated
by a few actors, each of which sends the reports of its share of the nodes and awaits their answers;
that the ranks of a node hand theirs to the first one over gloo is not in the figure. Everything
shares this machine, the work of all nodes (sending reports, reading an answer) included; in a
cluster each node does its own.

The figure: all nodes but one have reported (and the controller has them); from the moment the last
one sends its reports to when the last node has its answer. ``round_ms`` in the detail is a whole
round, in which all nodes report at once.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import common

GOALS = {256: 20.0, 1024: 100.0}  # ms
QUICK = {64: 20.0, 256: 20.0}
ROUNDS, CALLERS, PER_NODE, K = 15, 4, 8, 50
SETTLE = 0.5  # seconds per 256 ranks, until the controller has all reports but the last


class Caller:
    """The first ranks of some of the nodes; a node is named by the number of its first rank."""

    def __init__(self, controller: Any, nodes: list[int]):
        self.controller, self.nodes = controller, nodes

    async def report(
        self, attempt: int, step: int, nodes: list[int] | None = None
    ) -> tuple[float, float]:
        """Send the reports of these nodes; returns when the first was sent and when the last was
        answered (monotonic clock).
        """
        nodes = self.nodes if nodes is None else nodes
        reports = [
            {rank: report(step, rank) for rank in range(first, first + PER_NODE)} for first in nodes
        ]
        if not reports:
            return time.monotonic(), time.monotonic()
        began = time.monotonic()
        decisions = await asyncio.gather(
            *(self.controller.exchange.remote(attempt, told) for told in reports)
        )
        ended = time.monotonic()
        assert len({decision.number for decision in decisions}) == 1
        return began, ended


def report(step: int, rank: int) -> Any:
    import numpy as np

    from versatune_ray.training.adjustment import Report

    rng = np.random.default_rng([step, rank])
    count = rng.integers(100, 1000, K).astype(float)
    return Report(
        stage=0,
        step=step,
        epoch=step / 100,
        loss_sums=count * rng.uniform(1, 3, K),
        token_counts=count,
        train_loss_sums=count * 2.0,
        train_token_counts=count,
        samples=np.full(K, 100 + step),
        tokens=np.full(K, 20_000 + step),
        passes=np.full(K, 0.01 * step),
        seconds={"training": 60.0, "measuring": 3.0},
    )


def measure(given: dict[str, Any]) -> Any:
    import numpy as np
    import ray

    from versatune_ray.mixture import VersaTune
    from versatune_ray.settings.recipe import Recipe, StagePlan
    from versatune_ray.training.controller import start_actor

    every = tuple(range(K))
    recipe = Recipe(
        10**9, 1, 1, learning_rate=1e-3, warmup=0.0, weight_decay=0.0, max_grad_norm=0.0, seed=0
    )
    found: dict[str, dict[str, list[float]]] = {}
    with common.ray_session():
        for ranks in given["ranks"]:
            names = [f"domain-{place:02}" for place in range(K)]
            controller = start_actor(
                {
                    "domains": names,
                    "stages": [
                        StagePlan(
                            None,
                            every,
                            (1,) * K,
                            np.full(K, 1 / K),
                            VersaTune(sigma=1.0),
                            recipe,
                            1,
                            1,
                        )
                    ],
                    "reference_loss": np.full(K, 1.0),
                    "timeout": 120.0,
                }
            )
            remote = ray.remote(Caller).options(num_cpus=0, max_concurrency=8)
            parts = [
                list(range(PER_NODE * first, ranks, PER_NODE * CALLERS)) for first in range(CALLERS)
            ]
            callers = [remote.remote(controller, part) for part in parts]
            attempt = ray.get(controller.begin.remote(ranks, None))[0]
            found[str(ranks)] = {"last_ms": [], "round_ms": []}
            for step in range(2 * given["rounds"] + 2):
                early = step % 2 == 0
                if early:  # all but the last node
                    last = parts[-1][-1]
                    rest = [[node for node in part if node != last] for part in parts]
                    waiting = [
                        caller.report.remote(attempt, step, part)
                        for caller, part in zip(callers, rest, strict=True)
                    ]
                    time.sleep(SETTLE * max(1, ranks / 256))
                    times = [
                        ray.get(callers[-1].report.remote(attempt, step, [last])),
                        *ray.get(waiting),
                    ]
                    took = max(ended for _, ended in times) - times[0][0]
                else:
                    times = ray.get([caller.report.remote(attempt, step) for caller in callers])
                    took = max(ended for _, ended in times) - min(began for began, _ in times)
                if step >= 2:
                    found[str(ranks)]["last_ms" if early else "round_ms"].append(1000 * took)
            for actor in (*callers, controller):
                ray.kill(actor)
    return found


def parent(quick: bool) -> None:
    goals, rounds = (QUICK, 3) if quick else (GOALS, ROUNDS)
    found, _ = common.side(
        __file__, "measure", {"ranks": list(goals), "rounds": rounds}, timeout=600
    )
    for ranks, goal in goals.items():
        times = found[str(ranks)]
        detail = {
            "is": f"{goal:g} ms over the time from the last node's reports to the last answer, "
            f"{ranks} ranks, {K} domains",
            "allowed_ms": goal,
            "rounds": rounds,
            "callers": CALLERS,
            "ranks_per_node": PER_NODE,
        } | {
            kind: {
                "median": round(statistics.median(one), 1),
                "spread": [round(min(one), 1), round(max(one), 1)],
            }
            for kind, one in times.items()
        }
        common.report(
            f"controller_latency_{ranks}",
            [goal / took for took in times["last_ms"]],
            1.0,
            detail | common.machine(),
        )


if __name__ == "__main__":
    common.run(__doc__, parent, {"measure": measure})
