"""Each restart of the workers is told on the screen with its cause, whoever noticed it: a worker or
Ray Train's own controller.
"""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.controller.state import (
    ErroredState,
    ReschedulingState,
    RestartingState,
    RunningState,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from versatune_ray.runtime.progress import Bar
from versatune_ray.training.failures import Failures


def test_every_restart_is_told_once_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Bar, "say", lambda bar, text: said.append(text))
    failures, before = Failures("fine-tuning", None), RunningState()

    def enters(state: Any) -> None:
        failures.after_controller_state_update(before, state)

    enters(
        RestartingState(
            WorkerGroupError("two of four", {3: OSError("disk gone"), 1: ValueError("no number")})
        )
    )
    preempted = PreemptionInfo(deadline_ms=0, preempted_node_to_ranks={"a": [0]})
    # no worker has raised anything
    enters(RestartingState(PreemptionError(preempted, drain_timed_out=True)))
    enters(ReschedulingState(ControllerError(RuntimeError("no room for 2 workers"))))
    enters(before)
    # raised in the driver, which tells it
    enters(ErroredState(WorkerGroupError("the last", {0: OSError("disk gone")})))
    again = "; the workers are started again from the last checkpoint"
    assert said[0] == f"failure 1: rank 1: ValueError: no number; rank 3: OSError: disk gone{again}"
    assert said[1].startswith(
        "failure 2: PreemptionError: Training was interrupted by node preemption"
    ) and said[1].endswith(again)
    assert said[2].startswith("failure 3: ") and "no room for 2 workers" in said[2]
    assert len(said) == 3


def test_where_a_process_is_gone_without_a_word_the_ranks_that_the_others_waited_for_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL's watchdog ends the processes that wait; the one that hangs lives on and raises nothing
    either.
    """
    said: list[str] = []
    monkeypatch.setattr(Bar, "say", lambda bar, text: said.append(text))
    monkeypatch.setattr("ray.get", lambda asked, timeout: asked)

    class Controller:
        class missing:
            @staticmethod
            def remote() -> list[int]:
                return [1, 3]

    failures, state = Failures("fine-tuning", Controller()), RunningState()
    aborted = WorkerHealthCheckFailedError("worker 0 died", ActorDiedError())
    failures.after_controller_state_update(
        state, RestartingState(WorkerGroupError("two", {0: aborted, 2: aborted}))
    )
    assert "; the others waited for rank(s) 1, 3; the workers are started again" in said[0]
    failures.after_controller_state_update(
        state, RestartingState(WorkerGroupError("one", {0: ValueError("no number")}))
    )
    assert "waited" not in said[1]
