"""CoFiTune (arXiv 2404.10306): which parameters may move, and how far. For decoders of the shapes
of Llama, Qwen and Mistral.

Coarse: some layers and projections train, the rest is frozen. Fine: a soft mask scales the update
of each unit, an output row of a projection, by 1 − its importance for general abilities
(``importance``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch
from versatune_ray.settings import Trainable
from versatune_ray.settings.cofitune import layer_range


def selected_modules(model: PreTrainedModel, settings: Trainable) -> dict[str, nn.Module]:
    """The modules of ``model`` that may move, by name: projections, or whole layers where no
    projection is named.

    Raises:
        UserError: no such layer, or no such projection in the chosen layers.
    """
    layers = list(model.get_decoder().layers)  # type: ignore[union-attr, arg-type]
    try:
        numbers = (
            range(len(layers))
            if settings.layers is None
            else layer_range(settings.layers, len(layers))
        )
    except ValueError as error:
        raise UserError(f"training.trainable.layers: {error}") from None
    names = {id(module): name for name, module in model.named_modules()}
    found = {names[id(layers[number])]: layers[number] for number in numbers}
    wanted = settings.projections
    if not wanted:
        return found
    inside = [
        (f"{name}.{path}", module)
        for name, layer in found.items()
        for path, module in layer.named_modules()
        if path
    ]
    there = {name.rpartition(".")[2] for name, module in inside if isinstance(module, nn.Linear)}
    if missing := [name for name in wanted if name not in there]:
        raise UserError(
            f"training.trainable.modules: the model has no {missing[0]}; valid: attention, ffn, "
            f"{', '.join(sorted(there))}"
        )
    return {name: module for name, module in inside if name.rpartition(".")[2] in wanted}


def freeze(model: PreTrainedModel, settings: Trainable) -> None:
    """Freeze all but the ``selected_modules``; embeddings, head and the last norm as well."""
    moving = selected_modules(model, settings)
    model.requires_grad_(False)
    for module in moving.values():
        module.requires_grad_(True)


def read_importance(files: Sequence[str]) -> dict[str, torch.Tensor]:
    """Importance of units, within 0 and 1, float32 [output units] by the projection's name; of
    several files the highest (ours: what any source needs is kept).

    Raises:
        UserError: a file is missing or no such file, holds what is not within 0 and 1, or two are
            of different models.
    """
    merged: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            found = load_file(fetch(file))
        except Exception as error:  # safetensors raises its own kinds
            raise UserError(
                f"training.soft_mask: {file}: no file of unit importance: {error}"
            ) from None
        for name, values in found.items():
            if values.dim() != 1 or not bool(((values >= 0) & (values <= 1)).all()):
                raise UserError(
                    f"training.soft_mask: {file}: {name} is no list of numbers within 0 and 1; "
                    f"measure it again"
                )
            if name in merged and merged[name].shape != values.shape:
                raise UserError(
                    f"training.soft_mask: {file}: {name} has {len(values)} units, and "
                    f"{len(merged[name])} in another file"
                )
            merged[name] = torch.maximum(merged[name], values) if name in merged else values
    return merged


class SoftMask:
    """Scales what each step of an optimizer does to a unit by 1 − its importance: moments, clipping
    and weight decay included.

    On the update and not on the gradient, because Adam divides a constant scale of the gradient out
    again. A unit of importance 1 stays as it is bit for bit; one of importance 0 moves as without a
    mask, bit for bit. With LoRA the rows of B are scaled: what a step of B adds to the rows of B·A
    is scaled by it, what a step of A adds is not, but for a unit of importance 1, whose row of B
    stays 0.

    Costs 4 bytes per masked parameter, for the values before the step.
    """

    def __init__(self, module: nn.Module, importance: Mapping[str, torch.Tensor]):
        """``module``: holds the trained parameters, sharded or not.

        Raises:
            UserError: the importance is of another model: of modules that this one has not, of
                other numbers of units, or lacking projections of the kinds that it has; or no
                parameter that it is of trains.
        """
        check_importance(module, importance)
        # values, scale of their rows, values before the step
        self._masked: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        # how far each row may move, for the norm of what does
        self.scales: list[tuple[nn.Parameter, torch.Tensor]] = []
        for parameter, rows in _rows(module, importance):
            scale = (
                (1 - rows)
                .clamp(0, 1)
                .to(parameter.device, parameter.dtype)
                .reshape(-1, *[1] * (parameter.dim() - 1))
            )
            values = parameter.data
            if isinstance(parameter, DTensor):
                values = parameter.to_local()  # on the CPU where parameters are offloaded
                scale = (
                    distribute_tensor(scale, parameter.device_mesh, parameter.placements)
                    .to_local()
                    .to(values.device)
                )
            self._masked.append((values, scale, torch.empty_like(values)))
            self.scales.append((parameter, scale))
        if not self._masked:
            raise UserError(
                "training.soft_mask: no parameter that trains has an importance in these files"
            )

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """From now on, every step of ``optimizer`` is masked."""
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.no_grad()
    def _before(self, *step: Any) -> None:
        for values, _, before in self._masked:
            before.copy_(values)

    @torch.no_grad()
    def _after(self, *step: Any) -> None:
        for values, scale, before in self._masked:
            torch.lerp(before, values, scale, out=values)


def check_importance(module: nn.Module, importance: Mapping[str, torch.Tensor]) -> None:
    """Whether these are the units of this model's projections, all of each kind.

    Raises:
        UserError: they are another model's.
    """
    linear = {
        name.removesuffix(".base_layer"): part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    }
    ours = {name[name.find("layers.") :]: part.out_features for name, part in linear.items()}
    theirs = {name[name.find("layers.") :]: len(rows) for name, rows in importance.items()}
    if unknown := sorted(theirs.keys() - ours.keys()):
        raise UserError(
            f"training.soft_mask: the model has no {unknown[0]}; the files are of another one"
        )
    kinds = {name.rpartition(".")[2] for name in theirs}
    if lacking := sorted(
        name for name in ours.keys() - theirs.keys() if name.rpartition(".")[2] in kinds
    ):
        raise UserError(
            f"training.soft_mask: the files have no importance of {lacking[0]}; they are of "
            f"another model"
        )
    for name, units in theirs.items():
        if units != ours[name]:
            raise UserError(
                f"training.soft_mask: {name} has {units} units in the file and {ours[name]} in the "
                f"model"
            )


def _rows(
    module: nn.Module, importance: Mapping[str, torch.Tensor]
) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    """Trained weights, biases and LoRA's B of the projections that have an importance."""
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        owner, _, kind = (
            name.removesuffix(".default.weight").removesuffix(".default").rpartition(".")
        )
        if kind in ("weight", "bias", "lora_B"):
            for projection, rows in importance.items():
                if owner == projection or owner.endswith(f".{projection}"):
                    yield parameter, rows
