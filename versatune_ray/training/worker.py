"""A training run on a Ray Train worker: the controller is an actor, checkpoints go to Ray Train in the background."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.report_config import CheckpointUploadMode

from versatune_ray.progress import Bar
from versatune_ray.training.controller import Decision, Report
from versatune_ray.training.loop import Job, run


def train_loop(settings: dict[str, Any]) -> None:
    """The function that ``TorchTrainer`` runs on every rank."""
    job: Job = settings["job"]
    host = RayHost(job, settings["controller"])
    with host.bar:
        run(job, host)


class RayHost:
    """``loop.Host`` on Ray Train."""

    def __init__(self, job: Job, controller: Any):
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.bar = Bar("fine-tuning", job.recipe.steps)
        self._controller, self._attempt = controller, 0

    @contextmanager
    def resume(self) -> Iterator[Path | None]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def begin(self, state: dict[str, Any] | None) -> tuple[np.ndarray, list[dict[str, Any]]]:
        begun = ray.get(self._controller.begin.remote(self.world, state)) if self.rank == 0 else None
        self._attempt, share, lines = broadcast_from_rank_zero(begun)
        return np.array(share), lines

    def exchange(self, report: Report) -> Decision:
        decision: Decision = ray.get(self._controller.exchange.remote(self._attempt, self.rank, report))
        return decision

    def state(self) -> dict[str, Any] | None:
        return None if self.rank else ray.get(self._controller.state_dict.remote(self._attempt))

    def save(self, write: Callable[[Path], Future[Any]], metrics: dict[str, Any]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="versatune-checkpoint-"))
        written = write(folder)

        def upload(checkpoint: Any, name: str) -> Any:
            written.result()
            return ray.train.get_context().get_storage().persist_current_checkpoint(checkpoint, name)

        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=upload,
            delete_local_checkpoint_after_upload=True,
        )

    def progress(self, step: int, note: str) -> None:
        if self.rank == 0:
            self.bar.to(step, note)

    def warn(self, text: str) -> None:
        self.bar.say(f"warning: {text}")
