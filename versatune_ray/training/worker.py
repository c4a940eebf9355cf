"""A training run on a Ray Train worker: the controller is an actor, checkpoints go to Ray Train in
the background.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.exceptions import RayTaskError
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.report_config import CheckpointUploadMode

from versatune_ray.errors import UserError
from versatune_ray.runtime.progress import Bar
from versatune_ray.training.adjustment import Decision, Report
from versatune_ray.training.gauges import Gauges
from versatune_ray.training.heartbeat import Heartbeat
from versatune_ray.training.job import Job
from versatune_ray.training.loggers import MetricLogger
from versatune_ray.training.loop import run
from versatune_ray.training.step import Unrecoverable
from versatune_ray.training.together import UserErrorOfAll


def train_loop(settings: dict[str, Any]) -> None:
    """The function that ``TorchTrainer`` runs on every rank."""
    job: Job = settings["job"]
    controller = settings["controller"]
    # an attempt that Ray Train makes because one rank alone had failed for good
    if ray.get(controller.reason.remote()) is not None:
        return
    runtime = RayRuntime(job, controller)
    with runtime.bar, runtime.heartbeat:
        try:
            run(job, runtime)
        # all ranks raise it, and the same would happen again
        except (Unrecoverable, UserErrorOfAll) as error:
            ray.get(controller.stop.remote(str(error)))
        except UserError as error:
            ray.get(controller.stop.remote(f"rank {runtime.rank}: {error}"))
            raise  # or the others would wait until the time-out


class _Node:
    """The ranks on this rank's node, of which the first speaks to the controller for all."""

    def __init__(self, world: int, timeout: float):
        nodes = [0] * world
        if world > 1:
            dist.all_gather_object(nodes, ray.train.get_context().get_node_rank())
        here = ray.train.get_context().get_node_rank()
        self.ranks = [rank for rank, node in enumerate(nodes) if node == here]
        if len(self.ranks) > 1:
            self._group = dist.new_group(
                self.ranks, timedelta(seconds=timeout), "gloo", use_local_synchronization=True
            )

    def gather(self, rank: int, report: Report) -> dict[int, Report] | None:
        """On the node's first rank: the reports of all; None elsewhere."""
        found: list[Any] | None = [report] * len(self.ranks) if rank == self.ranks[0] else None
        if len(self.ranks) > 1:
            dist.gather_object(report, found, self.ranks[0], self._group)
        return None if found is None else dict(zip(self.ranks, found, strict=True))

    def tell(self, answer: Any) -> Any:
        """What the node's first rank was answered."""
        told = [answer]
        if len(self.ranks) > 1:
            dist.broadcast_object_list(told, self.ranks[0], self._group)
        return told[0]


class RayRuntime:
    """``loop.Runtime`` on Ray Train."""

    def __init__(self, job: Job, controller: Any):
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.bar = Bar(job.config.title, job.steps)
        self._run, self._keep_best = job.config.run, job.config.training.keep_best
        self._timeout = job.config.training.exchange_timeout
        self._controller, self._attempt = controller, 0
        self.heartbeat = Heartbeat(
            self.rank, self.world, self._beat, self.missing, self.warn, self._timeout
        )

    def _beat(self, reached: float) -> None:
        if self._attempt:
            self._controller.beat.remote(self._attempt, self.rank, reached)

    def watch(self, reached: Callable[[], float]) -> None:
        self.heartbeat.reached = reached

    def logger(self) -> MetricLogger | None:
        return Gauges(self._run)

    def missing(self) -> list[int]:
        missing: list[int] = ray.get(self._controller.missing.remote())
        return missing

    @contextmanager
    def resume(self) -> Iterator[Path | None]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def begin(self, state: dict[str, Any] | None) -> tuple[np.ndarray, list[dict[str, Any]]]:
        begun = (
            ray.get(self._controller.begin.remote(self.world, state)) if self.rank == 0 else None
        )
        self._attempt, share, lines = broadcast_from_rank_zero(begun)
        self._node = _Node(self.world, self._timeout)
        return np.array(share), lines

    def exchange(self, report: Report) -> Decision:
        reports, answer = self._node.gather(self.rank, report), None
        if reports is not None:
            try:
                answer = ray.get(self._controller.exchange.remote(self._attempt, reports))
            except RayTaskError as error:
                answer = error.cause
        answer = self._node.tell(answer)
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Decision)
        return answer

    def state(self) -> dict[str, Any] | None:
        return None if self.rank else ray.get(self._controller.state_dict.remote(self._attempt))

    def save(self, write: Callable[[Path], Future[Any]], metrics: dict[str, Any]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="versatune-checkpoint-"))
        written = write(folder)

        def upload(checkpoint: Any, name: str) -> Any:
            written.result()
            return (
                ray.train.get_context().get_storage().persist_current_checkpoint(checkpoint, name)
            )

        try:
            ray.train.report(
                metrics,
                checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
                checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=upload,
                delete_local_checkpoint_after_upload=True,
            )
        # Ray Train waits for all ranks here, and says in many lines that one did not come
        except RayTaskError as error:
            raise RuntimeError(str(error.cause)) from error

    @contextmanager
    def best(self) -> Iterator[Path | None]:
        if self._keep_best is None:
            yield None
            return
        reported = ray.train.get_all_reported_checkpoints()
        best = min(
            (one for one in reported if self._keep_best in one.metrics),
            key=lambda one: one.metrics[self._keep_best],
        )
        with best.checkpoint.as_directory() as folder:
            yield Path(folder)

    def progress(self, step: int, note: str) -> None:
        if self.rank == 0:
            self.bar.to(step, note)

    def warn(self, text: str) -> None:
        self.bar.say(f"warning: {text}")
