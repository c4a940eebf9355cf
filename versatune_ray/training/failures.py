"""Why workers are started again. By itself, because Ray Train's controller process loads it, which
needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from versatune_ray.errors import one_line
from versatune_ray.runtime.private_ray import (
    ControllerCallback,
    ReschedulingState,
    RestartingState,
)
from versatune_ray.runtime.progress import Bar

_PATIENCE = 5.0  # seconds that the controller may take to answer


class Failures(ControllerCallback):  # type: ignore[misc]
    """Tells on the driver's screen why the workers are started again; Ray Train itself tells only
    its log.

    Why it is no ``UserCallback``: see ``private_ray``.
    """

    def __init__(self, title: str, controller: Any) -> None:
        self._title, self._controller = title, controller
        self._count = 0  # told with each failure: the board shows equal words only once

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, RestartingState | ReschedulingState):
            self._count += 1
            error = current_state.training_failed_error
            ranks = getattr(error, "worker_failures", {})
            told = "; ".join(
                f"rank {rank}: {one_line(failure)}" for rank, failure in sorted(ranks.items())
            ) or one_line(error)
            told += self._held_up(ranks.values())
            Bar(self._title, 1).say(
                f"failure {self._count}: {told}; the workers are started again from the last "
                f"checkpoint"
            )

    def _held_up(self, failures: Iterable[BaseException]) -> str:
        """Which ranks the others waited for, where a process is gone and has left no word: NCCL's
        watchdog ends those that wait.
        """
        if not any(
            isinstance(getattr(failure, "health_check_failure", failure), RayActorError)
            for failure in failures
        ):
            return ""
        try:
            missing = ray.get(self._controller.missing.remote(), timeout=_PATIENCE)
        except (RayError, TimeoutError):
            return ""
        return f"; the others waited for rank(s) {', '.join(map(str, missing))}" if missing else ""
