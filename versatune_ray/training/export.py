"""The tuned model as a folder that transformers and vLLM load as it is."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from versatune_ray.runtime.models import commit
from versatune_ray.settings import Training
from versatune_ray.training.model import base_of, load_model, with_frozen


def export(
    model: PreTrainedModel,
    weights: dict[str, torch.Tensor],
    folder: Path,
    base: str,
    trust_remote_code: bool,
    training: Training,
    end_of_turn: int | None = None,
) -> None:
    """Write a model folder (safetensors), in the precision that the base model is stored in.

    Args:
        end_of_turn: the token that rows taught the model to end an answer with; generation stops
            at it, beside those at which the base model stops.
        weights: by the names of ``model.state_dict()``, whole and on the CPU; those that trained.
        base: what ``model`` was loaded from. Where parts of it were frozen it is loaded anew, for a
            sharded model cannot be merged where it is.
    """
    config = AutoConfig.from_pretrained(
        base, trust_remote_code=trust_remote_code, revision=commit(base)
    )
    stored = config.dtype or torch.float32
    if training.lora.rank is not None or not training.trainable.everything:
        model = with_frozen(load_model(base, trust_remote_code), training, 0)
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown, unknown
        if training.lora.rank is not None:
            if training.lora.export == "adapter":
                model.save_pretrained(folder)
                _stopping(base_of(model), end_of_turn).save_pretrained(folder)
                return
            model = model.merge_and_unload()  # type: ignore[operator]
        weights = model.state_dict()
    # a model without weights, for its names and its configuration: the real one may be sharded
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(
            model.config, dtype=stored, trust_remote_code=trust_remote_code
        )
    skeleton.generation_config = _stopping(model, end_of_turn)
    every, once = (
        dict(skeleton.named_parameters(remove_duplicate=single)).keys() for single in (False, True)
    )
    tied = every - once  # a head that is the embedding under another name
    skeleton.save_pretrained(
        folder,
        state_dict={
            name: values.to(stored) for name, values in weights.items() if name not in tied
        },
    )


def _stopping(model: PreTrainedModel, end_of_turn: int | None) -> GenerationConfig:
    """The model's generation configuration, with one more token to stop at."""
    found = copy.deepcopy(model.generation_config) or GenerationConfig()
    before = found.eos_token_id
    stops = [] if before is None else before if isinstance(before, list) else [before]
    if end_of_turn is not None and end_of_turn not in stops:
        found.eos_token_id = [end_of_turn, *stops]
    return found
