"""The private doors of Ray that this package goes through, all of them: which, and why no public
one does. After another version of Ray is installed, look here first.

``ray.init(_temp_dir=…)`` in ``cluster`` is the only other: sockets need a short path.
"""

from __future__ import annotations

from typing import Any

# To leave out one remark of a raylet's, which goes straight to standard output: there is no logger
# to filter, and the number that it is about is no setting that would not change more.
from ray._private import worker as _worker

# To join the cluster that ``ray start`` made on this machine, and no other: ``address="auto"``
# joins any that runs here, one that another job started for itself among them, and dies with it.
from ray._private.services import find_gcs_addresses
from ray._private.utils import read_ray_address

# To say why workers are started again: the public ``UserCallback`` hears of errors of workers only,
# and so neither of a preemption whose deadline passed before any worker failed nor of workers that
# did not start.
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState

__all__ = [
    "ControllerCallback",
    "ReschedulingState",
    "RestartingState",
    "started_here",
    "without_batch_telemetry",
    "without_count_of_workers",
]


def started_here() -> str | None:
    """Address of the cluster that ``ray start`` made on this machine, if it runs."""
    address: str | None = read_ray_address()
    return address if address in find_gcs_addresses() else None


def without_batch_telemetry() -> None:
    """Let an engine of ``ray.data.llm`` that is built in this process not wait, seconds, for an
    actor that counts engines, and that would stay on the cluster when the job has ended: no
    setting leaves it out.
    """
    from ray.llm._internal.batch.processor import vllm_engine_proc

    class Silent:
        def push_telemetry_report(self, telemetry: Any) -> None:
            pass

    vllm_engine_proc.get_or_create_telemetry_agent = Silent


def without_count_of_workers() -> None:
    """Let no raylet say that it has started more workers than it has cores: actors of Ray's own
    that need no CPU are most of them.
    """
    shown = _worker.print_to_stdstream

    def show(data: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [line for line in data["lines"] if "worker processes have been started" not in line]
        if lines:
            shown(data | {"lines": lines}, ignore_prefix)

    _worker.print_to_stdstream = show
