"""Many fine-tunings of one run, each a whole run of its own in ``trials/NAME``, side by side under
Ray Tune.

A trial is named by what it changes, and leaves ``outcome.json``; one that has it is not done again,
whatever ended the job before it was all done. So nothing of Tune's own state has to survive.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from versatune_ray.errors import Incomplete
from versatune_ray.pipeline import Run
from versatune_ray.runs.folder import Step, check_unchanged, say
from versatune_ray.settings import Config
from versatune_ray.settings.keys import is_declared, keys
from versatune_ray.settings.location import uri_of
from versatune_ray.tuning.plan import Plan
from versatune_ray.tuning.trial import Failure, drop_checkpoints, train

# bytes that Ray sets aside for the process that leads a trial; it takes no CPU, for it waits for
# its workers
_MEMORY = 1 << 30


def _whole_paths(config: Config, changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` with paths as in ``config``, which they made: on another machine a relative one
    would count from another folder.
    """
    paths = {key for key, field in keys() if is_declared(field, "path")}
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

    from versatune_ray.tuning.account import Account

    left = {
        name: _whole_paths(plan.config(name, changes), changes)
        for name, changes in listed.items()
        if not plan.is_done(name)
    }
    for name in listed.keys() - left.keys():
        check_unchanged(plan.config(name, listed[name]))
    total, done = len(listed) + more, len(listed) - len(left)
    if done:
        say(title, f"{done} of {total} trials were done before")
    if done == total:
        return {}
    account = Account(plan, title, total, done)
    limit = at_once or concurrency(plan.base)
    say(title, f"{total - done} trials, {min(limit, total - done)} at a time")
    # Ctrl-C ends the job, as everywhere; Tune's own would return as if all was done
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean the same in a trial
    # whose reports of errors cannot be turned down; ours are one line
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, plan=plan), {"CPU": 0, "memory": _MEMORY}),
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
        drop_checkpoints(plan.trials / name)
    return account.failed


def finish(run: Run, failed: Mapping[str, Failure]) -> Path:
    """Write the report; then say what is missing in it.

    Raises:
        Incomplete: some trials failed.
    """
    page = run.report()
    if failed:
        raise Incomplete(
            f"{len(failed)} trials failed ({first_failures(failed)}); the same command tries them "
            f"again. The others: {page}"
        )
    return page


def first_failures(failed: Mapping[str, Failure]) -> str:
    """The first failures in one line."""
    return "; ".join(f"{name}: {one.reason}" for name, one in list(failed.items())[:3])
