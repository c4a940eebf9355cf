"""What a training run needs of the place where it runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from versatune_ray.training.adjustment import Decision, Report
from versatune_ray.training.loggers import MetricLogger


class Runtime(Protocol):
    """What a run needs of the place where it runs: Ray Train (``worker``), or plain processes
    (``local``).
    """

    rank: int
    world: int
    device: torch.device

    def resume(self) -> AbstractContextManager[Path | None]:
        """The last checkpoint, as a local folder."""

    def begin(self, state: dict[str, Any] | None) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Start the controller from its ``state`` in that checkpoint; returns the shares in force
        and the log so far.
        """

    def exchange(self, report: Report) -> Decision:
        """This rank's part of an adjustment; the same answer on every rank."""

    def state(self) -> dict[str, Any] | None:
        """The controller's state on rank 0, which rides in the checkpoint; None elsewhere."""

    def save(self, write: Callable[[Path], Future[Any]], metrics: dict[str, Any]) -> None:
        """Keep a checkpoint that ``write`` begins to write into a folder. Returns as soon as
        training may go on.
        """

    def best(self) -> AbstractContextManager[Path | None]:
        """The kept checkpoint of the lowest ``training.keep_best``, as a local folder; None where
        the last model counts.
        """

    def progress(self, step: int, note: str) -> None:
        """For a person who waits."""

    def watch(self, reached: Callable[[], float]) -> None:
        """From now on, ``reached()`` says how far this rank is (see ``Trainer.reached``)."""

    def missing(self) -> list[int]:
        """Ranks that others wait for, as far as it is known."""

    def warn(self, text: str) -> None:
        """One sentence that a person should read now, told by rank 0 alone."""

    def logger(self) -> MetricLogger | None:
        """Where metrics go here, besides ``training.metrics``."""
