"""Shares that follow a plan, whatever the losses say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray
from versatune_ray.mixture.feedback import Feedback
from versatune_ray.mixture.shares import check_shares, normalised, proportional, uniform

Named = Literal["uniform", "proportional"]


@dataclass(frozen=True)
class Schedule:
    """Shares from waypoint to waypoint; before the first and after the last, theirs. They hold from
    one adjustment to the next, as those of every policy.

    Attributes:
        waypoints: (at, shares) at rising steps; ``at``: an optimizer step (int), or a fraction of
            all (float, within 0 and 1); ``shares``: [k], or the name of a rule. By default the run
            is annealed from uniform to proportional.
        between: ``linear``; ``cosine``, slow at both ends; or ``geometric``, P ∝ a^(1−w)·b^w for w
            from 0 to 1: from uniform to proportional that is records^(1/τ) with τ = 1/w, a
            temperature that falls to 1.

    Raises:
        ValueError: no waypoint, one that is out of range, an unknown ``between``, or ``geometric``
            from some domains to others alone; ``update`` without a budget, or as ``steps``.
    """

    needs_reference: ClassVar[bool] = False
    needs_budget: ClassVar[bool] = True
    starts: ClassVar[bool] = True

    waypoints: Sequence[tuple[int | float, Sequence[float] | Named]] = (
        (0.0, "uniform"),
        (1.0, "proportional"),
    )
    between: Literal["linear", "cosine", "geometric"] = "linear"

    def __post_init__(self) -> None:
        if not self.waypoints:
            raise ValueError("waypoints: at least one is needed")
        for at, shares in self.waypoints:
            if isinstance(at, bool) or not (at >= 0 if isinstance(at, int) else 0 <= at <= 1):
                raise ValueError(
                    f"waypoints: at {at!r} is no step of at least 0 and no fraction within 0 and 1"
                )
            if isinstance(shares, str):
                if shares not in ("uniform", "proportional"):
                    raise ValueError(
                        f"waypoints: shares {shares!r} are unknown; valid: uniform, proportional, "
                        f"or one for each domain"
                    )
            else:
                check_shares(shares)
        if self.between not in ("linear", "cosine", "geometric"):
            raise ValueError(
                f"between: {self.between!r} is unknown; valid: 'linear', 'cosine', 'geometric'"
            )
        given = [None if isinstance(one, str) else np.asarray(one) for _, one in self.waypoints]
        for before, after in pairwise(given) if self.between == "geometric" else ():
            if before is not None and after is not None and not (before * after).any():
                raise ValueError(
                    "waypoints: geometric needs a domain with a share at both of two neighbours"
                )

    @property
    def counts_records(self) -> bool:
        """Whether shares follow the numbers of records."""
        return any(shares == "proportional" for _, shares in self.waypoints)

    def start(self, sizes: npt.ArrayLike) -> FloatArray:
        """Shares before step 1, [k]: those of the first waypoint."""
        return _resolved(self.waypoints[0][1], np.asarray(sizes, dtype=np.float64))

    def steps(self, planned: int) -> FloatArray:
        """The optimizer step of each waypoint in a run of ``planned`` steps.

        Raises:
            ValueError: they do not rise, or one lies past the end.
        """
        steps = np.array([at if isinstance(at, int) else at * planned for at, _ in self.waypoints])
        told = f"waypoints: at {', '.join(f'{step:g}' for step in steps)} of {planned} steps"
        if (np.diff(steps) <= 0).any():
            raise ValueError(f"{told}; they have to rise")
        if steps[-1] > planned:
            raise ValueError(f"{told}; the last is past the end: write parts, as 100%")
        return np.asarray(steps, dtype=np.float64)

    def unheeded(self, planned: int, every: int) -> int | None:
        """The first waypoint that changes nothing, where shares hold for ``every`` of ``planned``
        steps: no adjustment before the end lies between its neighbours. None: all count.

        Raises:
            ValueError: as ``steps``.
        """
        ends = np.append(self.steps(planned), planned)
        for number in range(1, len(self.waypoints)):
            after = (np.floor(ends[number - 1] / every) + 1) * every
            last = number == len(self.waypoints) - 1
            if after >= (planned if last else min(ends[number + 1], planned)):
                return number
        return None

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        check_shares(shares, feedback.loss.size, feedback.names)
        budget = feedback.needed("budget", "a schedule")
        steps = self.steps(budget.steps)
        place = int(np.searchsorted(steps, feedback.step, side="right"))
        sides = self.waypoints[max(place - 1, 0)][1], self.waypoints[min(place, len(steps) - 1)][1]
        before, after = (_resolved(side, budget.sizes) for side in sides)
        if place in (0, len(steps)):
            return before
        way = float((feedback.step - steps[place - 1]) / (steps[place] - steps[place - 1]))
        if self.between == "geometric":
            return normalised(before ** (1 - way) * after**way)
        if self.between == "cosine":
            way = (1 - float(np.cos(np.pi * way))) / 2
        return check_shares((1 - way) * before + way * after)

    def guard_state(self, shares: npt.ArrayLike, feedback: Feedback) -> None:
        return None


def _resolved(shares: Sequence[float] | Named, sizes: FloatArray) -> FloatArray:
    if isinstance(shares, str):
        return uniform(sizes.size) if shares == "uniform" else proportional(sizes)
    return check_shares(shares, sizes.size)
