"""How much memory a worker's device needs, worked out before anything is loaded.

What has to be kept follows from counts of parameters; what a micro-batch takes on top is rehearsed:
its forward and backward pass runs on the meta device, where tensors have shapes but no contents,
and what is alive at once is added up. So no family needs a formula of its own.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import AttentionInterface, PreTrainedModel

from versatune_ray.settings import Training
from versatune_ray.settings.recipe import Execution
from versatune_ray.training.loss import ROWS, ResponseLoss
from versatune_ray.training.optimizer import STATE_BYTES
from versatune_ray.training.parallel import prepare_layers
from versatune_ray.training.retention import KL_TOKENS

GIB = 2**30
# of a GPU: CUDA's own context, kernels, NCCL's buffers, and what the allocator cannot use
_RESERVED = 1.5 * GIB
_CHEAP = 256  # inner size of a product below which it is computed again: LoRA's
_REHEARSED = "versatune_rehearsed"  # the attention of a rehearsal


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker's device. weights, gradients, optimizer: kept all along; activations: a
    micro-batch at its highest, logits and gradients of what is between among them; workspace: what
    is whole for a while where the rest is sharded, and what is sent.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    workspace: float

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in fields(self)))

    def __str__(self) -> str:
        parts = ", ".join(
            f"{field.name} {getattr(self, field.name) / GIB:.1f}" for field in fields(self)
        )
        return f"{self.total / GIB:.1f} GiB ({parts})"


def estimate(
    model: PreTrainedModel, training: Training, workers: int, device: str, longest: int = 0
) -> Memory:
    """Memory of each of ``workers`` on its ``device`` ("cuda" or "cpu").

    Args:
        model: of ``load_model(…, empty=True)``, with what does not train frozen (``with_frozen``);
            its weights may be gone through in any precision, and it cannot be used for anything
            else afterwards.
        longest: tokens of the longest record, which goes alone where it is longer than
            ``training.micro_batch_tokens``.
    """
    execution, target = Execution.of(training), torch.device(device)
    kind, low = execution.kind(device, workers), execution.in_bf16(device)
    small = training.optimizer == "adamw_bf16"
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in model.parameters()) - trained
    shards = (execution.shard_over or workers) if kind == "fsdp" else 1
    kept = 0 if execution.cpu_offload else 1 / shards
    size = 2 if small else 4  # bytes of a trained weight, and of its gradient
    gradients = size * trained * kept
    workspace = 0.0
    if kind == "fsdp":
        workspace = _gathered(
            model, 2 if low else 4, 4 if workers > 1 or not low else 2, shards
        ) + (4 * trained if execution.no_sync else 0)
    elif kind == "ddp":
        workspace = 4.0 * trained  # the buckets that gradients are sent in
    if low and kind != "fsdp":
        workspace += 2.0 * trained  # autocast's copies of the weights
    whole, keep = training.lora.rank is None, training.keep
    # copies of the base: of what trains, and of all of it
    base = size * trained * bool(keep.l2 and whole) + (2 if low else 4) * (trained + frozen) * bool(
        keep.kl and whole
    )
    if keep.kl:  # probabilities over the vocabulary
        tokens = max(min(training.micro_batch_tokens, KL_TOKENS), longest)
        workspace += 4.0 * tokens * model.config.vocab_size
    return Memory(
        weights=(size * trained + (2 if low else 4) * frozen + base) * kept,
        gradients=gradients,
        optimizer=STATE_BYTES[training.optimizer] * trained * kept,
        activations=float(
            _rehearsed(
                model,
                execution,
                low,
                execution.compiles(device),
                max(training.micro_batch_tokens, longest),
                target,
            )
        ),
        workspace=workspace,
    )


def room_on(device: torch.device) -> float:
    """Bytes of a GPU that training may use, or of this machine's memory."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory - _RESERVED)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _gathered(model: PreTrainedModel, size: int, sent_size: int, shards: int) -> float:
    """What FSDP has whole on a device besides its shards: the weights of two layers and of the
    embedding or head, in ``size`` bytes each, and the gradients of the largest of them, once as
    computed and once on their way to the ranks, in ``sent_size``.
    """
    layers = [_numel(layer) for layer in model.get_decoder().layers]  # type: ignore[union-attr]
    rest = [_numel(model.get_input_embeddings()), _numel(model.get_output_embeddings())]
    (most, most_trained), (outer, outer_trained) = max(layers), max(rest)
    sent = max(most_trained, outer_trained)
    return size * (2 * most + outer) + sent * (size + sent_size + sent_size / shards)


def _numel(module: Any) -> tuple[int, int]:
    """Parameters, and those of them that train."""
    found = list(module.parameters())
    return sum(one.numel() for one in found), sum(one.numel() for one in found if one.requires_grad)


def _rehearsed(
    model: PreTrainedModel,
    execution: Execution,
    low: bool,
    compiled: bool,
    tokens: int,
    device: torch.device,
) -> int:
    """Most bytes alive at once in the passes of one row of ``tokens``, parameters and their kept
    gradients aside.
    """
    model.config._attn_implementation = _REHEARSED
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16 if low else torch.float32)
        # a gradient is reduced, or added up, as soon as it is there: those are counted elsewhere
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop)
    rows = -(-tokens // 128) * 128
    loss = ResponseLoss(model, rows=ROWS[device.type])
    loss.train()
    if compiled:
        _fuse(loss, execution)
    prepare_layers(loss, execution, compiled=False)
    places = torch.arange(rows, device="meta")
    inputs = {
        "tokens": places[None],
        "position_ids": places[None],
        "kept": places,
        "targets": places,
    }
    with _Alive(loss) as alive:
        total, _ = loss(**inputs, weights=torch.ones(rows, device="meta"))
        total.backward()
    return int(alive.most)


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that are made and not yet gone, those of ``module`` left out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._held = [
            tensor.untyped_storage() for tensor in (*module.parameters(), *module.buffers())
        ]
        self._seen = {storage._cdata for storage in self._held}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(found):
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@torch.library.custom_op("versatune::rehearsed_attention", mutates_args=())
def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of the shape of flash attention: an output, and one number per token and head. For
    the meta device alone.
    """
    raise NotImplementedError


@_flash.register_fake
def _flash_shapes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)


def _flash_keeps(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)


def _flash_backward(ctx: Any, *_: Any) -> Any:
    return tuple(torch.empty_like(states) for states in ctx.saved_tensors[:3])


_flash.register_autograd(_flash_backward, setup_context=_flash_keeps)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    **__: Any,
) -> Any:
    return _flash(query, key, value)[0].transpose(1, 2), None


AttentionInterface.register(_REHEARSED, _attention)


def _keep(ctx: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    product = (
        operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        and args[-2].shape[-1] >= _CHEAP
    )
    made = product or operation is torch.ops.versatune.rehearsed_attention.default
    return CheckpointPolicy.MUST_SAVE if made else CheckpointPolicy.PREFER_RECOMPUTE


def _fuse(loss: ResponseLoss, execution: Execution) -> None:
    """Layers as the compiler has them: they keep what matrix products and attention made, and
    compute the rest again in fused kernels.
    """
    contexts = partial(create_selective_checkpoint_contexts, _keep)
    for number, layer in enumerate(loss.model.get_decoder().layers):  # type: ignore[union-attr, arg-type]
        if not execution.recomputes(number):
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, context_fn=contexts
            )
