"""Keys of the fine-tuning, and of the reference models before it."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from versatune_ray.settings.cofitune import Trainable
from versatune_ray.settings.common import (
    MOST_SAMPLES,
    Betas,
    Loggers,
    Paths,
    Recompute,
    Section,
    Shares,
    setting,
)

_YEAR = 31_536_000  # seconds


class Reference(Section):
    """Mastery ceiling per domain: the lowest loss of a small model tuned on that domain alone."""

    losses: str | None = setting(None, "skip: a losses.json of an earlier run", path=True)
    model: str | None = setting(
        None,
        "small reference model: a folder or a Hugging Face id; none: the base model itself",
        path=True,
    )
    measure: Literal["held_out", "train"] = setting(
        "held_out", "loss that counts; `train` is the paper's letter"
    )
    epochs: int = setting(4, "most epochs per domain, T_ref", "epochs", ge=1)
    patience: int = setting(
        1, "stop a domain after this many epochs without a new lowest loss", "epochs", ge=1
    )
    max_records: int | None = setting(
        None, "cap on training records per domain, chosen by hash; none: all", "records", ge=1
    )
    batch_size: int = setting(32, "samples per optimizer step", "samples", ge=1, le=MOST_SAMPLES)
    learning_rate: float = setting(2e-5, "peak rate; cosine with warm-up", gt=0)
    workers: int = setting(1, "domains tuned at the same time", ge=1, results=False)
    cpus: int = setting(1, "CPUs (threads) per worker", ge=1, results=False)


class Lora(Section):
    """Low-rank adapters (peft) instead of full fine-tuning."""

    rank: int | None = setting(
        None, "rank of the added matrices; none: full fine-tuning, as in the paper", ge=1
    )
    alpha: int = setting(32, "their scale is alpha / rank", ge=1)
    dropout: float = setting(0.0, "dropout before them", ge=0, lt=1)
    targets: Paths = setting(
        lambda: ["all-linear"],
        "names of the modules that get them; all-linear: all but the output embedding",
        min_length=1,
    )
    export: Literal["merged", "adapter"] = setting(
        "merged", "leave a whole model, or the adapter alone"
    )


class Keep(Section):
    """What keeps the tuned model near the base, whatever the shares; 0: nothing."""

    kl: float = setting(
        0.0,
        "weight of KL(base ‖ model), the mean over response tokens of some records, in the loss; "
        "without LoRA a copy of the base model stays in memory",
        ge=0,
    )
    kl_domain: str | None = setting(
        None, "kl: the domain whose training records these are; none: each domain in turn"
    )
    kl_records: int = setting(8, "kl: records per step, drawn anew at each", "records", ge=1)
    l2: float = setting(
        0.0,
        "weight λ of λ/2 · ‖θ − θ₀‖², the squared distance to the base's weights (with LoRA of the "
        "merged ones), in the loss",
        ge=0,
    )
    replay: Shares = setting(
        dict,
        "domain → part of its samples that the base model wrote itself, from its start token "
        "(detection's sequences), as {general: 0.2}; they train and are never held out",
    )
    replay_samples: int = setting(
        1000, "replay: sequences; those of an earlier detection are there already", ge=1
    )

    @field_validator("replay")
    @classmethod
    def _a_part(cls, value: Shares) -> Shares:
        for name, part in value.items():
            if not 0 <= part < 1:
                raise ValueError(f"{name}: a part of the domain's samples, below 1; found {part}")
        return value


class Training(Section):
    workers: int | list[int] = setting(
        2,
        "Ray Train workers; [least, most]: as many as the cluster has room for at the moment",
        results=False,
    )
    cpus_per_worker: int = setting(1, "CPUs (torch threads) per worker", ge=1, results=False)
    epochs: float = setting(4, "passes of samples_per_epoch", "epochs", gt=0)
    samples_per_epoch: int | None = setting(
        None, "samples per epoch over all domains; none: all training records", "samples", ge=1
    )
    batch_size: int = setting(
        128, "samples per optimizer step, over all workers", "samples", ge=1, le=MOST_SAMPLES
    )
    micro_batch_tokens: int = setting(
        8192, "tokens per forward pass and worker, padding included", "tokens", ge=1, results=False
    )
    parallel: Literal["auto", "ddp", "fsdp"] = setting(
        "auto",
        "ddp: every worker holds the model; fsdp: sharded (FSDP2); auto: fsdp on GPUs, a single "
        "one included, else ddp",
        results=False,
    )
    shard_over: int | None = setting(
        None,
        "fsdp: workers that share one copy of the model, best those of a machine (HSDP); none: all "
        "of them",
        "workers",
        ge=1,
        results=False,
    )
    no_sync: bool = setting(
        False,
        "fsdp: reduce gradients once a step and not after each micro-batch: less traffic, but each "
        "worker keeps a whole gradient",
        results=False,
    )
    precision: Literal["auto", "bf16", "fp32"] = setting(
        "auto", "of the forward and backward passes; auto: bf16 on GPUs, fp32 on CPUs"
    )
    attention: Literal["auto", "padded", "sdpa", "flex", "varlen"] = setting(
        "auto",
        "padded: rows of like length; the others pack samples into one row without padding; auto: "
        "varlen on GPUs (sdpa in fp32), padded on CPUs",
        results=False,
    )
    activation_checkpointing: Recompute = setting(
        "none",
        "compute activations again in the backward pass: none, full (a third more work), or `every "
        "N`, of each N-th layer",
        results=False,
    )
    cpu_offload: bool = setting(
        False, "fsdp: keep weights and optimizer state in CPU memory", results=False
    )
    compile: Literal["auto"] | bool = setting(
        "auto", "torch.compile every layer of the decoder; auto: on GPUs", results=False
    )
    lora: Lora = setting(Lora, "low-rank adapters")
    trainable: Trainable = setting(Trainable, "parameters that may move")
    soft_mask: Paths = setting(
        list,
        "files of unit importance (jobs/cofitune.py): the update of a unit is scaled by 1 − its "
        "importance; of several, the highest",
        path=True,
    )
    keep: Keep = setting(Keep, "terms of the loss against forgetting")
    optimizer: Literal["adamw", "adamw_8bit", "adamw_bf16"] = setting(
        "adamw",
        "adamw: 16 bytes per trained parameter (weight, gradient, two moments); adamw_8bit: "
        "moments in 8 bits (torchao), 10 bytes; "
        "adamw_bf16: all four in bf16, weights rounded stochastically (torchao), 8 bytes",
    )
    learning_rate: float = setting(2e-5, "peak rate", gt=0)
    schedule: Literal["cosine", "linear", "constant", "wsd"] = setting(
        "cosine",
        "of the rate after the warm-up; wsd: constant, then down in a straight line over the last "
        "`decay` of the steps",
    )
    warmup: float = setting(0.03, "share of steps with a rising rate", ge=0, lt=1)
    decay: float = setting(0.2, "wsd: share of steps with a falling rate", gt=0, le=1)
    min_lr_ratio: float = setting(
        0.0, "lowest rate at the end, as a part of learning_rate", ge=0, le=1
    )
    betas: Betas = setting(lambda: [0.9, 0.999], "AdamW: how slowly its two moments move")
    eps: float = setting(1e-8, "AdamW: added to the root of the second moment", gt=0)
    weight_decay: float = setting(0.0, "AdamW; norms, biases and embeddings are left alone", ge=0)
    max_grad_norm: float = setting(1.0, "gradient clipping; 0: none", ge=0)
    on_nonfinite: Literal["stop", "skip"] = setting(
        "stop",
        "a loss or gradient that is no number: stop, or leave the batch out, say which records it "
        "had, and go on",
        resumable=True,
    )
    max_skipped: int = setting(
        3,
        "batches in a row that on_nonfinite=skip leaves out before it stops",
        "steps",
        ge=1,
        resumable=True,
    )
    adjust_every: int | None = setting(
        None, "optimizer steps between adjustments; none: once per epoch", "steps", ge=1
    )
    checkpoint_every: int | None = setting(
        None, "optimizer steps between checkpoints; none: at each adjustment", "steps", ge=1
    )
    keep_checkpoints: int = setting(2, "checkpoints kept: the newest ones", ge=1, results=False)
    keep_best: str | None = setting(
        None,
        "keep those of the lowest held-out loss instead, and the newest: `loss` (mean over "
        "domains) or `loss.NAME` of one; the best one is the tuned model",
    )
    metrics: Loggers = setting(
        lambda: ["tensorboard"],
        "where to watch the run, besides Ray's metrics; an empty list: nowhere",
        results=False,
    )
    max_failures: int = setting(
        3, "worker-group failures survived before giving up", ge=0, results=False
    )
    exchange_timeout: float = setting(
        600.0,
        "longest wait for the slowest rank, in a step or at an adjustment",
        "s",
        gt=0,
        le=_YEAR,
        results=False,
    )

    @field_validator("workers")
    @classmethod
    def _ordered(cls, value: int | list[int]) -> int | list[int]:
        least, most = (
            (value, value) if isinstance(value, int) else value if len(value) == 2 else (0, 0)
        )
        if not 1 <= least <= most:
            raise ValueError(
                f"write the number of workers, or [least, most] with 1 ≤ least ≤ most; found "
                f"{value}"
            )
        return value

    @model_validator(mode="after")
    def _heeded(self) -> Training:
        for key in ("cpu_offload", "no_sync", "shard_over"):
            if self.parallel == "ddp" and getattr(self, key):
                raise ValueError(
                    f"{key}={getattr(self, key)}: parallel=ddp has no such thing; write "
                    f"parallel=fsdp, or leave {key} out"
                )
        most = self.least_and_most[1]
        if self.shard_over is not None and most % self.shard_over:
            raise ValueError(
                f"shard_over: {most} workers cannot be divided into groups of {self.shard_over}; "
                f"choose a divisor"
            )
        return self

    @property
    def least_and_most(self) -> tuple[int, int]:
        return (
            (self.workers, self.workers)
            if isinstance(self.workers, int)
            else (self.workers[0], self.workers[1])
        )
