"""What a run was resolved to: plain values that the settings, the trainer and the controller
share.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from versatune_ray.errors import UserError
from versatune_ray.mixture import Policy
from versatune_ray.settings import Training

Unit = Literal["nats/token", "nats/byte"]
Kind = Literal["single", "ddp", "fsdp"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers of a training run, or of a stage of it, apart from model,
    data and shares.

    scheduled: steps of the learning-rate schedule, where it is that of several stages; None: those
    of this one. order: which of the orders of ``seed`` the records come in; another in every stage,
    so that one on the same records does not repeat the same samples. counted: what shares count.
    orders: of each domain's records, [k]; none: at random. shards_at_once: ``data.*``. kl,
    kl_domain, kl_records, l2: ``training.keep.*``. The rest is ``training.*`` of the settings.
    """

    steps: int
    batch_size: int
    micro_batch_tokens: int
    learning_rate: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    unit: Unit = "nats/token"
    max_passes: float | None = None
    length_correction: float = 0.0
    scheduled: int | None = None
    order: int = 0
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    decay: float = 0.2
    min_lr_ratio: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    optimizer: Literal["adamw", "adamw_8bit", "adamw_bf16"] = "adamw"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: int = 3
    counted: Literal["samples", "response", "all"] = "samples"
    orders: tuple[Literal["random", "given", "length"], ...] = ()
    shards_at_once: int | None = None
    kl: float = 0.0
    kl_domain: str | None = None
    kl_records: int = 8
    l2: float = 0.0


@dataclass(frozen=True)
class StagePlan:
    """A part of a run with records, shares and recipe of its own; a run without ``stages`` is one.

    name: None in such a run. sources: numbers of its domains, in order. records: training records
    that it draws from, of every domain [k].
    start: shares over all domains, [k]. policy: moves those of its sources. adjust_every: optimizer
    steps between adjustments.
    epoch_samples: samples that count as one epoch. fresh: optimizer and schedule begin anew. first:
    steps before it; first_epoch: epochs.
    """

    name: str | None
    sources: tuple[int, ...]
    records: tuple[int, ...]
    start: NDArray[np.float64]
    policy: Policy
    recipe: Recipe
    adjust_every: int
    epoch_samples: float
    fresh: bool = True
    first: int = 0
    first_epoch: float = 0.0

    @property
    def last(self) -> int:
        """The step that it ends with."""
        return self.first + self.recipe.steps

    def epoch(self, step: int) -> float:
        """Epochs of this and the stages before it, up to ``step``."""
        return self.first_epoch + (step - self.first) * self.recipe.batch_size / self.epoch_samples


@dataclass(frozen=True)
class Execution:
    """How a run is computed: it changes speed and memory, and numbers only in their last digits
    (``training.*`` of the settings).
    """

    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    shard_over: int | None = None
    no_sync: bool = False
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    attention: Literal["auto", "padded", "sdpa", "flex", "varlen"] = "auto"
    activation_checkpointing: str = "none"
    cpu_offload: bool = False
    compile: Literal["auto"] | bool = "auto"

    @classmethod
    def of(cls, training: Training) -> Execution:
        return cls(**{field.name: getattr(training, field.name) for field in fields(cls)})

    def kind(self, device: str, world: int) -> Kind:
        """How a module is spread over ``world`` ranks, each on a ``device`` ("cuda" or "cpu").

        Raises:
            UserError: a setting that this kind would not heed.
        """
        kind: Kind = (
            "fsdp"
            if self.parallel == "fsdp" or (self.parallel == "auto" and device == "cuda")
            else "ddp"
        )
        for name in ("cpu_offload", "no_sync", "shard_over"):
            if kind != "fsdp" and getattr(self, name):
                raise UserError(
                    f"training.{name}={getattr(self, name)}: this run uses {kind}, which has no "
                    f"such thing; write training.parallel=fsdp"
                )
        if kind == "fsdp" and world % (self.shard_over or world):
            raise UserError(
                f"training.shard_over: {world} workers cannot be divided into groups of "
                f"{self.shard_over}; choose a divisor"
            )
        return "single" if kind == "ddp" and world == 1 else kind

    def in_bf16(self, device: str) -> bool:
        """Whether forward and backward passes are computed in bf16."""
        return device == "cuda" if self.precision == "auto" else self.precision == "bf16"

    def compiles(self, device: str) -> bool:
        """Whether layers and loss go through torch.compile."""
        return device == "cuda" if self.compile == "auto" else self.compile

    def recomputes(self, layer: int) -> bool:
        """Whether the activations of a layer, counted from 0, are computed again in the backward
        pass.
        """
        if self.activation_checkpointing in ("none", "full"):
            return self.activation_checkpointing == "full"
        return layer % int(self.activation_checkpointing.removeprefix("every ")) == 0
