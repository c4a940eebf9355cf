"""One training run on one rank, wherever it runs: step, and at each adjustment measure, exchange and save. No Ray here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from versatune_ray.domains import DomainPaths, load_domains
from versatune_ray.domains.chat import load_tokenizer
from versatune_ray.settings import Config
from versatune_ray.storage import fetch, here, push
from versatune_ray.training.attention import choose
from versatune_ray.training.checkpoint import Checkpoints
from versatune_ray.training.controller import Decision, Report
from versatune_ray.training.core import Tuner
from versatune_ray.training.model import add_lora, export, load_model
from versatune_ray.training.recipe import Recipe, Setup


@dataclass(frozen=True)
class Job:
    """What a run computes; ``folder`` is its ``finetune/`` folder."""

    config: Config
    model: str
    paths: Mapping[str, DomainPaths]
    recipe: Recipe
    adjust_every: int
    folder: Path


class Host(Protocol):
    """What a run needs of the place where it runs: Ray Train (``worker``), or plain processes (``__main__``)."""

    rank: int
    world: int
    device: torch.device

    def resume(self) -> AbstractContextManager[Path | None]:
        """The last checkpoint, as a local folder."""

    def begin(self, state: dict[str, Any] | None) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Start the controller from its ``state`` in that checkpoint; returns the shares in force and the log so far."""

    def exchange(self, report: Report) -> Decision:
        """This rank's part of an adjustment; the same answer on every rank."""

    def state(self) -> dict[str, Any] | None:
        """The controller's state on rank 0, which rides in the checkpoint; None elsewhere."""

    def save(self, write: Callable[[Path], Future[Any]], metrics: dict[str, Any]) -> None:
        """Keep a checkpoint that ``write`` begins to write into a folder. Returns as soon as training may go on."""

    def progress(self, step: int, note: str) -> None:
        """For a person who waits."""


def run(job: Job, host: Host) -> None:
    """Train from the last checkpoint, or the start, to the end, and leave the tuned model in ``job.folder / "model"``."""
    job = replace(job, model=fetch(job.model), folder=here(job.folder))
    job.folder.mkdir(parents=True, exist_ok=True)
    config, training = job.config, job.config.training
    torch.set_num_threads(training.cpus_per_worker)
    torch.manual_seed(config.seed + host.rank)
    setup = Setup(**{name: getattr(training, name) for name in Setup.__dataclass_fields__})
    model = load_model(job.model, config.model.trust_remote_code, choose(setup.attention, host.device))
    if training.lora.rank is not None:
        model = add_lora(model, training.lora, config.seed)
        torch.manual_seed(config.seed + host.rank)
    data = list(load_domains(job.paths, config.data).values())
    tuner = Tuner(model, data, job.recipe, host.device, host.rank, host.world, setup)
    checkpoints = Checkpoints(tuner)
    with host.resume() as folder:
        state = None if folder is None else checkpoints.load(folder)
    _Run(job, host, tuner, checkpoints, *host.begin(state)).to_the_end()


class _Run:
    def __init__(self, job: Job, host: Host, tuner: Tuner, checkpoints: Checkpoints, share: np.ndarray, lines: list[dict[str, Any]]):
        self.job, self.host, self.tuner, self.checkpoints, self.share, self.lines = job, host, tuner, checkpoints, share, lines
        self.began = time.monotonic()
        self.log = job.folder / "adjustments.jsonl"
        if host.rank == 0:  # what an interrupted run logged after its last checkpoint is done again
            self.log.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def to_the_end(self) -> None:
        recipe, tuner = self.job.recipe, self.tuner
        checkpoint_every = self.job.config.training.checkpoint_every
        if not self.lines:
            self.adjust()
        while tuner.steps_done < recipe.steps:
            loss = tuner.step(self.share)
            self.host.progress(tuner.steps_done, f"loss {loss:.3f}")
            last = tuner.steps_done == recipe.steps
            adjusted = last or tuner.steps_done % self.job.adjust_every == 0
            if adjusted:
                self.adjust()
            if last or (tuner.steps_done % checkpoint_every == 0 if checkpoint_every else adjusted):
                self.host.save(self.save, {"step": tuner.steps_done})
        self.checkpoints.wait()
        weights = self.checkpoints.weights()
        if self.host.rank == 0:
            self.export(weights)

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
        decision = self.host.exchange(report)
        self.share = decision.share
        self.began = time.monotonic()
        if self.host.rank == 0:
            with self.log.open("a") as log:
                log.write(json.dumps(decision.line) + "\n")
            push(self.log)

    def save(self, folder: Path) -> Future[Any]:
        return self.checkpoints.save(folder, self.host.state())

    def export(self, weights: dict[str, torch.Tensor]) -> None:
        """The tuned model with tokenizer and chat template: a folder that transformers and vLLM load as is."""
        config, folder = self.job.config, self.job.folder / "model"
        export(self.tuner.model, weights, folder, self.job.model, config.model.trust_remote_code, config.training.lora)
        load_tokenizer(self.job.model, config.data.chat_template, config.model.trust_remote_code).save_pretrained(folder)
        push(folder)
