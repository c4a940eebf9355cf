"""Every key of the configuration, declared once with its type, unit, default and meaning;
``--help`` prints exactly these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from versatune_ray.settings.cofitune import CoFiTune, Trainable
from versatune_ray.settings.common import (
    Betas,
    Loggers,
    Paths,
    Recompute,
    Section,
    Shares,
    nearest,
    setting,
)
from versatune_ray.settings.detection import Detection, Engine, Generation, Http, Judge, Subject
from versatune_ray.settings.evaluation import Benchmark, Evaluation
from versatune_ray.settings.location import root
from versatune_ray.settings.mixture import Mixture
from versatune_ray.settings.stages import Stage
from versatune_ray.settings.tuning import Replay, Study, Sweep

# domains of the embedded world
MICROWORLD = ("law", "medicine", "finance", "science", "code", "general")

__all__ = [
    "MICROWORLD",
    "Base",
    "Benchmark",
    "CoFiTune",
    "Config",
    "Data",
    "Detection",
    "Domain",
    "Engine",
    "Evaluation",
    "Generation",
    "Http",
    "Judge",
    "Lora",
    "Microworld",
    "Mixture",
    "Model",
    "Paths",
    "Reference",
    "Replay",
    "Section",
    "Shares",
    "Stage",
    "Study",
    "Subject",
    "Sweep",
    "Trainable",
    "Training",
    "nearest",
    "setting",
]


class Model(Section):
    path: str | None = setting(
        None,
        "base model: a folder or a Hugging Face id; none: pre-train the tiny one described under "
        "`base`",
    )
    trust_remote_code: bool = setting(
        False, "run Python code that comes with the model (only for sources you trust)"
    )


class Base(Section):
    """A tiny base model and judge, pre-trained here: the embedded microworld, or your own corpora
    (no hub needed).
    """

    corpora: dict[str, Paths] = setting(
        dict,
        "text corpora per domain (files with a `text` field, or plain .txt); none: the "
        "microworld's own",
    )
    mixture: Shares = setting(
        dict, "share of pre-training rows per domain; none: the microworld's, or uniform"
    )
    rows: int = setting(36_000, "pre-training rows, each BOS + one text", "rows", ge=1)
    row_tokens: int = setting(
        64, "longest pre-training row, and the context the tiny models are made for", "tokens", ge=8
    )
    vocab_size: int = setting(
        2048, "byte-pair vocabulary, trained on the corpora", "tokens", ge=300
    )
    hidden_size: int = setting(
        128, "width of the tiny Llama (a multiple of 32)", ge=32, multiple_of=32
    )
    layers: int = setting(4, "depth of the tiny Llama", ge=1)
    context: int = setting(512, "positions of the tiny Llama", "tokens", ge=16)
    batch_size: int = setting(64, "rows per optimizer step", "rows", ge=1)
    learning_rate: float = setting(3e-3, "peak rate; cosine to zero", gt=0)
    held_out: float = setting(
        0.02, "share of the corpora kept from both models, to measure the judge on", ge=0, lt=1
    )
    judge_rows: int = setting(
        9_000, "labelled rows that the tiny judge is trained on; 0: no judge", "rows", ge=0
    )
    judge_noise: float = setting(
        0.1,
        "share of tokens of a judge row replaced at random, so that it can read bad text",
        ge=0,
        lt=1,
    )
    seed: int = setting(0, "seed of tokenizer rows, weights and order")
    cpus: int = setting(
        1, "CPUs (threads) each for base model and judge, which train side by side", ge=1
    )


class Microworld(Section):
    """The embedded six-domain world of made-up facts, used where `domains` is empty."""

    facts: int = setting(100, "facts per domain", ge=4)
    seed: int = setting(0, "seed of the world; another seed is another world")


class Domain(Section):
    train: Paths = setting(
        list, "training records: files, folders, URIs or Hugging Face dataset ids"
    )
    validation: Paths = setting(list, "held-out records; none: a stable hash split of `train`")
    questions: Paths = setting(
        list, "question/answer records for exact match before and after; none: loss only"
    )
    labelled: Paths = setting(
        list,
        "texts (a `text` field, or .txt) that the judge is measured on; none: the held-out records",
    )
    description: str = setting("", "what belongs to the domain, in words, for the judge's prompt")


class Data(Section):
    max_length: int = setting(2048, "longest record, prompt and answers together", "tokens", ge=8)
    too_long: Literal["cut", "keep", "refuse"] = setting(
        "cut",
        "records longer than max_length: cut at it, keep whole, or refuse as bad; counted in each "
        "case",
    )
    max_bad_fraction: float = setting(
        0.0, "tolerated fraction of bad records per domain; above it the job stops", ge=0, le=1
    )
    validation_fraction: float = setting(
        0.05, "records held out by hash where no validation is given", gt=0, lt=1
    )
    max_validation: int = setting(512, "held-out records measured per domain", "records", ge=1)
    max_train: int | dict[str, int] | None = setting(
        None,
        "training records used per domain, chosen by hash: one number for all, or one per domain "
        "name; none: all",
        "records",
    )
    chat_template: str | None = setting(
        None, "file with a Jinja chat template; none: the tokenizer's, else a plain one"
    )
    chat_template_kwargs: dict[str, Any] = setting(
        dict, "values of the chat template's variables, such as {enable_thinking: false}"
    )

    @field_validator("max_train")
    @classmethod
    def _some(cls, value: int | dict[str, int] | None) -> int | dict[str, int] | None:
        values = (
            value.values() if isinstance(value, dict) else [value or 0] if value is not None else []
        )
        if min(values, default=1) < 1:
            raise ValueError(f"at least one record is needed; found {value}")
        return value

    def most_train(self, name: str) -> int | None:
        """The cap on the training records of domain ``name``, if there is one."""
        return self.max_train.get(name) if isinstance(self.max_train, dict) else self.max_train

    def split(self, name: str) -> dict[str, Any]:
        """What decides which records of domain ``name`` train and which measure, beside the records
        themselves: part of a cache's key.
        """
        return self.model_dump(include={"validation_fraction", "max_validation"}) | {
            "max_train": self.most_train(name)
        }


class Reference(Section):
    """Mastery ceiling per domain: the lowest loss of a small model tuned on that domain alone."""

    losses: str | None = setting(None, "skip: a losses.json of an earlier run")
    model: str | None = setting(None, "small reference model; none: the base model itself")
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
    batch_size: int = setting(32, "samples per optimizer step", "samples", ge=1)
    learning_rate: float = setting(2e-5, "peak rate; cosine with warm-up", gt=0)
    workers: int = setting(1, "domains tuned at the same time", ge=1)
    cpus: int = setting(1, "CPUs (threads) per worker", ge=1)


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
    )
    export: Literal["merged", "adapter"] = setting(
        "merged", "leave a whole model, or the adapter alone"
    )


class Training(Section):
    workers: int | list[int] = setting(
        2, "Ray Train workers; [least, most]: as many as the cluster has room for at the moment"
    )
    cpus_per_worker: int = setting(1, "CPUs (torch threads) per worker", ge=1)
    epochs: float = setting(4, "passes of samples_per_epoch", "epochs", gt=0)
    samples_per_epoch: int | None = setting(
        None, "samples per epoch over all domains; none: all training records", "samples", ge=1
    )
    batch_size: int = setting(128, "samples per optimizer step, over all workers", "samples", ge=1)
    micro_batch_tokens: int = setting(
        8192, "tokens per forward pass and worker, padding included", "tokens", ge=1
    )
    parallel: Literal["auto", "ddp", "fsdp"] = setting(
        "auto",
        "ddp: every worker holds the model; fsdp: sharded (FSDP2); auto: fsdp on GPUs, a single "
        "one included, else ddp",
    )
    shard_over: int | None = setting(
        None,
        "fsdp: workers that share one copy of the model, best those of a machine (HSDP); none: all "
        "of them",
        "workers",
        ge=1,
    )
    no_sync: bool = setting(
        False,
        "fsdp: reduce gradients once a step and not after each micro-batch: less traffic, but each "
        "worker keeps a whole gradient",
    )
    precision: Literal["auto", "bf16", "fp32"] = setting(
        "auto", "of the forward pass, weights stay fp32; auto: bf16 on GPUs, fp32 on CPUs"
    )
    attention: Literal["auto", "padded", "sdpa", "flex", "varlen"] = setting(
        "auto",
        "padded: rows of like length; the others pack samples into one row without padding; auto: "
        "varlen on GPUs, padded on CPUs",
    )
    activation_checkpointing: Recompute = setting(
        "none",
        "compute activations again in the backward pass: none, full (a third more work), or `every "
        "N`, of each N-th layer",
    )
    cpu_offload: bool = setting(False, "fsdp: keep weights and optimizer state in CPU memory")
    compile: Literal["auto"] | bool = setting(
        "auto", "torch.compile every layer of the decoder; auto: on GPUs"
    )
    lora: Lora = setting(Lora, "low-rank adapters")
    trainable: Trainable = setting(Trainable, "parameters that may move")
    soft_mask: Paths = setting(
        list,
        "files of unit importance (jobs/cofitune.py): the update of a unit is scaled by 1 − its "
        "importance; of several, the highest",
    )
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
    )
    max_skipped: int = setting(
        3, "batches in a row that on_nonfinite=skip leaves out before it stops", "steps", ge=1
    )
    adjust_every: int | None = setting(
        None, "optimizer steps between adjustments; none: once per epoch", "steps", ge=1
    )
    checkpoint_every: int | None = setting(
        None, "optimizer steps between checkpoints; none: at each adjustment", "steps", ge=1
    )
    keep_checkpoints: int = setting(2, "checkpoints kept: the newest ones", ge=1)
    keep_best: str | None = setting(
        None,
        "keep those of the lowest held-out loss instead, and the newest: `loss` (mean over "
        "domains) or `loss.NAME` of one",
    )
    metrics: Loggers = setting(
        lambda: ["tensorboard"],
        "where to watch the run, besides Ray's metrics; an empty list: nowhere",
    )
    max_failures: int = setting(3, "worker-group failures survived before giving up", ge=0)
    exchange_timeout: float = setting(
        600.0, "longest wait for the slowest rank, in a step or at an adjustment", "s", gt=0
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


class Config(Section):
    run: str = setting(
        "quickstart",
        "name of the run, and of its folder; the same name resumes",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$",
    )
    storage: str = setting(
        "runs",
        "runs and cache: a folder that every node sees, or a URI (s3://, gs://, …) that each "
        "reaches",
    )
    seed: int = setting(0, "seed of sampling, training and detection")
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto",
        "auto: GPUs if the cluster has some now; cuda: also those that it would start for the job",
    )
    model: Model = setting(Model, "the model to fine-tune")
    domains: dict[str, Domain] = setting(
        dict, "name → sources, at least two; none: the embedded microworld"
    )
    data: Data = setting(Data, "how records become tokens")
    detection: Detection = setting(Detection, "knowledge detection")
    reference: Reference = setting(Reference, "reference losses")
    mixture: Mixture = setting(Mixture, "starting shares and policy")
    training: Training = setting(Training, "fine-tuning")
    stages: list[Stage] = setting(
        list,
        "parts of the fine-tuning that follow each other, each on sources of its own; none: one "
        "part",
    )
    evaluation: Evaluation = setting(Evaluation, "questions before and after, and benchmarks")
    sweep: Sweep = setting(Sweep, "search over settings (jobs/sweep.py)")
    study: Study = setting(Study, "methods compared over seeds (jobs/study.py)")
    cofitune: CoFiTune = setting(
        CoFiTune, "search for the parameters that may move (jobs/cofitune.py)"
    )
    replay: Replay = setting(Replay, "recorded losses through other settings (jobs/replay.py)")
    base: Base = setting(Base, "tiny base model made here")
    microworld: Microworld = setting(Microworld, "embedded default world")

    @field_validator("domains", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        """``law: law.jsonl`` stands for ``law: {train: law.jsonl}``."""
        if not isinstance(value, Mapping):
            return value
        return {
            name: {"train": spec} if isinstance(spec, str | list) else spec
            for name, spec in value.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if len(self.domains) == 1:
            raise ValueError(
                f"domains: {next(iter(self.domains))!r} is the only one; name at least two, or "
                f"none for the microworld"
            )
        for name, domain in self.domains.items():
            if (
                not name
                or "/" in name
                or name in ("id", "repeat", "text", "tokens", "answer", "discarded")
            ):
                raise ValueError(
                    f"domains: {name!r} cannot be a domain's name; it would clash with a column or "
                    f"a folder"
                )
            # jobs/detect.py needs names and descriptions only
            if not domain.train and not self.detection.models:
                raise ValueError(
                    f"domains.{name}.train: missing; name a file, a folder, a URI or a dataset id"
                )
        if (
            self.domains
            and self.model.path is None
            and not self.base.corpora
            and not self.detection.models
        ):
            raise ValueError(
                "model.path: missing; name a base model, or base.corpora to pre-train a tiny one"
            )
        if self.base.corpora and len(self.base.corpora) < 2:
            raise ValueError("base.corpora: at least two domains are needed")
        if self.domains and self.base.corpora and set(self.base.corpora) != set(self.domains):
            raise ValueError(
                f"base.corpora: domains {sorted(self.base.corpora)} differ from those under "
                f"`domains` {sorted(self.domains)}"
            )
        names = list(self.domains or self.base.corpora)
        if names:
            capped = list(self.data.max_train) if isinstance(self.data.max_train, dict) else []
            for key, given in (
                ("mixture.targets", self.mixture.targets),
                ("mixture.start", self._start_names()),
                ("data.max_train", capped),
            ):
                for name in given:
                    if name not in names:
                        raise ValueError(f"{key}: unknown domain {name!r}; {nearest(name, names)}")
        if self.mixture.targets == [] and (
            self.mixture.policy == "expansion"
            or self.mixture.start in ("specific", "uniform_remainder")
        ):
            raise ValueError("mixture.targets: missing; name at least one domain to expand")
        if self.mixture.start == "trajectory" and self.mixture.trajectory is None:
            raise ValueError(
                "mixture.trajectory: missing; name the adjustments.jsonl of the run whose average "
                "mixture to start from"
            )
        return self

    def _start_names(self) -> Sequence[str]:
        return list(self.mixture.start) if isinstance(self.mixture.start, dict) else []

    @property
    def title(self) -> str:
        """What lines of progress call this fine-tuning: one of many goes by its own name."""
        return self.run.rpartition("/")[2] if "/" in self.run else "fine-tuning"

    @property
    def run_folder(self) -> Path:
        return root(self.storage) / self.run

    @property
    def cache_folder(self) -> Path:
        return root(self.storage) / ".cache"
