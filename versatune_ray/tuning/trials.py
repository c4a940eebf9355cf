"""Many fine-tunings of one run, each a whole run of its own in ``trials/NAME``, side by side under Ray Tune.

A trial is named by what it changes, and leaves ``outcome.json``; one that has it is not done again, whatever ended the job before it
was all done. So nothing of Tune's own state has to survive.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versatune_ray.cache import key_of, write_json
from versatune_ray.config import parse, with_keys
from versatune_ray.errors import one_line
from versatune_ray.run_folder import RunFolder
from versatune_ray.settings import Config
from versatune_ray.storage import push
from versatune_ray.tuning.objectives import achieved, score

_FREE_TREE = ("sweep", "study", "replay")  # what a trial does not depend on


@dataclass(frozen=True)
class Plan:
    """What all trials of a job share.

    base: the configuration that trials change, with the model and data filled in. targets: domains that ``target_gain`` is of.
    weights: of the objectives in ``score``, by which trials are compared.
    """

    base: Config
    targets: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: {"gain": 1.0})

    def config(self, name: str, changes: Mapping[str, Any]) -> Config:
        """The configuration of one trial: ``changes`` are dotted keys.

        Raises:
            UserError: a key is unknown, or a value out of range.
        """
        tree = self.base.model_dump(mode="json", exclude=set(_FREE_TREE))
        return parse(with_keys(tree, {**changes, "run": f"{self.base.run}/trials/{name}"}))

    def folder(self, name: str) -> Path:
        return self.base.run_folder / "trials" / name

    def outcome(self, name: str) -> dict[str, Any] | None:
        """What a finished trial left, or None."""
        file = self.folder(name) / "outcome.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def objectives(self, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
        found = achieved(before, after, self.targets)
        return found | {"score": score(found, self.weights)}


def name_of(changes: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for ``changes``."""
    return key_of(changes)[:8]


def concurrency(config: Config) -> int:
    """How many trials the cluster has room for at once: nested trainers that wait for each other's CPUs would wait for ever."""
    import ray

    from versatune_ray.cluster import use_gpus

    most = config.training.least_and_most[1]
    there = ray.cluster_resources()
    fit = there.get("CPU", 0) // (most * config.training.cpus_per_worker)
    if use_gpus(config.device):
        fit = min(fit, there.get("GPU", 0) // most)
    return max(1, int(fit))


def train(changes: Mapping[str, Any], plan: Plan, name: str | None = None) -> None:
    """One trial, as a function that Ray Tune runs: reports the objectives at every adjustment."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from versatune_ray.pipeline import Run

    name = name or name_of(changes)
    config = plan.config(name, changes)

    class Reports(TuneReportCallback):  # type: ignore[misc]
        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            told = metrics[0]
            after = {domain: told[f"loss.{domain}"] for domain in config.domains if f"loss.{domain}" in told}
            if after:
                before = {domain: told[f"loss_before.{domain}"] for domain in after}
                super().after_report(run_context, [plan.objectives(before, after) | {"step": told["step"]}], None)

    with RunFolder(config) as folder:
        run = Run(folder, callbacks=[Reports()])
        lines = [json.loads(line) for line in (run.tuned.parent / "adjustments.jsonl").read_text(encoding="utf-8").splitlines()]
        found = plan.objectives(lines[0]["loss"], lines[-1]["loss"])
        outcome = {"changes": dict(changes), "before": lines[0]["loss"], "after": lines[-1]["loss"], "objectives": found, "pruned_at": None}
        folder.write("outcome.json", outcome)
    tune.report(found | {"step": lines[-1]["step"]})


class Account:
    """What became of every trial: prints a line for each, and keeps those that were pruned from being begun again."""

    def __init__(self, plan: Plan, title: str, total: int, done: int, say: Callable[[str, str], None]):
        self.plan, self.title, self.total, self.done, self.say = plan, title, total, done, say
        self.failed: dict[str, str] = {}

    def ended(self, name: str, changes: Mapping[str, Any], result: Mapping[str, Any] | None, error: str | None) -> None:
        self.done += 1
        shown = ", ".join(f"{key.rpartition('.')[2]}={value:.4g}" if isinstance(value, float) else f"{key.rpartition('.')[2]}={value}" for key, value in changes.items())
        if error is not None or result is None:
            self.failed[name] = error or "it reported nothing"
            self.say(self.title, f"{self.done}/{self.total} failed: {shown or name}: {self.failed[name]}")
            return
        pruned = self.plan.outcome(name) is None
        if pruned:
            file = self.plan.folder(name) / "outcome.json"
            objectives = {key: result[key] for key in ("gain", "target_gain", "forgetting", "score") if key in result}
            write_json(file, {"changes": dict(changes), "objectives": objectives, "pruned_at": result["step"]})
            push(file)
        told = ", ".join(f"{key} {100 * result[key]:.2f} %" for key in ("gain", "target_gain", "forgetting") if key in result)
        self.say(self.title, f"{self.done}/{self.total} {'stopped early' if pruned else 'done'}: {shown or name}: {told}")
