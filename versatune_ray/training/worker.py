"""What every Ray Train worker does: step, and at each adjustment measure, exchange, checkpoint."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero

from versatune_ray.domains import DomainPaths, load_domains
from versatune_ray.domains.chat import load_tokenizer
from versatune_ray.progress import Bar
from versatune_ray.settings import Config
from versatune_ray.training.controller import Decision, Report
from versatune_ray.training.core import Tuner, load_model
from versatune_ray.training.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """Everything a worker needs; ``folder`` is the run's ``finetune/`` folder, seen by all nodes."""

    config: Config
    model: str
    paths: Mapping[str, DomainPaths]
    recipe: Recipe
    adjust_every: int
    controller: Any
    folder: Path


def train_loop(settings: dict[str, Any]) -> None:
    """The function that ``TorchTrainer`` runs on every rank."""
    job: Job = settings["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.config.training.cpus_per_worker)
    torch.manual_seed(job.config.seed + rank)
    device = ray.train.torch.get_device()
    data = list(load_domains(job.paths, job.config.data).values())

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        tuner = Tuner(load_model(job.model, job.config.model.trust_remote_code), data, job.recipe, device, rank, world)
        state = None
    else:
        with checkpoint.as_directory() as folder:
            model = load_model(str(Path(folder) / "model"), job.config.model.trust_remote_code)
            tuner = Tuner(model, data, job.recipe, device, rank, world)
            tuner.load(Path(folder))
            state = json.loads((Path(folder) / "controller.json").read_text())
    begun = ray.get(job.controller.begin.remote(world, state)) if rank == 0 else None
    attempt, share, lines = broadcast_from_rank_zero(begun)
    _Loop(job, tuner, rank, attempt, np.array(share), lines).run()


class _Loop:
    def __init__(self, job: Job, tuner: Tuner, rank: int, attempt: int, share: Any, lines: list[dict[str, Any]]):
        self.job, self.tuner, self.rank, self.attempt, self.share, self.lines = job, tuner, rank, attempt, share, lines
        self.began = time.monotonic()
        self.log = job.folder / "adjustments.jsonl"
        if rank == 0:  # what an interrupted run logged after its last checkpoint is done again
            self.log.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(self) -> None:
        recipe, tuner = self.job.recipe, self.tuner
        checkpoint_every = self.job.config.training.checkpoint_every
        if not self.lines:
            self.adjust()
        with Bar("fine-tuning", recipe.steps) if self.rank == 0 else nullcontext() as bar:
            while tuner.steps_done < recipe.steps:
                loss = tuner.step(self.share)
                if not np.isfinite(loss):
                    raise FloatingPointError(f"the training loss is {loss} at step {tuner.steps_done}; the last checkpoint is intact")
                if bar:
                    bar.to(tuner.steps_done, f"loss {loss:.3f}")
                last = tuner.steps_done == recipe.steps
                adjusted = last or tuner.steps_done % self.job.adjust_every == 0
                if adjusted:
                    self.adjust()
                if last or (tuner.steps_done % checkpoint_every == 0 if checkpoint_every else adjusted):
                    self.checkpoint()
        if self.rank == 0:
            self.export()

    def adjust(self) -> None:
        """Measure, tell the controller, and go on with the shares that it answers."""
        tuner, recipe, config = self.tuner, self.job.recipe, self.job.config
        training = time.monotonic() - self.began
        first_or_last = tuner.steps_done in (0, recipe.steps)  # before and after are always measured held out
        measured = tuner.held_out() if config.mixture.feedback == "held_out" or first_or_last else None
        train, samples, tokens = tuner.take_counts()
        samples_per_epoch = config.training.samples_per_epoch or sum(len(domain.train) for domain in tuner.data)
        report = Report(
            step=tuner.steps_done,
            epoch=tuner.steps_done * recipe.batch_size / samples_per_epoch,
            loss_sums=measured.nats if measured else None,
            token_counts=measured.count if measured else None,
            train_loss_sums=train.nats,
            train_token_counts=train.count,
            samples=samples,
            tokens=tokens,
            passes=tuner.sampler.passes,
            seconds={"training": training, "measuring": time.monotonic() - self.began - training},
        )
        decision: Decision = ray.get(self.job.controller.exchange.remote(self.attempt, self.rank, report))
        self.share = decision.share
        self.began = time.monotonic()
        if self.rank == 0:
            with self.log.open("a") as log:
                log.write(json.dumps(decision.line) + "\n")

    def checkpoint(self) -> None:
        """Report a checkpoint of model, optimizer, schedule, sampler, controller and random state."""
        with tempfile.TemporaryDirectory(prefix="versatune-checkpoint-") as folder:
            self.tuner.save(Path(folder))
            if self.rank == 0:
                state = ray.get(self.job.controller.state_dict.remote(self.attempt))
                (Path(folder) / "controller.json").write_text(json.dumps(state))
            metrics = {"step": self.tuner.steps_done}
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def export(self) -> None:
        """The tuned model with tokenizer and chat template: a folder that transformers and vLLM load as is."""
        config = self.job.config
        self.tuner.model.save_pretrained(self.job.folder / "model")
        tokenizer = load_tokenizer(self.job.model, config.data.chat_template, config.model.trust_remote_code)
        tokenizer.save_pretrained(self.job.folder / "model")
