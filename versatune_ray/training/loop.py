"""One training run on one rank, wherever it runs: step, and at each adjustment measure, exchange
and save. No Ray here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from versatune_ray.domains import load_domains
from versatune_ray.domains.chat import end_of_turn, load_tokenizer, served_template
from versatune_ray.mixture import LossSums, needs
from versatune_ray.runs.artefacts import Exported
from versatune_ray.runs.storage import fetch, here, push
from versatune_ray.settings.recipe import Execution, StagePlan
from versatune_ray.training.adjustment import Refused, Report
from versatune_ray.training.attention import choose, kind_of
from versatune_ray.training.budget import check_room
from versatune_ray.training.checkpoint import Checkpoints, steps_in
from versatune_ray.training.export import export
from versatune_ray.training.gradients import measure as gradients_of
from versatune_ray.training.job import Job
from versatune_ray.training.loggers import MLFLOW_DB
from versatune_ray.training.metrics import Metrics
from versatune_ray.training.model import begin_adapters, fill, load_model, with_frozen
from versatune_ray.training.runtime import Runtime
from versatune_ray.training.step import Unrecoverable
from versatune_ray.training.together import together
from versatune_ray.training.trainer import Trainer


def run(job: Job, runtime: Runtime) -> None:
    """Train from the last checkpoint, or the start, to the end, and leave the tuned model in
    ``job.folder / "model"``.
    """
    config, training = job.config, job.config.training
    torch.set_num_threads(training.cpus_per_worker)
    torch.manual_seed(config.seed + runtime.rank)
    execution = Execution.of(training)
    with together(runtime.world):
        job = replace(job, model=fetch(job.model), folder=here(job.folder))
        job.folder.mkdir(parents=True, exist_ok=True)
        check_room(config, job.model, runtime.world, runtime.device)
        empty = execution.kind(runtime.device.type, runtime.world) == "fsdp"
        model = load_model(
            job.model,
            config.model.trust_remote_code,
            choose(execution.attention, runtime.device, execution.in_bf16(runtime.device.type)),
            empty=empty,
        )
        model = with_frozen(model, training, config.seed)
        base = (
            load_model(job.model, config.model.trust_remote_code, kind_of(model), empty=empty)
            if training.keep.kl and training.lora.rank is None
            else None
        )
        data = list(load_domains(job.paths, config.data).values())
    with runtime.resume() as folder:
        stage = job.stages[job.stage_at(steps_in(folder))]
        with together(runtime.world):
            trainer = Trainer(
                model,
                data,
                stage.recipe,
                runtime.device,
                runtime.rank,
                runtime.world,
                execution,
                stage.records,
                job.importance,
                base,
            )
        runtime.watch(lambda: trainer.reached)
        checkpoints = Checkpoints(trainer)
        if empty:
            with together(runtime.world):
                # a checkpoint has what trains
                fill(model, job.model, frozen_only=folder is not None and not training.keep.l2)
                begin_adapters(model, config.seed)
                trainer.remember_base()
                if base is not None:
                    fill(base, job.model)
        state = None if folder is None else checkpoints.load(folder)
    share, lines = runtime.begin(state)
    with together(runtime.world):
        metrics = Metrics.begin(
            config,
            job.folder,
            trainer,
            lines,
            runtime.logger() if runtime.rank == 0 else None,
            runtime.warn,
        )
    with metrics as meter:
        _Run(job, runtime, trainer, checkpoints, share, lines, meter).to_the_end()
    if runtime.rank == 0:
        _send(job, MLFLOW_DB)


class _Run:
    def __init__(
        self,
        job: Job,
        runtime: Runtime,
        trainer: Trainer,
        checkpoints: Checkpoints,
        share: np.ndarray,
        lines: list[dict[str, Any]],
        meter: Metrics,
    ):
        self.meter = meter
        self.job, self.runtime, self.trainer, self.checkpoints, self.share, self.lines = (
            job,
            runtime,
            trainer,
            checkpoints,
            share,
            lines,
        )
        self.before: dict[str, float] = lines[0]["loss"] if lines else {}
        self.measured: tuple[int, dict[str, float | None]] = (-1, {})
        # of which step, for a stage that begins where another ends
        self.held_out: tuple[int, LossSums | None] = (-1, None)
        self.number = job.stage_at(trainer.steps_done)
        self.began = time.monotonic()
        self.log = job.folder / "adjustments.jsonl"
        # what an interrupted run logged after its last checkpoint is done again
        if runtime.rank == 0:
            self.log.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def to_the_end(self) -> None:
        for number in range(self.number, len(self.job.stages)):
            self.number = number
            self.train(self.job.stages[number])
        self.checkpoints.wait()
        with self.runtime.best() as folder:
            if folder is not None:
                self.checkpoints.load_weights(folder)
                if self.runtime.rank == 0:
                    file = self.job.folder / Path(Exported.FILE).name
                    file.write_text(json.dumps({"step": steps_in(folder)}))
                    push(file)
        weights = self.checkpoints.weights()
        if self.runtime.rank == 0:
            self.export(weights)

    def train(self, stage: StagePlan) -> None:
        """The steps of a stage that are left."""
        trainer, checkpoint_every = self.trainer, self.job.config.training.checkpoint_every
        if trainer.steps_done == stage.first:
            if self.number:
                trainer.begin(stage.recipe, stage.records, fresh=stage.fresh)
            self.adjust()
        while trainer.steps_done < stage.last:
            began, step = time.perf_counter(), trainer.steps_done + 1
            last = step == stage.last
            adjusts = last or (step - stage.first) % stage.adjust_every == 0
            saves = last or (step % checkpoint_every == 0 if checkpoint_every else adjusts)
            with self.in_time(step):
                trainer.step(self.share, ahead=not (adjusts or saves))
            if (
                self.runtime.rank == 0
                and trainer.last is not None
                and trainer.last.skipped is not None
            ):
                self.runtime.warn(f"{trainer.last.skipped}; left out (training.on_nonfinite=skip)")
            self.runtime.progress(step, self.meter.step(time.perf_counter() - began))
            if adjusts:
                self.adjust()
            if saves:
                self.meter.flush()  # what a checkpoint has behind it is not measured again
                if self.runtime.rank == 0:
                    _send(self.job, MLFLOW_DB)  # nobody writes in it now
                with self.in_time(trainer.steps_done):
                    self.runtime.save(self.save, self.metrics())

    @contextmanager
    def in_time(self, step: int) -> Iterator[None]:
        """Where the ranks' meeting timed out, the error names the rank that the others waited for.

        Raises:
            TimeoutError: another rank hangs.
        """
        try:
            yield
        except RuntimeError as error:
            if "timed out" not in str(error).lower():
                raise
            missing = ", ".join(map(str, self.runtime.missing())) or "unknown"
            seconds = self.job.config.training.exchange_timeout
            raise TimeoutError(
                f"step {step}: no word from rank(s) {missing} within {seconds:g} s"
            ) from error

    def adjust(self) -> None:
        """Measure, tell the controller, and go on with the shares that it answers."""
        step = self.trainer.steps_done
        with self.in_time(step):
            report = self.report()
            try:
                decision = self.runtime.exchange(report)
            # any other ValueError may come from torch, where the ranks' group is gone
            except Refused as error:
                raise Unrecoverable(
                    f"adjustment at step {step}: {error}; the last checkpoint is intact"
                ) from error
        self.share = decision.share
        self.began = time.monotonic()
        if self.runtime.rank == 0:
            self.measured = decision.line["step"], decision.line["loss"]
            self.before = self.before or decision.line["loss"]
            self.meter.adjusted(decision.line)
            with self.log.open("a") as log:
                log.write(json.dumps(decision.line) + "\n")
            _send(self.job)
            for warning in decision.line["warnings"]:
                self.runtime.warn(warning)

    def report(self) -> Report:
        trainer, stage = self.trainer, self.job.stages[self.number]
        training = time.monotonic() - self.began
        # before and after are always measured held out
        first_or_last = trainer.steps_done in (stage.first, stage.last)
        measured = (
            self.measure()
            if self.job.config.mixture.feedback == "held_out" or first_or_last
            else None
        )
        # a stage's first adjustment decides nothing
        asked = {
            what: needs(stage.policy, what)
            for what in ("gradients", "variances", "held_out_gradient")
        }
        gradients = (
            gradients_of(
                trainer,
                self.job.config.mixture.gradient_records,
                asked["variances"],
                asked["held_out_gradient"],
            )
            if trainer.steps_done > stage.first and any(asked.values())
            else None
        )
        train, samples, tokens = trainer.take_counts()
        return Report(
            stage=self.number,
            step=trainer.steps_done,
            epoch=stage.epoch(trainer.steps_done),
            loss_sums=measured.nats if measured else None,
            token_counts=measured.count if measured else None,
            train_loss_sums=train.nats,
            train_token_counts=train.count,
            samples=samples,
            tokens=tokens,
            passes=trainer.sampler.passes,
            seconds={"training": training, "measuring": time.monotonic() - self.began - training},
            gradients=gradients,
        )

    def measure(self) -> LossSums | None:
        """This rank's part of the held-out losses at this step, measured once."""
        if self.held_out[0] != self.trainer.steps_done:
            self.held_out = self.trainer.steps_done, self.trainer.held_out()
        return self.held_out[1]

    def metrics(self) -> dict[str, Any]:
        """What checkpoints and trials are compared by: where they were measured at this very step,
        the losses, one by one and their mean, and beside them those before training.
        """
        found: dict[str, Any] = {"step": self.trainer.steps_done}
        if self.measured[0] == self.trainer.steps_done:
            loss = {name: value for name, value in self.measured[1].items() if value is not None}
            found |= {"loss": float(np.mean(list(loss.values())))} | {
                f"loss.{name}": value for name, value in loss.items()
            }
            found |= {f"loss_before.{name}": value for name, value in self.before.items()}
        return found

    def save(self, folder: Path) -> Future[Any]:
        return self.checkpoints.save(folder, self.runtime.state())

    def export(self, weights: dict[str, torch.Tensor]) -> None:
        """The tuned model with tokenizer and chat template: a folder that transformers and vLLM
        load as is.
        """
        config, folder = self.job.config, self.job.folder / "model"
        tokenizer = load_tokenizer(
            self.job.model,
            config.data.chat_template,
            config.model.trust_remote_code,
            config.data.chat_template_kwargs,
        )
        export(
            self.trainer.model,
            weights,
            folder,
            self.job.model,
            config.model.trust_remote_code,
            config.training,
            end_of_turn(tokenizer),
        )
        tokenizer.chat_template = served_template(tokenizer)
        tokenizer.save_pretrained(folder)
        push(folder)


def _send(job: Job, *more: str) -> None:
    """What rank 0 logs, for those who follow the run in a storage behind a URI, and for a later
    attempt; ``more``: files of trackers, where they are there.
    """
    for name in ("adjustments.jsonl", "tensorboard/*", *more):
        for file in job.folder.glob(name):
            push(file)
