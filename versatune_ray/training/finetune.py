"""Fine-tuning as a Ray Train run: the controller actor, the workers, and a name under which it
resumes.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ray.domains import DomainPaths, load_domains
from versatune_ray.domains.template import read_template
from versatune_ray.errors import Incomplete
from versatune_ray.runs.cache import cached
from versatune_ray.runs.folder import say
from versatune_ray.runs.storage import fetch, pull
from versatune_ray.settings import Config, Training, semantics
from versatune_ray.settings.location import is_mirrored, uri_of
from versatune_ray.settings.recipe import Unit
from versatune_ray.training.controller import start_actor
from versatune_ray.training.job import Job


def finetune(
    config: Config,
    model: str,
    paths: Mapping[str, DomainPaths],
    detected: Sequence[float] | None,
    reference: Mapping[str, Any] | None,
    unit: Unit,
    *,
    gpu: bool,
    callbacks: Sequence[Any] = (),
) -> Path:
    """Train ``model`` with shares that follow its losses; returns the folder of the tuned model.

    The same run name goes on from its last checkpoint, with the same numbers as if it had never
    stopped.

    Args:
        detected: detected shares [k] in domain order, if the start needs them.
        reference: content of ``losses.json``, if the policy needs it.
        callbacks: more callbacks for Ray Train.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from versatune_ray.runtime.cluster import fitting
    from versatune_ray.training.failures import Failures

    names = list(paths)
    data = load_domains(paths, config.data)
    sizes = [len(data[name].train) for name in names]
    stages = semantics.stages(config, names, sizes, detected, unit)
    for stage in stages if config.stages else ():
        listed = ", ".join(
            f"{name} {count}" for name, count in zip(names, stage.records, strict=True) if count
        )
        say("fine-tuning", f"stage {stage.name}: {stage.recipe.steps} steps on {listed} records")
    controller = start_actor(semantics.controller_arguments(config, names, stages, reference))
    folder = config.run_folder / "finetune"
    folder.mkdir(parents=True, exist_ok=True)
    # rank 0 may be on a machine that lacks the file
    if config.data.chat_template is not None and is_mirrored(folder):
        config = _with_stored_template(config, Path(config.data.chat_template))
    training = config.training
    job = Job(config, model, dict(paths), stages, folder, checked_importance(config, model))
    least, most = training.least_and_most
    workers = fitting(most, training.cpus_per_worker, gpu, config.device)
    # Ray Train would wait for the missing ones for ever; the samples per step stay the same
    if workers < least:
        say(
            "fine-tuning",
            f"training.workers: {least} do not fit on this cluster; going on with {workers}",
        )
    trainer = TorchTrainer(
        _on_each_rank,
        train_loop_config={"job": job, "controller": controller},
        scaling_config=ray.train.ScalingConfig(
            num_workers=min(least, workers) if least == most else (min(least, workers), most),
            use_gpu=gpu,
            resources_per_worker={"CPU": training.cpus_per_worker} | ({"GPU": 1} if gpu else {}),
        ),
        torch_config=TorchConfig(
            "cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=math.ceil(training.exchange_timeout)
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=uri_of(folder),
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            checkpoint_config=_checkpoint_config(training),
            callbacks=[Failures(config.title, controller), *callbacks],
        ),
    )
    # The same patience where ranks meet in Ray Train's own code, which by itself waits for ever for
    # one that hangs.
    os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] = str(training.exchange_timeout)
    # Of what ranks report, a checkpoint at each adjustment, each look at them takes one: at Ray's
    # own 2 s a short run would stand in line for longer than it trains. A hundred workers are asked
    # in a second at most.
    interval = min(2.0, max(0.2, workers / 100))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", f"{interval:g}")
    before = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
        reason = ray.get(controller.reason.remote())
        if reason is not None:
            raise Incomplete(reason)
    except SystemExit:  # Ray Train's answer to Ctrl-C, once its workers are stopped
        raise KeyboardInterrupt from None
    finally:
        # a trial of Ray Tune runs in another one
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)  # which Ray Train leaves in place
        ray.kill(controller)
    pull(folder, without="checkpoints")
    return fetch(folder / "model")


def _on_each_rank(settings: dict[str, Any]) -> None:
    """``train_loop``, which workers alone load: transformers takes seconds of CPU to import."""
    from versatune_ray.training.worker import train_loop

    train_loop(settings)


def checked_importance(config: Config, model: str) -> dict[str, Any]:
    """Importance of units for ``Job``, empty without ``training.soft_mask``.

    Raises:
        UserError: ``model`` has not the parts and modules that are to train, or the files of
            importance are of another one.
    """
    training = config.training
    if not training.soft_mask and training.trainable.everything and training.lora.rank is None:
        return {}
    from versatune_ray.training.model import check_trained
    from versatune_ray.training.trainable import read_importance

    importance = read_importance(training.soft_mask)
    check_trained(str(fetch(model)), training, importance, config.model.trust_remote_code)
    return importance


def _with_stored_template(config: Config, file: Path) -> Config:
    text = read_template(str(file))

    def write(work: Path) -> None:
        (work / "chat_template.jinja").write_text(text, encoding="utf-8")

    folder, _ = cached(config.cache_folder, "chat-template", {"text": text}, write)
    data = config.data.model_copy(update={"chat_template": str(folder / "chat_template.jinja")})
    return config.model_copy(update={"data": data})


def _checkpoint_config(training: Training) -> Any:
    """The newest checkpoints; or, with ``keep_best``, those with the lowest losses (Ray Train keeps
    the newest one beside them).
    """
    import ray.train

    if training.keep_best is None:
        return ray.train.CheckpointConfig(num_to_keep=training.keep_checkpoints)
    return ray.train.CheckpointConfig(
        num_to_keep=training.keep_checkpoints,
        checkpoint_score_attribute=training.keep_best,
        checkpoint_score_order="min",
    )
