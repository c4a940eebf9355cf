"""Adapters as whole models, for whatever loads nothing but whole models."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from versatune_ray.errors import UserError
from versatune_ray.runs.cache import cached
from versatune_ray.runs.folder import contents
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.models import adapter_base, commit, model_fingerprint


def whole_model(path: str, cache: Path, trust_remote_code: bool) -> str:
    """``path``; or where it is an adapter of peft, a model folder in the cache, merged once.

    Raises:
        UserError: the model that the adapter was made for cannot be found.
    """
    folder = Path(fetch(path))
    base = adapter_base(folder)
    if base is None:
        return path
    files = [str(file) for file in sorted(folder.glob("adapter_*"))]
    try:
        parts = {"base": model_fingerprint(base, cache), "adapter": contents(files)}
    except UserError as error:
        raise UserError(f"{path}: an adapter for another model: {error}") from None

    def build(work: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        source: dict[str, Any] = {
            "trust_remote_code": trust_remote_code,
            "revision": commit(base),
        }
        stored = AutoConfig.from_pretrained(base, **source).dtype
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, use_safetensors=True, **source
        )
        whole = peft().PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        whole.to(stored or torch.float32).save_pretrained(work)
        for file in folder.iterdir():  # the tokenizer, and the template that it was trained with
            if file.is_file() and not file.name.startswith("adapter_") and file.suffix != ".md":
                shutil.copy2(file, work / file.name)

    return str(cached(cache, "merged", parts, build)[0])


def peft() -> Any:
    """The library, without a warning at every use: it asks models for an attribute by the name that
    transformers 4 had for it.
    """
    import peft as library

    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    return library
