"""What a fine-tuning is made from, with Ray and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from versatune_ray.domains import DomainData, DomainPaths, longest
from versatune_ray.domains.chat import load_tokenizer, tokenizer_fingerprint
from versatune_ray.runs.folder import contents
from versatune_ray.runtime.models import check_length
from versatune_ray.settings import Config
from versatune_ray.settings.recipe import Unit
from versatune_ray.training.given_losses import given_losses


def inputs_of(
    config: Config,
    fingerprint: str,
    paths: Mapping[str, DomainPaths],
    detected: Sequence[float] | None,
    reference: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """``finetune/inputs.json``: what may not change while a fine-tuning goes on, beside its
    settings.

    Args:
        fingerprint: of the model. detected: shares [k]. reference: content of ``losses.json``.
    """
    inputs: dict[str, Any] = {
        "model": fingerprint,
        "stores": {name: stores.key for name, stores in paths.items()},
        "detected": detected,
        "reference": None
        if reference is None
        else {name: domain["loss"] for name, domain in reference["domains"].items()},
    }
    if config.training.soft_mask:
        inputs["training.soft_mask"] = contents(config.training.soft_mask)
    return inputs


def check_rows(config: Config, model: str, data: Mapping[str, DomainData]) -> None:
    """Rows that ``data.too_long=keep`` leaves whole fit into the model's context, as those cut at
    ``data.max_length`` do.

    Raises:
        UserError: one is longer; its domain is named.
    """
    if config.data.too_long != "keep":
        return
    lengths = {name: longest(one) for name, one in data.items()}
    name = max(lengths, key=lambda one: lengths[one])
    key = f"data.too_long=keep: the longest record of {name!r}"
    check_length(key, lengths[name], model, config.model.trust_remote_code)


def tokenizer_of(config: Config, model: str) -> Any:
    """A model's tokenizer, with the template that ``config`` gives it."""
    data, remote = config.data, config.model.trust_remote_code
    return load_tokenizer(model, data.chat_template, remote, data.chat_template_kwargs)


def loss_unit(config: Config, model: str) -> Unit:
    """What a run on ``model`` measures losses in: per byte where those of the reference come from
    a model with another tokenizer.
    """
    other = config.reference.model or model
    if config.reference.losses is None and other == model:
        return "nats/token"
    tokenizer = tokenizer_fingerprint(tokenizer_of(config, model))
    if config.reference.losses is not None:
        unit: Unit = given_losses(config.reference.losses, list(config.domains), tokenizer)["unit"]
        return unit
    same = tokenizer_fingerprint(tokenizer_of(config, other)) == tokenizer
    return "nats/token" if same else "nats/byte"
