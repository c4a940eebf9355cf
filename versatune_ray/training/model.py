"""A causal language model to tune: loading, LoRA, and the folder that transformers and vLLM load as is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from versatune_ray.errors import UserError
from versatune_ray.settings import Lora, Trainable, Training
from versatune_ray.training.attention import IMPLEMENTATION, Kind
from versatune_ray.training.trainable import check_importance, chosen, freeze


def load_model(path: str, trust_remote_code: bool = False, attention: Kind = "padded") -> PreTrainedModel:
    """A causal language model in float32 (mixed precision is the forward pass's business).

    Raises:
        UserError: it cannot be loaded, or it does between decoder and logits what ``ResponseLoss`` does not know.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    with _told(path):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, attn_implementation=IMPLEMENTATION[attention], **options)
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"{path}: models that change their logits ({name} in config.json) are not supported; Llama, Qwen and Mistral are"
            )
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(f"{path}: an output embedding with a bias is not supported; Llama, Qwen and Mistral have none")
    return model


@contextmanager
def _told(path: str) -> Iterator[None]:
    """transformers' errors of a model that it cannot load, as ours."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be loaded as a causal language model: {' '.join(str(error).split())}") from None


def check_parts(path: str, trainable: Sequence[Trainable], importance: Mapping[str, torch.Tensor], trust_remote_code: bool = False) -> None:
    """Whether the model in ``path`` has these parts and these units; of its shape alone, no weight is read.

    Raises:
        UserError: it has not, or it is no causal language model.
    """
    with _told(path), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    for settings in trainable:
        chosen(model, settings)
    if importance:
        check_importance(model, importance)


def with_frozen(model: PreTrainedModel, training: Training, seed: int) -> PreTrainedModel:
    """The model with everything frozen that ``training.trainable`` and ``training.lora`` do not let move.

    Raises:
        UserError: the model has no such layers or modules.
    """
    if training.lora.rank is None:
        if not training.trainable.everything:
            freeze(model, training.trainable)
        return model
    return _add_lora(model, training.lora, training.trainable, seed)


def _add_lora(model: PreTrainedModel, settings: Lora, trainable: Trainable, seed: int) -> PreTrainedModel:
    """Freeze the model and put trainable low-rank matrices beside its ``targets`` (peft changes it in place)."""
    from peft import LoraConfig, get_peft_model

    assert settings.rank is not None
    targets: Any = settings.targets[0] if settings.targets == ["all-linear"] else settings.targets
    if not trainable.everything:
        roots = chosen(model, trainable)
        linear = {f"{root}.{path}".rstrip("."): part for root, module in roots.items() for path, part in module.named_modules()}
        found = [name for name, part in linear.items() if isinstance(part, torch.nn.Linear)]
        targets = [name for name in found if targets == "all-linear" or name.rpartition(".")[2] in targets]
        if not targets:
            raise UserError(f"training.lora.targets: none of {', '.join(settings.targets)} is among training.trainable.modules")
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


def export(
    model: PreTrainedModel, weights: dict[str, torch.Tensor], folder: Path, base: str, trust_remote_code: bool, training: Training
) -> None:
    """Write a model folder (safetensors), in the precision that the base model is stored in.

    Args:
        weights: by the names of ``model.state_dict()``, whole and on the CPU; those that trained.
        base: what ``model`` was loaded from. Where parts of it were frozen it is loaded anew, for a sharded model cannot be merged where
            it is.
    """
    stored = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code).dtype or torch.float32
    if training.lora.rank is not None or not training.trainable.everything:
        model = with_frozen(load_model(base, trust_remote_code), training, 0)
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown, unknown
        if training.lora.rank is not None:
            if training.lora.export == "adapter":
                model.save_pretrained(folder)
                return
            model = model.merge_and_unload()  # type: ignore[operator]
        weights = model.state_dict()
    with torch.device("meta"):  # a model without weights, for its names and its configuration: the real one may be sharded
        skeleton = AutoModelForCausalLM.from_config(model.config, dtype=stored, trust_remote_code=trust_remote_code)
    skeleton.generation_config = model.generation_config
    skeleton.save_pretrained(folder, state_dict={name: values.to(stored) for name, values in weights.items()})
