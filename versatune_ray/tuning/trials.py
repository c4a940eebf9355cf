"""Many fine-tunings of one run, each a whole run of its own in ``trials/NAME``, side by side under
Ray Tune.

A trial is named by what it changes, and leaves ``outcome.json``; one that has it is not done again,
whatever ended the job before it was all done. So nothing of Tune's own state has to survive.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from ray.tune import Callback

from versatune_ray.domains import DomainPaths
from versatune_ray.domains.records import Question
from versatune_ray.errors import Incomplete, UserError, one_line, printable, redacted
from versatune_ray.pipeline import Run
from versatune_ray.runs.cache import key_of, write_json
from versatune_ray.runs.folder import RunFolder, Step, check_unchanged, say
from versatune_ray.runs.storage import push, remove
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.loading import parse, with_keys
from versatune_ray.settings.location import shown, uri_of
from versatune_ray.settings.tuning import BY_ACCURACY, OBJECTIVES
from versatune_ray.tuning.objectives import accuracies, achieved, by_epoch, score

# bytes that Ray sets aside for the process that leads a trial; it takes no CPU, for it waits for
# its workers
_MEMORY = 1 << 30
_FREE_TREE = ("sweep", "study", "cofitune", "replay")  # what a trial does not depend on


@dataclass(frozen=True)
class Failure:
    """A trial that ended by an error: what it changed, and why it ended, in one line."""

    changes: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Plan:
    """What all trials of a job share.

    base: the configuration that trials change, with model and artefacts filled in. stores: its
    token stores. questions: as they were read.
    targets: domains that ``target_gain`` is of. weights: of the objectives in ``score``, by which
    trials are compared, where it is not 0.
    """

    base: Config
    stores: Mapping[str, DomainPaths] = field(default_factory=dict)
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=lambda: {"gain": 1.0})

    def config(self, name: str, changes: Mapping[str, Any]) -> Config:
        """The configuration of one trial: ``changes`` are dotted keys.

        Raises:
            UserError: a key is unknown, or a value out of range.
        """
        tree = self.base.model_dump(mode="json", exclude=set(_FREE_TREE))
        return parse(with_keys(tree, {**changes, "run": f"{self.base.run}/trials/{name}"}))

    @property
    def trials(self) -> Path:
        return self.base.run_folder / "trials"

    def outcome(self, name: str) -> dict[str, Any] | None:
        """What a finished trial left, or None.

        Raises:
            UserError: it was not measured by what this job weighs.
        """
        file = self.trials / name / "outcome.json"
        if not file.is_file():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        # the weights may be others than then
        found["objectives"] = self.scored(found["objectives"])
        if missing := [
            aim
            for aim in self.weights
            if aim not in found["objectives"] and found["pruned_at"] is None
        ]:
            raise UserError(
                f"{shown(file)}: {missing[0]} was not measured in this trial; choose another name "
                f"with run=…"
            )
        return found

    def scored(self, objectives: Mapping[str, float]) -> dict[str, float]:
        """Objectives with their ``score``, or without one where a weighted one is not there
        (yet).
        """
        found = {name: value for name, value in objectives.items() if name != "score"}
        return found | (
            {"score": score(found, self.weights)} if self.weights.keys() <= found.keys() else {}
        )


def with_artefacts(
    run: Run, configs: Sequence[Config], targets: Sequence[str], weights: Mapping[str, float]
) -> Plan:
    """The plan of a run's trials: what ``configs`` need of token stores, detection and reference
    losses, made once for all of them.

    So trials with other seeds share them as well: what differs between two seeds is the fine-tuning
    alone.
    """
    from versatune_ray.evaluation.questions import load_questions

    detect = any(semantics.needs_detection(one) for one in configs)
    ready = run.prepare(judge=detect and run.given_config.detection.distribution is None)
    stores, questions = run.tokenize(), load_questions(ready)
    tree = ready.model_dump(mode="json")
    if detect:
        run.detect()
        tree["detection"]["distribution"] = str(
            run.folder.path / "detection" / Path(run.model()).name / "distribution.json"
        )
    if any(semantics.needs_reference(one) for one in configs):
        run.measure_references()
        tree["reference"]["losses"] = str(run.folder.path / "reference" / "losses.json")
    return Plan(
        parse(tree),
        stores,
        questions,
        tuple(targets),
        {aim: weight for aim, weight in weights.items() if weight},
    )


def name_of(changes: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that stand for ``changes``."""
    return key_of(changes)[:8]


