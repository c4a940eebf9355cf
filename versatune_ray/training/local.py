"""A training run without Ray: the controller lives in rank 0, checkpoints are folders beside each
other.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from versatune_ray.domains import load_domains
from versatune_ray.domains.chat import tokenizer_fingerprint
from versatune_ray.domains.contamination import mark
from versatune_ray.domains.tokenizing import build_stores
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import write_json
from versatune_ray.runs.folder import RunFolder, say
from versatune_ray.runtime.cluster import gpus_here
from versatune_ray.runtime.gguf import with_folders
from versatune_ray.runtime.models import check_length, find_model, model_fingerprint
from versatune_ray.runtime.progress import State, line
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.recipe import Unit
from versatune_ray.training.adjustment import Decision, Report
from versatune_ray.training.controller import WeightController
from versatune_ray.training.given_losses import given_losses
from versatune_ray.training.heartbeat import Heartbeat, Sign, held_up_by
from versatune_ray.training.inputs import check_rows, inputs_of, loss_unit, tokenizer_of
from versatune_ray.training.job import Job
from versatune_ray.training.loggers import MetricLogger
from versatune_ray.training.loop import run
from versatune_ray.training.together import together
from versatune_ray.training.trainable import read_importance

_PRINT_EVERY = 5.0  # seconds
_TOKENISING = timedelta(days=1)  # longest wait for the first rank to make the token stores


def finetune_alone(config: Config) -> Path:
    """Train in this process, or as the rank that torchrun made it; returns the folder of the tuned
    model.

    Raises:
        UserError: something is missing that a job has to make first.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    gpu = gpus_here(config.device)
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")
    )
    if gpu:
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        timeout = timedelta(seconds=config.training.exchange_timeout)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timeout)
    try:
        with ExitStack() as held:
            with together(world):
                config = with_folders(config)
                kept = held.enter_context(RunFolder(config)) if rank == 0 else None
            return _finetune(config, kept, rank, world, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _finetune(
    config: Config, kept: RunFolder | None, rank: int, world: int, device: torch.device
) -> Path:
    """``kept``: the run's folder, on rank 0."""
    model, folder = config.model.path, config.run_folder / "finetune"
    if model is None or not config.domains:
        raise UserError(
            "model.path and domains: name a model and data; for the embedded microworld there is "
            "jobs/quickstart"
        )
    if any(config.training.keep.replay.values()):
        raise UserError(
            "training.keep.replay: what the base writes itself is made on Ray; run jobs/finetune.py"
        )
    # The others wait for as long as the first one tokenises, and not just for a step.
    patient = dist.new_group(timeout=_TOKENISING, backend="gloo") if world > 1 else None
    with together(world, patient):
        if rank == 0:
            find_model("model.path", model)
            remote = config.model.trust_remote_code
            check_length("data.max_length", config.data.max_length, model, remote)
            build_stores(config, config.domains, model, config.cache_folder, distributed=False)
    with together(world):
        folder.mkdir(parents=True, exist_ok=True)
        paths = build_stores(config, config.domains, model, config.cache_folder, distributed=False)
        names = list(paths)
        loaded = tokenizer_of(config, model)
        paths, _ = mark(config, paths, loaded, config.cache_folder)
        data = load_domains(paths, config.data)
        check_rows(config, model, data)
        sizes = [len(data[name].train) for name in names]
        tokenizer = tokenizer_fingerprint(loaded)
        detected = _detected(config, model) if semantics.needs_detection(config) else None
        reference = (
            given_losses(_reference_file(config), names, tokenizer)
            if semantics.needs_reference(config)
            else None
        )
        unit: Unit = reference["unit"] if reference else loss_unit(config, model)
        stages = semantics.stages(config, names, sizes, detected, unit)
        controller = WeightController(
            **semantics.controller_arguments(config, names, stages, reference)
        )
        if kept is not None:
            fingerprint = model_fingerprint(model, config.cache_folder)
            kept.begin(inputs_of(config, fingerprint, paths, detected, reference))
        job = Job(config, model, paths, stages, folder, read_importance(config.training.soft_mask))
    done = [(folder / "done").is_file()]
    if world > 1:
        dist.broadcast_object_list(done)
    if done[0]:
        if rank == 0:
            say("fine-tuning", "was done before")
        return folder / "model"
    runtime = LocalRuntime(job, controller, rank, world, device)
    with runtime.heartbeat:
        run(job, runtime)
    runtime.finish()
    if rank == 0:
        (folder / "done").touch()  # as after one on Ray: evaluations find it, nothing trains again
    return folder / "model"


def _detected(config: Config, model: str) -> list[float]:
    from versatune_ray.detection.distribution import given
    from versatune_ray.detection.distribution_file import starting_share

    if config.detection.distribution is not None:
        return starting_share(given(config.detection.distribution, list(config.domains)))
    file = config.run_folder / "detection" / Path(model).name / "distribution.json"
    if not file.is_file():
        raise UserError(
            f"mixture.start={config.mixture.start}: no {file}; run jobs/detect.py with this "
            f"configuration first"
        )
    return starting_share(json.loads(file.read_text()))


def _reference_file(config: Config) -> str:
    file = config.reference.losses or str(config.run_folder / "reference" / "losses.json")
    if not Path(file).is_file():
        raise UserError(
            f"mixture.policy={config.mixture.policy}: no {file}; run jobs/reference.py with this "
            f"configuration first"
        )
    return file


class LocalRuntime:
    """``loop.Runtime`` of processes that torchrun started, or of one alone."""

    def __init__(
        self, job: Job, controller: WeightController, rank: int, world: int, device: torch.device
    ):
        self.rank, self.world, self.device = rank, world, device
        self._job, self._controller = job, controller
        self._folder = job.folder / "checkpoints"
        self._pending: Future[None] | None = None
        self._placing = ThreadPoolExecutor(1)
        self._began, self._printed, self._first = time.monotonic(), 0.0, -1
        self._signs = _Signs(world) if world > 1 else None
        timeout = job.config.training.exchange_timeout
        self.heartbeat = Heartbeat(rank, world, self._beat, self.missing, self.warn, timeout)

    def _beat(self, reached: float) -> None:
        if self._signs is not None:
            self._signs.put(self.rank, reached)

    @contextmanager
    def resume(self) -> Iterator[Path | None]:
        yield self._agreed(max(self._folder.glob("step-????????"), default=None))

    def _agreed(self, folder: Path | None) -> Path | None:
        """What rank 0 found, on every rank: a node that does not see it may not begin anew while
        the others go on.

        Raises:
            UserError: some rank does not see it.
        """
        found = [folder]
        if self.world > 1:
            dist.broadcast_object_list(found)
        with together(self.world):
            if found[0] is not None and not found[0].is_dir():
                raise UserError(
                    f"storage: no {found[0]} here, which rank 0 goes on from; it has to be a "
                    f"folder that every node sees"
                )
        return found[0]

    def begin(
        self, state: dict[str, Any] | None
    ) -> tuple[NDArray[np.float64], list[dict[str, Any]]]:
        _, share, lines = self._controller.begin(self.world, state)
        return np.array(share), lines

    def exchange(self, report: Report) -> Decision:
        reports: list[Any] | None = [None] * self.world if self.rank == 0 else None
        if self.world == 1:
            return self._controller.decide([report])
        dist.gather_object(report, reports)
        answer: list[Any] = [None]
        if reports is not None:
            try:
                answer = [self._controller.decide(reports)]
            except Exception as error:  # else the others would wait in vain
                answer = [error]
        dist.broadcast_object_list(answer)
        if isinstance(answer[0], Exception):
            raise answer[0]
        decision: Decision = answer[0]
        return decision

    def state(self) -> dict[str, Any] | None:
        return self._controller.state_dict(self._controller.attempt) if self.rank == 0 else None

    def save(self, write: Callable[[Path], Future[Any]], metrics: dict[str, Any]) -> None:
        self.finish()
        target = self._folder / f"step-{metrics['step']:08}"
        partial = target.with_name(f".{target.name}")
        if self.rank == 0:
            # of a run that was killed, with other workers perhaps
            shutil.rmtree(partial, ignore_errors=True)
        if self.world > 1:
            dist.barrier()
        written = write(partial)
        if self.rank == 0:
            write_json(partial / "metrics.json", metrics)
        self._pending = self._placing.submit(self._publish, target, written)

    def finish(self) -> None:
        """Until the last checkpoint is in its place."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _publish(self, target: Path, written: Future[Any]) -> None:
        """Once all is written, put a checkpoint in its place, and remove those that are not
        kept.
        """
        written.result()  # of rank 0: when all ranks have written theirs
        if self.rank == 0:
            target.with_name(f".{target.name}").rename(target)
            for old in self._ranked()[self._job.config.training.keep_checkpoints :]:
                if old != target:
                    shutil.rmtree(old)

    @contextmanager
    def best(self) -> Iterator[Path | None]:
        self.finish()
        if self.world > 1:
            dist.barrier()
        yield self._agreed(self._ranked()[0]) if self._job.config.training.keep_best else None

    def _ranked(self) -> list[Path]:
        """Checkpoints, those worth most first."""
        key = self._job.config.training.keep_best
        newest_first = sorted(self._folder.glob("step-????????"), reverse=True)
        if key is None:
            return newest_first
        return sorted(
            newest_first,
            key=lambda folder: json.loads((folder / "metrics.json").read_text()).get(key, math.inf),
        )

    def progress(self, step: int, note: str) -> None:
        if self._first < 0:
            self._began, self._first = time.monotonic(), step
        if self.rank == 0 and time.monotonic() - self._printed > _PRINT_EVERY:
            self._printed = time.monotonic()
            state = State(step, self._job.steps, "step", note)
            print(
                line("fine-tuning", state, self._printed - self._began, step - self._first),
                file=sys.stderr,
                flush=True,
            )

    def watch(self, reached: Callable[[], float]) -> None:
        self.heartbeat.reached = reached

    def missing(self) -> list[int]:
        return [] if self._signs is None else held_up_by(self._signs.all(), time.time())

    def logger(self) -> MetricLogger | None:
        return None

    def warn(self, text: str) -> None:
        print(f"[fine-tuning] warning: {text}", file=sys.stderr, flush=True)


class _Signs:
    """How far every rank is, in the store under which torchrun's processes met; by a connection
    that waits for nothing else.
    """

    def __init__(self, world: int):
        self._world = world
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]

    def put(self, rank: int, reached: float) -> None:
        self._store.set(f"versatune/{rank}", json.dumps([time.time(), reached]))

    def all(self) -> dict[int, Sign]:
        keys = {rank: f"versatune/{rank}" for rank in range(self._world)}
        return {
            rank: Sign(*json.loads(self._store.get(key)))
            for rank, key in keys.items()
            if self._store.check([key])
        }
