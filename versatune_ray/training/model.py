"""A causal language model to tune: loading it, whole or in parts, and LoRA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from versatune_ray.errors import UserError
from versatune_ray.runtime.models import commit
from versatune_ray.settings import Lora, Trainable, Training
from versatune_ray.training.adapters import peft
from versatune_ray.training.attention import IMPLEMENTATION, Kind
from versatune_ray.training.families import check_family, check_own_code
from versatune_ray.training.trainable import check_importance, freeze, selected_modules


def load_model(
    path: str, trust_remote_code: bool = False, attention: Kind = "padded", *, empty: bool = False
) -> PreTrainedModel:
    """A causal language model in float32 (mixed precision is the forward pass's business).

    ``empty``: on the meta device, for ``fill`` to give each rank its part of the weights; no rank
    then ever holds the whole.

    Raises:
        UserError: it cannot be loaded, or it is of a family that this training does not know.
    """
    options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    options["attn_implementation"] = IMPLEMENTATION[attention]
    # of shapes: RuntimeError
    with _load_errors(path, ImportError, KeyError, RuntimeError, SafetensorError):
        at = commit(path)
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, revision=at)
        check_family(config, path)
        if not empty:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                path, use_safetensors=True, revision=at, **options
            )
        else:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, **options)
            with suppress(OSError):  # not every model has one
                model.generation_config = GenerationConfig.from_pretrained(path, revision=at)
    check_own_code(model, path)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(f"{path}: an output embedding with a bias is not supported")
    return model


def fill(model: torch.nn.Module, path: str, *, frozen_only: bool = False) -> None:
    """Read the weights of ``path`` into an ``empty`` model that has storage by now, each rank its
    part of a sharded one and no more.

    Args:
        model: of ``load_model``, with or without adapters; adapters stay as they are.
        frozen_only: what trains is left to a checkpoint.

    Raises:
        UserError: the folder has no safetensors, or not those of this model.
    """
    base = base_of(model)
    init_buffers(base)
    parameters = {
        name: parameter for name, parameter in base.named_parameters() if ".lora_" not in name
    }
    if frozen_only:
        parameters = {
            name: parameter for name, parameter in parameters.items() if not parameter.requires_grad
        }
    reader = HuggingFaceStorageReader(str(_folder(path)))
    stored: Any = reader.read_metadata().state_dict_metadata
    if not stored:
        raise UserError(
            f"{path}: no .safetensors in it, which each worker reads its part of; load the model "
            f"once and save_pretrained it"
        )
    state = {}
    for name, parameter in parameters.items():
        plain = name.replace(".base_layer.", ".")
        # of a model saved without its head
        key = plain if plain in stored else plain.removeprefix(f"{base.base_model_prefix}.")
        if key not in stored:
            raise UserError(
                f"{path}: no {plain} in its .safetensors; are they of this config.json?"
            )
        kept = stored[key].properties.dtype
        if not kept.is_floating_point or kept.itemsize < 2:
            raise UserError(
                f"{path}: {plain} is stored as {kept}: quantised weights "
                f"cannot be trained; take the model they were made from"
            )
        if stored[key].size != parameter.shape:
            shapes = (
                f"{list(stored[key].size)} in its .safetensors and {list(parameter.shape)} by its "
                f"config.json"
            )
            raise UserError(f"{path}: {plain} is {shapes}; they do not belong together")
        state[key] = parameter.detach()
    if state:
        with _load_errors(path):
            state_dict_loader.load(state, storage_reader=reader)


def init_buffers(model: PreTrainedModel) -> None:
    """What no checkpoint holds, as transformers makes it from the configuration: frequencies of
    rotary embeddings, scales.
    """
    for owner in {
        model.get_submodule(name.rpartition(".")[0]) for name, _ in model.named_buffers()
    }:
        for parameter in owner.parameters(recurse=False):
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        model._init_weights(owner)


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The model without the adapters around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[return-value, operator]


def _folder(path: str) -> Path:
    """The model's files on this machine."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    files = ["*.safetensors", "*.json"]
    return Path(snapshot_download(path, revision=commit(path), allow_patterns=files))


@contextmanager
def _load_errors(path: str, *more: type[Exception]) -> Iterator[None]:
    """transformers' and torch's errors of a model that cannot be loaded, as ours."""
    kinds: tuple[type[Exception], ...] = (OSError, ValueError, *more)
    try:
        yield
    except kinds as error:
        reason = " ".join(str(error).split())
        if "ignore_mismatched_sizes" in reason:  # transformers points to a table of its own
            reason = "its weights have other shapes than its config.json says"
        raise UserError(f"{path}: cannot be loaded as a causal language model: {reason}") from None


def in_precision(model: PreTrainedModel, *, frozen: torch.dtype, trained: torch.dtype) -> None:
    """Weights in the precision that they are kept in: what is frozen is never rounded twice, what
    trains adds up small steps.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(trained if parameter.requires_grad else frozen)


def begin_adapters(model: torch.nn.Module, seed: int) -> None:
    """Give LoRA's matrices their first values, the same whatever the number of ranks: A uniform as
    peft has it, B zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            whole = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator)
            _assign(parameter, whole)
        elif ".lora_B." in name:
            _assign(parameter, torch.zeros(parameter.shape))