def _whole_paths(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` with paths as in ``config``, which they made: on another machine a relative one
    would count from another folder.
    """
    paths = (
        "model.path",
        "mixture.trajectory",
        "training.soft_mask",
        "reference.losses",
        "reference.model",
    )
    return {
        key: attrgetter(key)(config) if key in paths else given for key, given in changes.items()
    }


def concurrency(config: Config) -> int:
    """How many trials the cluster has room for at once: nested trainers that wait for each other's
    CPUs would wait for ever.
    """
    import ray

    from versatune_ray.runtime.cluster import use_gpus

    most = config.training.least_and_most[1]
    there = ray.cluster_resources()
    fit = min(
        there.get("CPU", 0) // (most * config.training.cpus_per_worker),
        there.get("memory", 0) // _MEMORY,
    )
    if use_gpus(config.device):
        fit = min(fit, there.get("GPU", 0) // most)
    return max(1, int(fit))


def run_trials(
    run: Run,
    plan: Plan,
    listed: Mapping[str, Mapping[str, Any]],
    title: str,
    at_once: int | None,
    *,
    search: Any = None,
    more: int = 0,
    scheduler: Any = None,
) -> dict[str, Failure]:
    """Do the trials that have no outcome yet; returns those that failed, by name.

    Args:
        listed: name → changes of the trials to do; with a ``search``, of those that it was told of.
        search: of Ray Tune, which chooses ``more`` trials.
        scheduler: of Ray Tune, which may stop trials by ``score``.
    """
    from ray import tune

    left = {
        name: _whole_paths(plan.config(name, changes), changes)
        for name, changes in listed.items()
        if plan.outcome(name) is None
    }
    for name in listed.keys() - left.keys():
        check_unchanged(plan.config(name, listed[name]))
    total, done = len(listed) + more, len(listed) - len(left)
    if done:
        say(title, f"{done} of {total} trials were done before")
    if done == total:
        return {}
    account = _Account(plan, title, total, done)
    limit = at_once or concurrency(plan.base)
    say(title, f"{total - done} trials, {min(limit, total - done)} at a time")
    # Ctrl-C ends the job, as everywhere; Tune's own would return as if all was done
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean the same in a trial
    # whose reports of errors cannot be turned down; ours are one line
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_train, plan=plan), {"CPU": 0, "memory": _MEMORY}),
        param_space={} if search is not None else {"trial": tune.grid_search(list(left.items()))},
        tune_config=tune.TuneConfig(
            num_samples=1 if search is None else more,
            search_alg=search,
            scheduler=scheduler,
            max_concurrent_trials=limit,
            # The next trial starts in a process that has torch and transformers loaded; not where a
            # scheduler may stop one in the middle, for a process that waits for its fine-tuning
            # takes no other trial.
            reuse_actors=scheduler is None,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=uri_of(plan.base.run_folder / title),
            verbose=0,
            callbacks=[account],
        ),
    )
    run.folder.step("trials", lambda: Step(tuner.fit(), False), more=True)
    for name in account.pruned:
        # its workers may have written one more before they were stopped
        _drop_checkpoints(plan.trials / name)
    return account.failed


def finish(run: Run, failed: Mapping[str, Failure]) -> Path:
    """Write the report; then say what is missing in it.

    Raises:
        Incomplete: some trials failed.
    """
    page = run.report()
    if failed:
        raise Incomplete(
            f"{len(failed)} trials failed ({told(failed)}); the same command tries them again. The "
            f"others: {page}"
        )
    return page


def told(failed: Mapping[str, Failure]) -> str:
    """The first failures in one line."""
    return "; ".join(f"{name}: {one.reason}" for name, one in list(failed.items())[:3])


class TrialFailed(Exception):
    """What ended a trial, in one line: all that leaves its process."""


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise TrialFailed(one_line(error)) from error


def _train(params: Mapping[str, Any], plan: Plan) -> None:
    """One trial, as a function that Ray Tune runs: reports the objectives at every adjustment."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    name, changes = _trial_of(params)
    config = plan.config(name, changes)

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
                if "score" in found:  # accuracies are measured at the end alone
                    super().after_report(run_context, [found | {"step": told["step"]}], None)

    # a search may choose the same values twice at once
    with _in_one_line(), RunFolder(config, wait=True) as folder:
        outcome = plan.outcome(name)
        if outcome is None:
            run = Run(folder, [Reports()], plan.stores)
            lines = [
                json.loads(line)
                for line in (run.finetune().parent / "adjustments.jsonl")
                .read_text(encoding="utf-8")
                .splitlines()
            ]
            before, after = lines[0]["loss"], lines[-1]["loss"]
            accuracy = _accuracy(run, plan)
            outcome = {
                "changes": changes,
                "before": before,
                "after": after,
                "by_epoch": by_epoch(lines),
                "accuracy": accuracy or None,
                "objectives": plan.scored(
                    achieved(before, after, plan.targets) | accuracies(accuracy, plan.targets)
                ),
                "pruned_at": None,
            }
            folder.write("outcome.json", outcome)
            folder.finish()
    tune.report(outcome["objectives"])


def _accuracy(run: Run, plan: Plan) -> dict[str, float]:
    """Accuracy of the tuned model per domain that has questions; or benchmarks, if the score asks
    for them.

    Raises:
        Incomplete: a benchmark could not be measured.
    """
    import ray

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
        # In a task of its own where there are GPUs: the trial's process has none, and those of its
        # workers are free by now.
        of_gpu = ray.remote(num_cpus=config.training.cpus_per_worker, num_gpus=1)(greedy_accuracy)
        found = ray.get(of_gpu.remote(*asked)) if run.gpu() else greedy_accuracy(*asked)
    if plan.weights.keys() & set(BY_ACCURACY):
        measured, failed = run.measure_benchmarks()
        rows = scores(row for row in measured if row["model"] == "tuned").get("tuned", {})
        if failed:
            raise Incomplete("; ".join(f"{name}: {reason}" for name, reason in failed.items()))
        found |= {name: one.value for name, one in rows.items() if name != AVERAGE}
    return found


def _drop_checkpoints(trial: Path) -> None:
    """What a trial that has its outcome needs no more: several times the size of the model."""
    folder = trial / "finetune" / "checkpoints"
    remove(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _trial_of(params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
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


class _Account(Callback):  # type: ignore[misc]
    """Prints a line for every trial that ended, and keeps those that were pruned from being begun
    again.
    """

    def __init__(self, plan: Plan, title: str, total: int, done: int):
        self.plan, self.title, self.total, self.done = plan, title, total, done
        self.failed: dict[str, Failure] = {}
        self.pruned: list[str] = []

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        say(self.title, f"begins: {_called(*_trial_of(trial.config))}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, changes = _trial_of(trial.config)
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
        _drop_checkpoints(self.plan.trials / name)
        told = ", ".join(
            f"{key} {100 * value:.2f} %" for key, value in objectives.items() if key != "score"
        )
        self._tell(
            name, changes, f"stopped early at step {result['step']}" if pruned else "done", told
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, changes = _trial_of(trial.config)
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
