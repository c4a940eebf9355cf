"""Each restart of the workers is told on the screen with its cause, whoever noticed it: a worker or Ray Train's own controller."""

from __future__ import annotations

from typing import Any

import pytest
from ray.train import WorkerGroupError
from ray.train.v2._internal.execution.controller.state import ErroredState, ReschedulingState, RestartingState, RunningState
from ray.train.v2.api.exceptions import ControllerError, PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from versatune_ray.progress import Bar
from versatune_ray.training.failures import Failures


def test_every_restart_is_told_once_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Bar, "say", lambda bar, text: said.append(text))
    failures, before = Failures("fine-tuning"), RunningState()

    def enters(state: Any) -> None:
        failures.after_controller_state_update(before, state)

    enters(RestartingState(WorkerGroupError("two of four", {3: OSError("disk gone"), 1: ValueError("no number")})))
    preempted = PreemptionInfo(deadline_ms=0, preempted_node_to_ranks={"a": [0]})
    enters(RestartingState(PreemptionError(preempted, drain_timed_out=True)))  # no worker has raised anything
    enters(ReschedulingState(ControllerError(RuntimeError("no room for 2 workers"))))
    enters(before)
    enters(ErroredState(WorkerGroupError("the last", {0: OSError("disk gone")})))  # raised in the driver, which tells it
    again = "; the workers are started again from the last checkpoint"
    assert said[0] == f"failure 1: rank 1: ValueError: no number; rank 3: OSError: disk gone{again}"
    assert said[1].startswith("failure 2: PreemptionError: Training was interrupted by node preemption") and said[1].endswith(again)
    assert said[2].startswith("failure 3: ") and "no room for 2 workers" in said[2]
    assert len(said) == 3
