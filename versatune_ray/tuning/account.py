"""What a person is told of trials while they run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback

from versatune_ray.errors import printable, redacted
from versatune_ray.runs.cache import write_json
from versatune_ray.runs.folder import say
from versatune_ray.runs.storage import push
from versatune_ray.settings.tuning import OBJECTIVES
from versatune_ray.tuning.plan import Plan
from versatune_ray.tuning.trial import Failure, TrialFailed, drop_checkpoints, trial_of


class Account(Callback):  # type: ignore[misc]
    """Prints a line for every trial that ended, and keeps those that were pruned from being begun
    again.
    """

    def __init__(self, plan: Plan, title: str, total: int, done: int):
        self.plan, self.title, self.total, self.done = plan, title, total, done
        self.failed: dict[str, Failure] = {}
        self.pruned: list[str] = []

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        say(self.title, f"begins: {_called(*trial_of(trial.config))}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, changes = trial_of(trial.config)
        result = trial.last_result
        pruned = self.plan.outcome(name) is None
        objectives = {key: result[key] for key in (*OBJECTIVES, "score") if key in result}
        if pruned:
            file = self.plan.trials / name / "outcome.json"
            write_json(
                file, {"changes": changes, "objectives": objectives, "pruned_at": result["step"]}
            )
            push(file)
            self.pruned.append(name)
        drop_checkpoints(self.plan.trials / name)
        told = ", ".join(
            f"{key} {100 * value:.2f} %" for key, value in objectives.items() if key != "score"
        )
        self._tell(
            name, changes, f"stopped early at step {result['step']}" if pruned else "done", told
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, changes = trial_of(trial.config)
        file = trial.error_file  # beside it lies a pickle, which is not read
        text = Path(file).read_text(encoding="utf-8", errors="replace") if file else ""
        self.failed[name] = Failure(changes, _reason(text))
        self._tell(name, changes, "failed", self.failed[name].reason)

    def _tell(self, name: str, changes: Mapping[str, Any], what: str, more: str) -> None:
        self.done += 1
        say(self.title, f"{self.done}/{self.total} {what}: {_called(name, changes)}: {more}")


def _reason(text: str) -> str:
    """Why a trial ended, by the text that Tune keeps: ``TrialFailed``'s, or the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = re.findall(rf"(?m)^\s*(?:[\w.]+\.)?{TrialFailed.__name__}: (.*)$", text)
    return printable(redacted((said or lines or ["it ended without a word"])[-1]))


def _called(name: str, changes: Mapping[str, Any]) -> str:
    """Name and settings of a trial, for a line on the screen."""
    told = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes.items())
    return f"{name} ({told})"
