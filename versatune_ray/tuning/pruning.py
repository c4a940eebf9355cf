"""Stopping hopeless trials early (ASHA): their scores are compared after equal numbers of samples,
however large their steps are and however often they adjust.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from versatune_ray.domains import DomainPaths, load_domains
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.recipe import StagePlan


class Marks:
    """Scores of one trial at multiples of ``every`` samples, between adjustments by straight lines.

    The measurement before step 1 is none of them.
    """

    def __init__(self, every: int, stages: Sequence[StagePlan]):
        self._every, self._stages = every, stages
        self._last: tuple[int, float] | None = None  # samples, score

    def reached(self, step: int, score: float | None) -> Iterator[tuple[int, float]]:
        """(samples, score) of the marks up to the adjustment at ``step`` that had not been reached
        before it; none without a score.
        """
        if score is None:
            return
        seen, before = samples_seen(self._stages, step), self._last
        self._last = seen, score
        if before is None:  # the first that is heard of: what was before it is not known
            before = seen - 1, score
        for mark in range((before[0] // self._every + 1) * self._every, seen + 1, self._every):
            if mark > 0:
                part = (mark - before[0]) / (seen - before[0])
                yield mark, before[1] + part * (score - before[1])


def samples_seen(stages: Sequence[StagePlan], step: int) -> int:
    """Samples of the first ``step`` optimizer steps; a stage may have a batch size of its own."""
    return sum(
        max(0, min(step, stage.last) - stage.first) * stage.recipe.batch_size for stage in stages
    )


def stages_of(config: Config, stores: Mapping[str, DomainPaths]) -> list[StagePlan]:
    """The stages of a trial as far as their steps and batches go: its shares are not looked up."""
    domains = load_domains(stores, config.data)
    sizes = [len(domain.train) for domain in domains.values()]
    even = [1 / len(sizes)] * len(sizes)
    return semantics.stages(config, list(domains), sizes, even, "nats/token")


def between_marks(stages: Sequence[StagePlan]) -> int:
    """Samples of one adjustment, at the beginning of a run."""
    return stages[0].adjust_every * stages[0].recipe.batch_size


def scheduler(every: int, grace: int) -> Any:
    """Ray Tune's ASHA over the marks: a trial may be stopped from the ``grace``-th on, after 1, 2,
    4, … times as many samples, if its score is in the lower half of those that came so far.
    """
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="samples",
        metric="score",
        mode="max",
        grace_period=grace * every,
        max_t=every * 10**6,
        reduction_factor=2,
    )
