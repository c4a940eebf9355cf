"""A causal language model to tune: loading, LoRA, and the folder that transformers and vLLM load as is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from versatune_ray.errors import UserError
from versatune_ray.settings import Lora
from versatune_ray.training.attention import IMPLEMENTATION, Kind


def load_model(path: str, trust_remote_code: bool = False, attention: Kind = "padded") -> PreTrainedModel:
    """A causal language model in float32 (mixed precision is the forward pass's business).

    Raises:
        UserError: it cannot be loaded, or it does between decoder and logits what ``ResponseLoss`` does not know.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, attn_implementation=IMPLEMENTATION[attention], **options)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be loaded as a causal language model: {' '.join(str(error).split())}") from None
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"{path}: models that change their logits ({name} in config.json) are not supported; Llama, Qwen and Mistral are"
            )
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(f"{path}: an output embedding with a bias is not supported; Llama, Qwen and Mistral have none")
    return model


def add_lora(model: PreTrainedModel, settings: Lora, seed: int) -> PreTrainedModel:
    """Freeze the model and put trainable low-rank matrices beside its ``targets`` (peft changes it in place).

    Raises:
        UserError: no module of the model has one of the names.
    """
    from peft import LoraConfig, get_peft_model

    assert settings.rank is not None
    targets: Any = settings.targets[0] if settings.targets == ["all-linear"] else settings.targets
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets, task_type="CAUSAL_LM"
    )
    torch.manual_seed(seed)  # every rank begins with the same matrices
    try:
        wrapped = get_peft_model(model, config)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"training.lora.targets: {' '.join(str(error).split())}") from None
    wrapped.to(torch.float32)
    return wrapped  # type: ignore[return-value]


def export(model: PreTrainedModel, weights: dict[str, torch.Tensor], folder: Path, base: str, trust_remote_code: bool, lora: Lora) -> None:
    """Write a model folder (safetensors), in the precision that the base model is stored in.

    Args:
        weights: by the names of ``model.state_dict()``, whole and on the CPU; with LoRA the trainable ones.
        base: what ``model`` was loaded from; with LoRA it is loaded anew, for a sharded model cannot be merged where it is.
    """
    stored = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code).dtype or torch.float32
    if lora.rank is not None:
        model = add_lora(load_model(base, trust_remote_code), lora, 0)
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown, unknown
        if lora.export == "adapter":
            model.save_pretrained(folder)
            return
        model = model.merge_and_unload()  # type: ignore[operator]
        weights = model.state_dict()
    with torch.device("meta"):  # a model without weights, for its names and its configuration: the real one may be sharded
        skeleton = AutoModelForCausalLM.from_config(model.config, dtype=stored, trust_remote_code=trust_remote_code)
    skeleton.generation_config = model.generation_config
    skeleton.save_pretrained(folder, state_dict={name: values.to(stored) for name, values in weights.items()})
