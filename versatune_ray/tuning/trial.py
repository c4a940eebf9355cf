"""One trial: a whole run on what its job has made for all of them, and what it leaves."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatune_ray.errors import Incomplete, one_line
from versatune_ray.pipeline import Run
from versatune_ray.runs.folder import RunFolder
from versatune_ray.runs.storage import fetch, remove
from versatune_ray.runs.training_log import read_log
from versatune_ray.settings import Config
from versatune_ray.settings.tuning import BY_ACCURACY
from versatune_ray.tuning.objectives import accuracies, achieved, by_epoch, seconds_of
from versatune_ray.tuning.plan import Plan, name_of
from versatune_ray.tuning.pruning import Marks, stages_of


@dataclass(frozen=True)
class Failure:
    """A trial that ended by an error: what it changed, and why it ended, in one line."""

    changes: Mapping[str, Any]
    reason: str


class TrialFailed(Exception):
    """What ended a trial, in one line: all that leaves its process."""


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise TrialFailed(one_line(error)) from error


def train(params: Mapping[str, Any], plan: Plan) -> None:
    """One trial, as a function that Ray Tune runs: reports the objectives at its end, and on the
    way the score at the plan's marks.
    """
    from ray import tune

    name, changes = trial_of(params)
    config = plan.config(name, changes)
    # a search may choose the same values twice at once
    with _in_one_line(), RunFolder(config, wait=True) as folder:
        if config.mixture.trajectory is not None:
            fetch(config.mixture.trajectory)
        outcome = plan.outcome(name)
        if outcome is None or not plan.is_done(name):
            run = Run(folder, _reports(config, plan), plan.stores_of(config))
            run.finetune()
            log = read_log(folder.path)
            before, after = log.base["loss"], log.tuned["loss"]
            accuracy = _accuracy(run, plan)
            outcome = {
                "changes": changes,
                "before": before,
                "after": after,
                "by_epoch": by_epoch(log.lines),
                "seconds": seconds_of(log.lines),
                "accuracy": accuracy or None,
                "choices": _choices(run, plan) or None,
                "asked": plan.asked,
                "objectives": plan.scored(
                    achieved(before, after, plan.targets) | accuracies(accuracy, plan.targets)
                ),
                "pruned_at": None,
            }
            folder.write("outcome.json", outcome)
            folder.finish()
    tune.report(outcome["objectives"])


def _reports(config: Config, plan: Plan) -> list[Any]:
    """A callback of the fine-tuning that tells Tune the score at every mark, where there are
    marks.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    if plan.marks is None:
        return []
    marks = Marks(plan.marks, stages_of(config, plan.stores_of(config)))

    class Reports(TuneReportCallback):  # type: ignore[misc]
        def after_report(
            self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
        ) -> None:
            told = metrics[0]
            after = {
                domain: told[f"loss.{domain}"]
                for domain in config.domains
                if f"loss.{domain}" in told
            }
            if after:
                found = plan.scored(
                    achieved(
                        {domain: told[f"loss_before.{domain}"] for domain in after},
                        after,
                        plan.targets,
                    )
                )
                # accuracies are measured at the end alone
                for seen, value in marks.reached(told["step"], found.get("score")):
                    at = {"score": value, "samples": seen, "step": told["step"]}
                    super().after_report(run_context, [found | at], None)

    return [Reports()]


def where_it_is_fast(run: Run, measure: Callable[..., Any], *asked: Any) -> Any:
    """``measure(*asked)``, in a task of its own where there are GPUs: the trial's process has none,
    and those of its workers are free by now.
    """
    import ray

    if not run.gpu():
        return measure(*asked)
    of_gpu = ray.remote(num_cpus=run.given_config.training.cpus_per_worker, num_gpus=1)(measure)
    return ray.get(of_gpu.remote(*asked))


def _choices(run: Run, plan: Plan) -> dict[str, float]:
    """Accuracy of the tuned model in multiple choice, per domain that has some."""
    if not plan.choices:
        return {}
    from versatune_ray.evaluation.likely import likely_accuracy

    model = run.whole_model(str(run.finetune()))
    remote = run.given_config.model.trust_remote_code
    found: dict[str, float] = where_it_is_fast(
        run, likely_accuracy, model, plan.choices, remote, run.gpu()
    )
    return found


def _accuracy(run: Run, plan: Plan) -> dict[str, float]:
    """Accuracy of the tuned model per domain that has questions; or benchmarks, if the score asks
    for them.

    Raises:
        Incomplete: a benchmark could not be measured.
    """
    from versatune_ray.evaluation.greedy import greedy_accuracy
    from versatune_ray.evaluation.scores import AVERAGE, scores

    config = run.prepare()
    found: dict[str, float] = {}
    if plan.questions:
        asked = (
            run.whole_model(str(run.finetune())),
            plan.questions,
            config.data.chat_template,
            config.model.trust_remote_code,
            run.gpu(),
            config.data.chat_template_kwargs,
        )
        found = where_it_is_fast(run, greedy_accuracy, *asked)
    if plan.weights.keys() & set(BY_ACCURACY):
        measured, failed = run.measure_benchmarks()
        rows = scores(row for row in measured if row["model"] == "tuned").get("tuned", {})
        if failed:
            raise Incomplete("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
        found |= {name: one.value for name, one in rows.items() if name != AVERAGE}
    return found


def drop_checkpoints(trial: Path) -> None:
    """What a trial that has its outcome needs no more: several times the size of the model."""
    folder = trial / "finetune" / "checkpoints"
    remove(folder)
    shutil.rmtree(folder, ignore_errors=True)


def trial_of(params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and changes of a trial from what Tune hands it: a listed one, or values that a search
    chose.
    """
    if "trial" in params:
        name, changes = params["trial"]
        return name, dict(changes)
    changes = {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in params.items()
    }
    return name_of(changes), changes
