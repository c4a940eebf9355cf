"""A model soup (Wortsman et al. 2022, arXiv 2203.05482): the weighted mean of the weights of models
that were tuned from one base, each on a domain of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from versatune_ray.errors import UserError
from versatune_ray.runs.cache import temporary_name, write_json
from versatune_ray.runtime.models import ADAPTER

_WEIGHTS = ".safetensors"


def soup(models: Sequence[Path], weights: Sequence[float], folder: Path) -> None:
    """Write the mean of ``models`` into ``folder``, a Hugging Face model as they are: files beside
    the weights are those of the first. Sums are made in float32, one tensor in memory at a time.

    Args:
        weights: of each model, ≥ 0; their sum counts as 1.

    Raises:
        UserError: a model is no folder of safetensors, the models differ in more than the values
            of their weights, or ``folder`` is there already.
    """
    if len(models) < 2:
        raise UserError("soup: one model only; name at least two")
    if len(weights) != len(models) or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise UserError(
            f"--weights: one for each of {len(models)} models, ≥ 0 and not all 0; found "
            f"{', '.join(f'{one:g}' for one in weights)}"
        )
    if folder.exists():
        raise UserError(f"{folder}: is there already; name another folder with -o")
    shards = [_shards(model) for model in models]
    for model, own in zip(models[1:], shards[1:], strict=True):
        _check_alike(models[0], shards[0], model, own)
    parts = [weight / sum(weights) for weight in weights]
    work = temporary_name(folder)  # of this try alone: another may cook at the same time
    work.mkdir(parents=True)
    try:
        for file in models[0].iterdir():
            if file.is_file() and not file.name.endswith(_WEIGHTS):
                shutil.copy2(file, work / file.name)
        for file in sorted(set(shards[0].values())):
            names = sorted(name for name, place in shards[0].items() if place == file)
            means = {name: _mean(name, shards, parts) for name in names}
            save_file(means, work / file.name, {"format": "pt"})
        said = [[str(model), part] for model, part in zip(models, parts, strict=True)]
        write_json(work / "soup.json", {"models": said})
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _shards(model: Path) -> dict[str, Path]:
    """The file of each tensor of a model."""
    if (model / ADAPTER).is_file():
        raise UserError(
            f"{model}: an adapter; tune with training.lora.export=merged, or cook whole models"
        )
    files = sorted(model.glob(f"*{_WEIGHTS}"))
    if not files or not (model / "config.json").is_file():
        raise UserError(f"{model}: no model folder with a config.json and {_WEIGHTS} files")
    found: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as stored:
            found |= dict.fromkeys(stored.keys(), file)
    return found


def _check_alike(one: Path, own: dict[str, Path], other: Path, others: dict[str, Path]) -> None:
    differ = sorted(own.keys() ^ others.keys())
    if differ:
        raise UserError(f"{other}: other weights than {one} has ({differ[0]}); tune both from one")
    kinds = [
        json.loads((model / "config.json").read_text(encoding="utf-8")).get("model_type")
        for model in (one, other)
    ]
    if kinds[0] != kinds[1]:
        raise UserError(f"{other}: a {kinds[1]} model, and {one} is a {kinds[0]}")
    for name in own:
        with safe_open(own[name], "pt") as first, safe_open(others[name], "pt") as second:
            shapes = [list(file.get_slice(name).get_shape()) for file in (first, second)]
        if shapes[0] != shapes[1]:
            raise UserError(f"{other}: {name} is {shapes[1]}, and {shapes[0]} in {one}")


def _mean(name: str, shards: Sequence[dict[str, Path]], parts: Sequence[float]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for own, part in zip(shards, parts, strict=True):
        with safe_open(own[name], "pt") as file:
            values: torch.Tensor = file.get_tensor(name)
        if not values.is_floating_point():
            return values
        total = values.float() * part if total is None else total.add_(values.float(), alpha=part)
        kind = values.dtype
    assert total is not None
    return total.to(kind)
