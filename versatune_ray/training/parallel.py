"""One device, DDP or FSDP2 around the same module: everything that torch.distributed has to be told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from versatune_ray.training.loss import ResponseLoss
from versatune_ray.training.recipe import Setup


class Parallel:
    """A ``ResponseLoss`` on this rank's device, ready for forward and backward passes.

    ``module`` is what the optimizer and checkpoints see; gradients are averaged over ranks, as torch does by default.
    """

    def __init__(self, loss: ResponseLoss, setup: Setup, device: torch.device, rank: int, world: int):
        self.rank, self.world, self.device = rank, world, device
        self.bf16 = device.type == "cuda" if setup.precision == "auto" else setup.precision == "bf16"
        self.kind: Literal["single", "ddp", "fsdp"] = _kind(setup.parallel, device, world)
        if setup.recompute_every:
            loss.model.activation_checkpointing_enable({"use_reentrant": False})
            loss.model.disable_input_require_grads()  # or the backward pass would go on through frozen layers, down to the embedding
        layers = _layers(loss)
        if setup.compile is True or (setup.compile == "auto" and device.type == "cuda"):
            for layer in layers:
                layer.compile()
        if self.kind == "fsdp":
            mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if self.bf16 else MixedPrecisionPolicy()
            offload = CPUOffloadPolicy() if setup.cpu_offload else OffloadPolicy()
            options: dict[str, Any] = {"mesh": init_device_mesh(device.type, (world,)), "mp_policy": mixed, "offload_policy": offload}
            for layer in layers:
                fully_shard(layer, **options)
            fully_shard(loss, **options)
            if not setup.cpu_offload:
                loss.to(device)
            self.module: nn.Module = loss
        else:
            loss.to(device)
            self.module = loss if self.kind == "single" else DistributedDataParallel(loss)

    @property
    def in_step(self) -> bool:
        """Whether all ranks have to run the same number of forward passes."""
        return self.kind == "fsdp"

    def forward(self, batch: dict[str, Any], *, train: bool) -> torch.Tensor:
        """Nats per target. Without ``train`` no rank waits for another, unless parameters are sharded."""
        module = self.module.module if self.kind == "ddp" and not train else self.module
        half = self.bf16 and self.kind != "fsdp"
        with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
            return module(**batch)  # type: ignore[no-any-return, operator]

    @contextmanager
    def last_backward(self, last: bool) -> Iterator[None]:
        """Gradients are reduced over ranks only in the ``last`` micro-batch of a step."""
        if isinstance(self.module, DistributedDataParallel):
            self.module.require_backward_grad_sync = last
        elif isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(last)
            self.module.set_is_last_backward(last)
        yield

    def clip(self, limit: float) -> float:
        """Scale the gradients to a norm of at most ``limit`` (0: leave them); returns their norm before, the same on all ranks."""
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), limit or float("inf"))
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def take_gradients(self) -> list[torch.Tensor]:
        """The gradients of this rank's part of the parameters, taken from them: the next backward pass begins anew."""
        taken = []
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                gradient = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
                taken.append(gradient.detach().clone().flatten())
                parameter.grad = None
        return taken

    def products(self, gradients: Sequence[Sequence[torch.Tensor]]) -> NDArray[np.float64]:
        """Of every two of the k gradients taken, [k, k], the same on all ranks."""
        own = np.array([[sum(float(a @ b) for a, b in zip(one, other, strict=True)) for other in gradients] for one in gradients])
        return np.sum(self.gather(own), axis=0) if self.kind == "fsdp" else own  # type: ignore[no-any-return]

    def gather(self, value: object) -> list[Any]:
        """``value`` of every rank, in rank order."""
        found: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)
        return found


def _kind(asked: str, device: torch.device, world: int) -> Literal["single", "ddp", "fsdp"]:
    if asked == "auto":
        asked = "fsdp" if device.type == "cuda" and world > 1 else "ddp"
    if asked == "fsdp" and dist.is_initialized():
        return "fsdp"
    return "ddp" if world > 1 else "single"


def _layers(loss: ResponseLoss) -> list[nn.Module]:
    """The blocks of the decoder, each a unit of sharding, compiling and recomputing."""
    return list(loss.model.get_decoder().layers)  # type: ignore[union-attr, arg-type]
