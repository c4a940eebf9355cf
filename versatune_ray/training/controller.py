"""The weight controller: gathers every rank's losses, lets the policy decide, answers all ranks
with the same numbered shares.

Ranks of one node report together, so that a thousand ranks are about a hundred calls.

A plain class; ``start_actor`` at the end makes it an actor. Its state rides in the
checkpoint, so that shares roll back with the model: losing the actor, a worker or a node loses no
decision and repeats none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from versatune_ray.mixture import (
    Schedule,
    apply_policy,
    check_shares,
    forgetting_degree,
    learnable_potential,
    new_warnings,
)
from versatune_ray.settings.recipe import StagePlan
from versatune_ray.training.adjustment import Array, Decision, Refused, Report
from versatune_ray.training.feedback import feedback_of, measured, passes_in, trained_in
from versatune_ray.training.heartbeat import Sign, held_up_by


class WeightController:
    """Aggregates, decides, remembers. One round of ``exchange`` is one adjustment; a stage's first
    round only measures.
    """

    def __init__(
        self,
        domains: Sequence[str],
        stages: Sequence[StagePlan],
        reference_loss: Array | None,
        timeout: float,
        warn_passes: float = 4.0,
        smoothing: float = 0.0,
    ):
        self.domains, self.reference_loss, self.timeout = tuple(domains), reference_loss, timeout
        self.stages = list(stages)
        self.warn_passes, self.smoothing = warn_passes, smoothing
        for stage in self.stages:
            check_shares(stage.start, k=len(self.domains), names=self.domains)
        self.attempt, self.world = 0, 0
        self.number = 0
        self.share = self.stages[0].start
        self.previous_loss: Array | None = None
        self.lines: list[dict[str, Any]] = []
        self._round = _Round()
        self._heard: dict[int, Sign] = {}
        self.stopped: str | None = None

    def begin(
        self, world: int, state: dict[str, Any] | None
    ) -> tuple[int, list[float], list[dict[str, Any]]]:
        """Start an attempt of ``world`` ranks from a checkpoint's ``state`` (None: from the start).
        Called by rank 0 alone.

        Whatever ranks of an earlier attempt still say is refused. Returns the attempt's number, the
        shares in force, the log so far.
        """
        self.attempt += 1
        self.world = world
        self._heard = {rank: Sign(time.monotonic(), 0.0) for rank in range(world)}
        self._restore(state)
        return self.attempt, self.share.tolist(), self.lines

    async def exchange(self, attempt: int, reports: Mapping[int, Report]) -> Decision:
        """Some ranks' parts of an adjustment, by rank; returns once all ranks of the current
        attempt have reported.

        Raises:
            RuntimeError: reports of an earlier attempt, or of another step than the others'.
            TimeoutError: some ranks did not report within the time-out; they are named.
            Refused: as ``decide``.
        """
        report = next(iter(reports.values()))
        if attempt != self.attempt:
            raise RuntimeError(
                f"rank {min(reports)} belongs to attempt {attempt}; attempt {self.attempt} is "
                f"running"
            )
        round_ = self._round
        for rank, part in reports.items():
            first = next(iter(round_.reports.values()), report)
            if first.step != part.step:
                raise RuntimeError(
                    f"rank {rank} reports step {part.step} while the others are at step "
                    f"{first.step}"
                )
            round_.reports[rank] = part
        if len(round_.reports) == self.world and not round_.decision.done():
            self._round = _Round()
            try:
                round_.decision.set_result(
                    self.decide([round_.reports[r] for r in sorted(round_.reports)])
                )
            except Exception as error:  # else the other nodes would wait in vain
                round_.decision.set_exception(error)
        try:
            decision = await asyncio.wait_for(asyncio.shield(round_.decision), self.timeout)
            # a thousand lines would take longer than all the rest
            return decision if 0 in reports else replace(decision, line={})
        except TimeoutError:
            missing = sorted(set(range(self.world)) - set(round_.reports))
            raise TimeoutError(
                f"adjustment at step {report.step}: no word from rank(s) {missing} within "
                f"{self.timeout:g} s"
            ) from None

    def beat(self, attempt: int, rank: int, reached: float) -> None:
        """``rank`` is alive and has come so far (see ``Trainer.reached``)."""
        if attempt == self.attempt:
            self._heard[rank] = Sign(time.monotonic(), reached)

    def missing(self) -> list[int]:
        """Ranks that the others wait for (see ``held_up_by``)."""
        return held_up_by(self._heard, time.monotonic())

    def stop(self, reason: str) -> None:
        """What no further attempt would mend; the first reason stands."""
        self.stopped = self.stopped or reason

    def reason(self) -> str | None:
        return self.stopped

    def state_dict(self, attempt: int) -> dict[str, Any]:
        """Plain JSON; floats come back exactly.

        Raises:
            RuntimeError: this is not the running attempt, or the actor died and came back empty: no
                state to keep beside a model.
        """
        if attempt != self.attempt:
            raise RuntimeError(
                f"the state of attempt {attempt} is gone; attempt {self.attempt} is running"
            )
        return {
            "domains": list(self.domains),
            "number": self.number,
            "share": self.share.tolist(),
            "previous_loss": None if self.previous_loss is None else self.previous_loss.tolist(),
            "lines": self.lines,
        }

    def _restore(self, state: dict[str, Any] | None) -> None:
        self._round = _Round()
        self.number = state["number"] if state else 0
        self.share = np.array(state["share"]) if state else self.stages[0].start
        self.previous_loss = (
            np.array(state["previous_loss"])
            if state and state["previous_loss"] is not None
            else None
        )
        self.lines = list(state["lines"]) if state else []
        if state and tuple(state["domains"]) != self.domains:
            raise ValueError(
                f"the checkpoint's domains {state['domains']} are not the configured ones "
                f"{list(self.domains)}"
            )

    def decide(self, reports: Sequence[Report]) -> Decision:
        """One adjustment, from the reports of all ranks in rank order.

        Raises:
            Refused: a loss is missing, negative, NaN or infinite (the domain is named); or the
                policy fails, or its answer is no distribution.
        """
        try:
            return self._decide(reports)
        except ValueError as error:
            raise Refused(str(error)) from error

    def _decide(self, reports: Sequence[Report]) -> Decision:
        first = reports[0]
        train_nats, train_count = (
            sum(r.train_loss_sums for r in reports),
            sum(r.train_token_counts for r in reports),
        )
        train_loss = np.divide(
            train_nats,
            train_count,
            out=np.full(len(self.domains), np.nan),
            where=np.asarray(train_count) > 0,
        )
        if first.loss_sums is not None:
            counts = np.asarray(sum(r.token_counts for r in reports if r.token_counts is not None))
            loss = np.divide(sum(r.loss_sums for r in reports if r.loss_sums is not None), counts)
        else:
            loss = self._smoothed(train_loss, self.stages[first.stage])
        stage = self.stages[first.stage]
        lines = [line for line in self.lines if line.get("stage") == stage.name]
        before = self._passed(stage)
        feedback = feedback_of(
            self.domains,
            stage,
            first,
            lines,
            before,
            (loss, self.previous_loss),
            self.reference_loss,
        )
        guard = None
        if first.step == stage.first:
            self.share = stage.start
        else:
            drawn = list(stage.sources)
            of_stage, share = feedback.of(drawn, stage.first), self.share[drawn]
            state, answer = apply_policy(stage.policy, share, of_stage)
            guard = (
                None
                if state is None
                else {
                    "open": bool(state.open),
                    "forgetting": float(state.forgetting),
                    "bound": float(state.bound),
                }
            )
            self.share = np.zeros(len(self.domains))
            self.share[drawn] = answer
        potential = (
            None
            if self.reference_loss is None
            else learnable_potential(loss, self.reference_loss, self.domains)
        )
        forgetting = (
            None
            if feedback.previous_loss is None
            else forgetting_degree(loss, feedback.previous_loss, self.domains)
        )
        self.previous_loss = loss
        line: dict[str, Any] = {
            "step": first.step,
            "stage": stage.name,
            "epoch": round(first.epoch, 6),
            "loss": self._named(loss),
            "learnable_potential": self._named(potential),
            "forgetting_degree": self._named(forgetting),
            "share": self._named(self.share),
            "share_achieved": self._named(_normalised(first.samples)),
            "token_share_achieved": self._named(_normalised(first.tokens)),
            "passes": self._named(feedback.passes),
            "drawn": self._named(np.rint(first.passes * stage.records)),
            "train_loss": self._named(train_loss),
            "guard": guard,
            "feedback": "train" if first.loss_sums is None else "held_out",
            "seconds": {name: round(seconds, 3) for name, seconds in first.seconds.items()},
        }
        line |= measured(self.domains, first.gradients)
        planned = isinstance(getattr(stage.policy, "policy", stage.policy), Schedule)
        line["warnings"] = new_warnings([*lines, line], self.warn_passes, planned=planned)
        self.lines.append(line)
        decision = Decision(self.number, self.share, line)
        self.number += 1
        return decision

    def _passed(self, stage: StagePlan) -> Array:
        """Passes over each domain's records in earlier stages, [k]. A smaller part lies within a
        larger one, so the sum over stages is how often the most repeated records were seen.
        """
        before = next((line for line in reversed(self.lines) if line["stage"] != stage.name), None)
        return passes_in(before or {}, self.domains)

    def _smoothed(self, train_loss: Array, stage: StagePlan) -> Array:
        """Training feedback, [k]: the moving average of each domain's training losses; NaN, not
        drawn since: as it was.
        """
        if self.previous_loss is None:
            return train_loss
        # Until a stage has drawn from a domain, the previous loss is a held-out one: a mean with
        # that would be of two different quantities.
        drawn = trained_in(self.lines[-1], self.domains, self._passed(stage))
        weight = np.where(drawn, self.smoothing, 0.0)
        average = weight * self.previous_loss + (1 - weight) * train_loss
        return np.where(np.isnan(train_loss), self.previous_loss, average)

    def _named(self, values: Any) -> dict[str, float | None] | None:
        """Numbers by domain; one that is none, or infinite, is null, for JSON has no such."""
        if values is None or not np.isfinite(values).any():
            return None
        return {
            name: float(v) if np.isfinite(v) else None
            for name, v in zip(self.domains, values, strict=True)
        }


class _Round:
    """Reports of one adjustment, and the answer that all its ranks wait for."""

    def __init__(self) -> None:
        self.reports: dict[int, Report] = {}
        self._decision: asyncio.Future[Decision] | None = None

    @property
    def decision(self) -> asyncio.Future[Decision]:
        if self._decision is None:  # made late: a future needs the running loop
            self._decision = asyncio.get_running_loop().create_future()
        return self._decision


def _normalised(counts: NDArray[np.int64]) -> Array | None:
    return counts / counts.sum() if counts.sum() else None


def start_actor(controller_arguments: dict[str, Any]) -> Any:
    """The controller as an actor that comes back empty if it dies; the next attempt hands it the
    checkpoint's state.
    """
    import ray

    from versatune_ray.runtime.cluster import beside_the_driver

    options = {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": 10_000,
        "scheduling_strategy": beside_the_driver(),
    }
    return ray.remote(WeightController).options(**options).remote(**controller_arguments)
