"""A causal language model to tune: loading, LoRA, and the folder that transformers and vLLM load as
is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from versatune_ray.errors import UserError
from versatune_ray.settings import Lora, Trainable, Training
from versatune_ray.training.attention import IMPLEMENTATION, Kind
from versatune_ray.training.families import check_family
from versatune_ray.training.trainable import check_importance, chosen, freeze


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
    with _told(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        check_family(config, path)
        if not empty:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **options)
        else:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, **options)
            with suppress(OSError):  # not every model has one
                model.generation_config = GenerationConfig.from_pretrained(path)
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
    base = _base(model)
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
        if stored[key].size != parameter.shape:
            shapes = (
                f"{list(stored[key].size)} in its .safetensors and {list(parameter.shape)} by its "
                f"config.json"
            )
            raise UserError(f"{path}: {plain} is {shapes}; they do not belong together")
        state[key] = parameter.detach()
    if state:
        with _told(path):
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


def _base(model: torch.nn.Module) -> PreTrainedModel:
    """The model without the adapters around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[return-value, operator]


def _folder(path: str) -> Path:
    """The model's files on this machine."""
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.json"]))


@contextmanager
def _told(path: str) -> Iterator[None]:
    """transformers' and torch's errors of a model that cannot be loaded, as ours."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be loaded as a causal language model: {' '.join(str(error).split())}"
        ) from None


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


def check_parts(
    path: str,
    trainable: Sequence[Trainable],
    importance: Mapping[str, torch.Tensor],
    trust_remote_code: bool = False,
) -> None:
    """Whether the model in ``path`` has these parts and these units; of its shape alone, no weight
    is read.

    Raises:
        UserError: it has not, or it is no causal language model.
    """
    with _told(path), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        check_family(config, path)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    for settings in trainable:
        chosen(model, settings)
    if importance:
        check_importance(model, importance)


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
    from peft import LoraConfig, get_peft_model

    assert settings.rank is not None
    targets: Any = settings.targets[0] if settings.targets == ["all-linear"] else settings.targets
    if not trainable.everything:
        roots = chosen(model, trainable)
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
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = get_peft_model(model, config)  # type: ignore[arg-type]
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
    return wrapped  # type: ignore[return-value]


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
    stored = (
        AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code).dtype or torch.float32
    )
    if training.lora.rank is not None or not training.trainable.everything:
        model = with_frozen(load_model(base, trust_remote_code), training, 0)
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unknown, unknown
        if training.lora.rank is not None:
            if training.lora.export == "adapter":
                model.save_pretrained(folder)
                _stopping(_base(model), end_of_turn).save_pretrained(folder)
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
