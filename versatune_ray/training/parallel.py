"""One device, DDP or FSDP2 around the same module: everything that torch.distributed has to be
told.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from versatune_ray.settings.recipe import Execution
from versatune_ray.training.loss import ResponseLoss

_SLICE = 1 << 24  # numbers of all gradients together that are multiplied at a time


class Parallel:
    """A ``ResponseLoss`` on this rank's device, ready for forward and backward passes.

    ``module`` is what the optimizer and checkpoints see; gradients are averaged over ranks, as
    torch does by default. Under FSDP it may come on the meta device: what it holds is then made
    here, and not yet filled.
    """

    def __init__(
        self, loss: ResponseLoss, execution: Execution, device: torch.device, rank: int, world: int
    ):
        self.rank, self.world, self.device, self.no_sync = rank, world, device, execution.no_sync
        self.bf16, self.kind = execution.in_bf16(device.type), execution.kind(device.type, world)
        prepare_layers(loss, execution, compiled=execution.compiles(device.type))
        layers = _layers(loss)
        self._shards: dist.ProcessGroup | None = None
        if self.kind == "fsdp":
            self.module: nn.Module = self._sharded(loss, layers, execution)
        else:
            loss.to(device)
            self.module = loss if self.kind == "single" else DistributedDataParallel(loss)

    def _sharded(
        self, loss: ResponseLoss, layers: Sequence[nn.Module], execution: Execution
    ) -> nn.Module:
        mesh = _mesh(self.device, self.world, execution.shard_over)
        self._shards = mesh.get_group(mesh.ndim - 1)
        # Sums over ranks are made in float32; a single rank has nothing to sum, and micro-batches
        # add up in float32 all the same.
        reduced = torch.float32 if self.world > 1 else None
        mixed = MixedPrecisionPolicy(
            torch.bfloat16 if self.bf16 else None, reduced, cast_forward_inputs=False
        )
        offload = CPUOffloadPolicy() if execution.cpu_offload else OffloadPolicy()
        options: dict[str, Any] = {"mesh": mesh, "mp_policy": mixed, "offload_policy": offload}
        decoder, embedding, head = (
            loss.model.get_decoder(),
            loss.model.get_input_embeddings(),
            loss.model.get_output_embeddings(),
        )
        for layer in layers:
            fully_shard(layer, **options)  # type: ignore[arg-type]
        # tied, they stay with what is left for the whole of a step
        if embedding.weight is not head.weight:
            fully_shard(embedding, **options)
            fully_shard([decoder.norm, head], **options)  # type: ignore[union-attr, list-item]
        fully_shard(loss, **options)
        where = torch.device("cpu") if execution.cpu_offload else self.device
        loss._apply(
            lambda tensor: (
                torch.empty_like(tensor, device=where) if tensor.is_meta else tensor.to(where)
            )
        )  # type: ignore[no-untyped-call]
        if execution.cpu_offload:  # buffers are read on the device
            for module in loss.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.to(self.device))
        return loss

    @property
    def in_step(self) -> bool:
        """Whether all ranks have to run the same number of forward passes."""
        return self.kind == "fsdp" and self.world > 1

    def forward(self, batch: dict[str, Any], *, train: bool) -> Any:
        """What ``ResponseLoss`` gives. Without ``train`` no rank waits for another, unless
        parameters are sharded.
        """
        module = self.module.module if self.kind == "ddp" and not train else self.module
        half = self.bf16 and self.kind != "fsdp"
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            return module(**batch)  # type: ignore[operator, unused-ignore]

    @contextmanager
    def backward(self, last: bool) -> Iterator[None]:
        """Around the passes of a micro-batch; where ranks keep whole gradients, those are reduced
        only in the ``last`` of a step.
        """
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = last
        elif isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last or not self.no_sync)
            self.module.set_is_last_backward(last)
        yield

    def gradient_norm(
        self, masked: Sequence[tuple[nn.Parameter, torch.Tensor]] = ()
    ) -> torch.Tensor:
        """Euclidean norm of the whole gradient, float32 on the device, the same on all ranks.

        ``masked``: parameters of which each number counts as much as it may move, and by which
            factor (local parts, within 0 and 1).
        """
        scales = {id(parameter): scale for parameter, scale in masked}
        parts = []
        for parameter in self._with_gradient():
            gradient = local(parameter.grad)
            parts.append(gradient * scales[id(parameter)] if id(parameter) in scales else gradient)
        norms = torch._foreach_norm(parts, 2.0, torch.float32) if parts else [torch.zeros(())]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms)).to(self.device)
        return self.over_shards(norm.square()).sqrt() if self._in_shards else norm

    @property
    def _in_shards(self) -> bool:
        return self._shards is not None and self.world > 1

    def over_shards(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over the parts of a copy of the model; what each rank has, where it has all."""
        if self._in_shards:
            dist.all_reduce(value, group=self._shards)
        return value

    def scale_gradient(self, factor: torch.Tensor) -> None:
        gradients = [local(parameter.grad) for parameter in self._with_gradient()]
        if gradients:
            torch._foreach_mul_(gradients, factor.to(gradients[0].device))

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on the device."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def take_gradients(self) -> list[torch.Tensor]:
        """The gradients of this rank's part of the parameters, taken from them to the host: the
        next backward pass begins anew.

        There, because k of them may be more than a device holds.
        """
        taken = []
        for parameter in self._with_gradient():
            taken.append(local(parameter.grad).detach().flatten().to("cpu", copy=True))
            parameter.grad = None
        return taken

    def products(self, gradients: Sequence[Sequence[torch.Tensor]]) -> NDArray[np.float64]:
        """Of every two of the k gradients taken, [k, k], the same on all ranks; a slice of all of
        them is on the device at a time.
        """
        k = len(gradients)
        found = torch.zeros(k, k, dtype=torch.float64, device=self.device)
        for parts in zip(*gradients, strict=True):
            for pieces in zip(*(part.split(max(1, _SLICE // k)) for part in parts), strict=True):
                stacked = torch.stack([piece.to(self.device, torch.float32) for piece in pieces])
                found += (stacked @ stacked.T).double()
        return self.over_shards(found).cpu().numpy()  # type: ignore[no-any-return]

    def gather(self, value: object) -> list[Any]:
        """``value`` of every rank, in rank order."""
        found: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)
        return found

    def _with_gradient(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.module.parameters() if parameter.grad is not None]


def local(tensor: torch.Tensor | None) -> Any:
    """This rank's part of a sharded tensor; another as it is."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _mesh(device: torch.device, world: int, shard_over: int | None) -> DeviceMesh:
    """All ranks in one dimension; or, where fewer share a copy of the model, (copies, ranks of a
    copy).
    """
    if not dist.is_initialized():  # one process by itself
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    if shard_over is None or shard_over == world:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(
        device.type, (world // shard_over, shard_over), mesh_dim_names=("replicate", "shard")
    )


def _layers(loss: ResponseLoss) -> list[nn.Module]:
    """The blocks of the decoder, each a unit of sharding, compiling and recomputing."""
    return list(loss.model.get_decoder().layers)  # type: ignore[union-attr, arg-type]


def prepare_layers(loss: ResponseLoss, execution: Execution, *, compiled: bool) -> None:
    """Compile the layers' forward passes, and compute again in the backward pass what ``execution``
    says; hooks of a layer, FSDP's among them, stay outside of both.
    """
    for number, layer in enumerate(_layers(loss)):
        forward = layer.forward
        if compiled:
            forward = torch.compile(forward, dynamic=True)
        if execution.recomputes(number):
            forward = partial(checkpoint, forward, use_reentrant=False)
        layer.forward = forward  # type: ignore[method-assign]
