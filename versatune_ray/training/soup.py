"""A model soup (Wortsman et al. 2022, arXiv 2203.05482): the weighted mean of the weights of models
that were tuned from one base, each on a domain of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from versatune_ray.errors import UserError
from versatune_ray.runs.cache import temporary_name, write_json
from versatune_ray.runtime.models import ADAPTER

_WEIGHTS = ".safetensors"
_OTHERS = (".bin", ".pt", ".pth", ".gguf")  # weights that are not averaged
# what models that were tuned from one base may say differently
_FREE = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
_FREE |= {"use_cache", "bos_token_id", "eos_token_id", "pad_token_id"}


def soup(models: Sequence[Path], weights: Sequence[float], folder: Path) -> None:
    """Write the mean of ``models`` into ``folder``, a Hugging Face model as they are: files beside
    the weights, and the precision, are those of the first. Sums are made in float32, one tensor in
    memory at a time.

    Args:
        weights: of each model, ≥ 0; their sum counts as 1.

    Raises:
        UserError: a model is no folder of safetensors, the models differ in more than the values
            of their weights (other shapes, settings, words of the tokenizer), or ``folder`` is
            there already.
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
            if file.is_file() and not file.name.endswith((_WEIGHTS, *_OTHERS)):
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
    mine, its = (
        json.loads((model / "config.json").read_text(encoding="utf-8")) for model in (one, other)
    )
    for key in sorted((mine.keys() & its.keys()) - _FREE):
        if mine[key] != its[key]:
            raise UserError(f"{other}: {key} is {its[key]!r}, and {mine[key]!r} in {one}")
    if None not in (words := [_vocabulary(model) for model in (one, other)]) and (
        words[0] != words[1]
    ):
        raise UserError(f"{other}: its tokenizer has other words than that of {one}")
    for name in own:
        with safe_open(own[name], "pt") as first, safe_open(others[name], "pt") as second:
            parts = [file.get_slice(name) for file in (first, second)]
            shapes = [list(part.get_shape()) for part in parts]
            numbers = [part.get_dtype().startswith(("F", "BF")) for part in parts]
        if shapes[0] != shapes[1]:
            raise UserError(f"{other}: {name} is {shapes[1]}, and {shapes[0]} in {one}")
        if numbers[0] != numbers[1]:
            raise UserError(f"{other}: {name} is of another kind of number than in {one}")


def _vocabulary(model: Path) -> Any:
    """What the numbers of a model's tokens mean, where it says so."""
    file = model / "tokenizer.json"
    if not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8")).get("model", {}).get("vocab")


def _mean(name: str, shards: Sequence[dict[str, Path]], parts: Sequence[float]) -> torch.Tensor:
    total: torch.Tensor | None = None
    kind = None
    for own, part in zip(shards, parts, strict=True):
        with safe_open(own[name], "pt") as file:
            values: torch.Tensor = file.get_tensor(name)
        if not values.is_floating_point():
            return values
        total = values.float() * part if total is None else total.add_(values.float(), alpha=part)
        kind = kind or values.dtype
    assert total is not None
    return total.to(kind)
