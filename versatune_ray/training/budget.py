"""What a fine-tuning will take, before anything is loaded (``--plan``): steps, tokens, time, memory
of each worker; where it will not fit, what to change.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from versatune_ray.domains import DomainData
from versatune_ray.errors import UserError
from versatune_ray.runtime.cluster import gpus_here
from versatune_ray.runtime.models import in_words
from versatune_ray.settings import Config, Lora, Trainable, Training, semantics
from versatune_ray.settings.recipe import Execution, StagePlan
from versatune_ray.training.attention import choose
from versatune_ray.training.memory import GIB, Memory, estimate, room_on
from versatune_ray.training.metrics import Work, peak_flops
from versatune_ray.training.model import load_model, with_frozen

# of the peak, or of what one large matrix product reaches: what a run of medium size comes to
_UTILISATION = 0.4
# What to change where a run does not fit, in the order of what it costs: work, then exactness, then
# speed, then what is trained.
_CHANGES: tuple[Mapping[str, Any], ...] = (
    {"activation_checkpointing": "full"},
    {"activation_checkpointing": "full", "micro_batch_tokens": 2048},
    {"activation_checkpointing": "full", "micro_batch_tokens": 2048, "optimizer": "adamw_8bit"},
    {"activation_checkpointing": "full", "micro_batch_tokens": 2048, "optimizer": "adamw_bf16"},
    {
        "activation_checkpointing": "full",
        "micro_batch_tokens": 2048,
        "parallel": "fsdp",
        "cpu_offload": True,
    },
    {"lora": {"rank": 16}},
    {"lora": {"rank": 16}, "activation_checkpointing": "full", "micro_batch_tokens": 2048},
)


def needed(config: Config, path: str, training: Training, workers: int, device: str) -> Memory:
    """Memory of each worker that tunes the model in ``path``.

    Raises:
        UserError: as ``load_model`` and ``with_frozen``.
    """
    longest = 0 if config.data.too_long == "keep" else config.data.max_length
    # A worker's part of a batch may be less than a micro-batch could hold.
    most = (
        min(training.micro_batch_tokens, max(1, -(-training.batch_size // workers)) * longest)
        if longest
        else training.micro_batch_tokens
    )
    training = training.model_copy(update={"micro_batch_tokens": most})
    return estimate(_shape(config, path, training, device), training, workers, device, longest)


def check_room(config: Config, path: str, workers: int, device: torch.device) -> None:
    """Before a worker loads anything: whether it will fit on its device.

    Raises:
        UserError: it will not; with what to change.
    """
    # On a CPU all workers of the machine share its memory, and how many those are is Ray's
    # business: what one needs has to be there.
    wanted, room = needed(config, path, config.training, workers, device.type), room_on(device)
    if wanted.total > room:
        raise UserError(f"training: {_too_large(config, path, wanted, room, workers, device.type)}")


def outlook(config: Config, path: str, domains: Mapping[str, DomainData] | None) -> str:
    """The whole plan of a fine-tuning as text. ``domains``: None where their records are not read
    yet.
    """
    training, workers = config.training, config.training.least_and_most[1]
    gpu = gpus_here(config.device)
    device = "cuda" if gpu else "cpu"
    model = _shape(config, path, training, device)
    total, trained = (
        sum(one.numel() for one in model.parameters() if one.requires_grad or whole)
        for whole in (True, False)
    )
    work = Work.of(model)
    lines = [
        f"fine-tuning of {path}: {in_words(total)} parameters, of which {in_words(trained)} train; "
        f"{workers} worker(s) on {device}"
    ]
    if domains is None:
        lines.append(
            "  records are not read yet: steps, tokens and time are known after the first run has "
            "read them"
        )
    else:
        counts = ", ".join(
            f"{name} {len(domain.train):,}+{len(domain.validation):,}"
            for name, domain in domains.items()
        )
        lines.append(f"  records (train+held out): {counts}")
        lines += _steps(config, domains, work, device, workers)
    wanted = needed(config, path, training, workers, device)
    room = room_on(torch.device(device)) if device == "cpu" or torch.cuda.is_available() else None
    lines.append(f"  memory of each worker's {'GPU' if gpu else 'process'}: {wanted}")
    if room is None:
        lines.append(
            "  there is no GPU here to compare this with: each worker does so before it loads "
            "anything"
        )
    elif wanted.total > room:
        lines.append(f"  does not fit: {_too_large(config, path, wanted, room, workers, device)}")
    else:
        lines.append(f"  fits: {room / GIB:.1f} GiB are there")
    return "\n".join(lines)


def _steps(
    config: Config, domains: Mapping[str, DomainData], work: Work, device: str, workers: int
) -> list[str]:
    names, sizes = list(domains), [len(domain.train) for domain in domains.values()]
    stages = semantics.stages(config, names, sizes, [1 / len(names)] * len(names), "nats/token")
    samples = sum(stage.recipe.steps * stage.recipe.batch_size for stage in stages)
    lengths = np.concatenate([domain.train.lengths for domain in domains.values()])
    responses = np.concatenate([domain.train.response_tokens for domain in domains.values()])
    return [
        *(_stage(stage) for stage in stages),
        f"  {samples:,} samples, about {samples * lengths.mean():,.0f} tokens "
        f"({samples * responses.mean():,.0f} of them in responses)",
        f"  about {_pace(work, lengths, responses, samples, device, workers)}; measuring and "
        f"saving come on top",
    ]


def alone(config: Config, path: str, records: Mapping[str, tuple[DomainData, int]]) -> list[str]:
    """What the tuning of a model on each domain by itself takes: time and memory, a line each.

    Args:
        records: data of each domain, and samples that are trained on.
    """
    training = config.training.model_copy(update={"lora": Lora(), "trainable": Trainable()})
    gpu = gpus_here(config.device)
    device = "cuda" if gpu else "cpu"
    workers = min(config.reference.workers, max(1, len(records)))
    lines = [f"  memory of each worker: {needed(config, path, training, 1, device)}"]
    samples = sum(count for _, count in records.values())
    if samples:
        data = [domain.train for domain, _ in records.values()]
        lengths = np.concatenate([one.lengths for one in data])
        responses = np.concatenate([one.response_tokens for one in data])
        work = Work.of(_shape(config, path, training, device))
        took = _pace(work, lengths, responses, samples, device, workers)
        lines.insert(0, f"  at most about {took}")
    return lines


def _pace(work: Work, lengths: Any, responses: Any, samples: int, device: str, workers: int) -> str:
    speed, of_what = _speed(device)
    seconds = samples * work.flops(lengths, responses) / len(lengths) / (speed * workers)
    return f"{_duration(seconds)} of training, at {100 * _UTILISATION:.0f} % of {of_what}"


def _stage(stage: StagePlan) -> str:
    name = "" if stage.name is None else f"stage {stage.name}: "
    recipe = stage.recipe
    return (
        f"  {name}{recipe.steps:,} steps of {recipe.batch_size:,} samples, an adjustment every "
        f"{stage.adjust_every:,}"
    )


def _shape(config: Config, path: str, training: Training, device: str) -> PreTrainedModel:
    """The model without its weights."""
    target = torch.device(device)
    kind = choose(training.attention, target, Execution.of(training).in_bf16(target.type))
    model = load_model(path, config.model.trust_remote_code, kind, empty=True)
    return with_frozen(model, training, 0)


def _too_large(
    config: Config, path: str, wanted: Memory, room: float, workers: int, device: str
) -> str:
    found: list[str] = []
    for change in _CHANGES:
        training = Training.model_validate(config.training.model_dump() | dict(change))
        if training == config.training or (
            "lora" in change and any("lora." in text for text in found)
        ):
            continue
        less = needed(config, path, training, workers, device)
        if less.total <= room:
            found.append(f"{_keys(change)} ({less.total / GIB:.1f} GiB)")
            if "lora" in change:
                break
    more = next(
        (
            count
            for count in (2, 4, 8, 16, 32, 64)
            if count > workers and _fits(config, path, count, device, room)
        ),
        None,
    )
    if more is not None:
        found.append(f"training.workers={more}")
    ways = (
        f"try {', or '.join(found[:1] + found[-2:] if len(found) > 3 else found)}"
        if found
        else "a smaller model or a larger device is needed"
    )
    return f"each worker needs {wanted}, and there are {room / GIB:.1f} GiB for it; {ways}"


def _fits(config: Config, path: str, workers: int, device: str, room: float) -> bool:
    return device == "cuda" and needed(config, path, config.training, workers, device).total <= room


def _keys(change: Mapping[str, Any], prefix: str = "training") -> str:
    return " ".join(
        _keys(value, f"{prefix}.{key}")
        if isinstance(value, Mapping)
        else f"{prefix}.{key}={str(value).lower() if value is True else value}"
        for key, value in change.items()
    )


def _speed(device: str) -> tuple[float, str]:
    """Operations per second of a worker's device, as far as it is here, and what that is a part
    of.
    """
    if device == "cuda" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return _UTILISATION * (peak_flops(name) or 100e12), f"the peak of {name}"
    if device == "cuda":
        return _UTILISATION * 989e12, "the peak of an H100, for there is no GPU here"
    side, count, began = torch.ones(512, 512), 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < 0.3:
        side @ side
        count += 1
    return (
        _UTILISATION * count * 2 * 512**3 / seconds / torch.get_num_threads(),
        "what a matrix product reaches on a core here",
    )


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
