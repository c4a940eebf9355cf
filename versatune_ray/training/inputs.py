"""What a fine-tuning is made from, with Ray and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from versatune_ray.domains import DomainData, DomainPaths, longest
from versatune_ray.runs.folder import contents
from versatune_ray.runtime.models import check_length
from versatune_ray.settings import Config


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