@torch.no_grad()
def _assign(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    if isinstance(parameter, DTensor):
        part = distribute_tensor(
            whole, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(whole)


def check_parts(path: str, trainable: Sequence[Trainable], trust_remote_code: bool = False) -> None:
    """Whether the model in ``path`` has these parts; of its shape alone, no weight is read.

    Raises:
        UserError: it has not, or it is no causal language model.
    """
    model = load_model(path, trust_remote_code, empty=True)
    for settings in trainable:
        selected_modules(model, settings)


def check_trained(
    path: str,
    training: Training,
    importance: Mapping[str, torch.Tensor],
    trust_remote_code: bool = False,
) -> None:
    """Whether the model in ``path`` has the parts and modules that ``training`` names, and the
    units of ``importance``; of its shape alone, no weight is read.

    Raises:
        UserError: it has not, or it is no causal language model.
    """
    model = load_model(path, trust_remote_code, empty=True)
    if importance:
        check_importance(model, importance)
    with_frozen(model, training, seed=0)


def with_frozen(model: PreTrainedModel, training: Training, seed: int) -> PreTrainedModel:
    """The model with everything frozen that ``training.trainable`` and ``training.lora`` do not let
    move; it may be an ``empty`` one.

    Raises:
        UserError: the model has no such layers or modules.
    """
    if training.lora.rank is None:
        if not training.trainable.everything:
            freeze(model, training.trainable)
        return model
    return _add_lora(model, training.lora, training.trainable, seed)


def _add_lora(
    model: PreTrainedModel, settings: Lora, trainable: Trainable, seed: int
) -> PreTrainedModel:
    """Freeze the model and put trainable low-rank matrices beside its ``targets`` (peft changes it
    in place).
    """
    assert settings.rank is not None
    targets: Any = settings.targets[0] if settings.targets == ["all-linear"] else settings.targets
    if not trainable.everything:
        roots = selected_modules(model, trainable)
        linear = {
            f"{root}.{path}".rstrip("."): part
            for root, module in roots.items()
            for path, part in module.named_modules()
        }
        found = [name for name, part in linear.items() if isinstance(part, torch.nn.Linear)]
        targets = [
            name for name in found if targets == "all-linear" or name.rpartition(".")[2] in targets
        ]
        if not targets:
            raise UserError(
                f"training.lora.targets: none of {', '.join(settings.targets)} is among "
                f"training.trainable.modules"
            )
    config = peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = peft().get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"training.lora.targets: {' '.join(str(error).split())}") from None
    for name, part in (
        ("input", model.get_input_embeddings()),
        ("output", model.get_output_embeddings()),
    ):
        if hasattr(part, "base_layer"):
            raise UserError(
                f"training.lora.targets: the {name} embedding cannot have an adapter; leave it out"
            )
    wrapped.to(torch.float32)
    if not next(wrapped.parameters()).is_meta:
        begin_adapters(wrapped, seed)
    return wrapped  # type: ignore[no-any-return]


def model_size(model: PreTrainedModel) -> tuple[int, int, int]:
    """Parameters that every token meets, embeddings aside; those of them that train; layers × heads
    × head size (``attention_cost``).
    """
    config = model.config
    embeddings = {
        id(module.weight)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in embeddings]
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        sum(parameter.numel() for parameter in parameters),
        trained,
        config.num_hidden_layers * config.num_attention_heads * head,
    )
