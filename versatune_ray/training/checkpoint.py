"""Checkpoints of a ``Trainer``: every rank writes its own shard in the background; another number
of ranks may read them.

| file | content |
|---|---|
| ``shard-*.safetensors`` | weights (those that train) and optimizer state, by
torch.distributed.checkpoint |
| ``state.json`` | steps done, sampler, learning-rate schedule, counts since the last adjustment,
the controller's state |
| ``rank-*.json`` | random state and training-loss sums of one rank |
| ``moments-*.safetensors`` | moments in 8 bits of one rank, exactly; where there are such |

Nothing in it is a pickle.
"""

from __future__ import annotations

import base64
import json
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
)
from torch.distributed.tensor import DTensor

from versatune_ray.mixture import LossSums
from versatune_ray.training.parallel import local
from versatune_ray.training.trainer import Trainer


class Checkpoints:
    """Saves and loads one trainer. Writing has a process group to itself, so that it never comes
    between the training's messages.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._group = dist.new_group(backend="gloo") if trainer.world > 1 else None
        self._writing = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Any] | None = None
        # the last copy of the state; the next one goes to the same memory
        self._host: dict[str, torch.Tensor] = {}

    def save(self, folder: Path, controller: dict[str, Any] | None = None) -> Future[Any]:
        """Begin to write into ``folder``; training may go on at once. Done when the future is.
        Called by every rank.

        The state is copied once, to the host (pinned memory, for a GPU), before this returns. A
        save that is still being written is waited for first.
        """
        self.wait()
        trainer = self.trainer
        folder.mkdir(parents=True, exist_ok=True)
        random = {"cpu": torch.get_rng_state()} | (
            {"cuda": torch.cuda.get_rng_state(trainer.device)}
            if trainer.device.type == "cuda"
            else {}
        )
        mine = {
            "random": {
                name: base64.b64encode(bytes(state.tolist())).decode()
                for name, state in random.items()
            },
            "nats": trainer.train_loss.nats.tolist(),
            "count": trainer.train_loss.count.tolist(),
        }
        (folder / f"rank-{trainer.rank:05}.json").write_text(json.dumps(mine))
        if trainer.rank == 0:
            state = {
                "step": trainer.steps_done,
                "sampler": trainer.sampler.state_dict(),
                "schedule": {"last_epoch": trainer.scheduled},
                "skipped": trainer.skipped,
                "samples": trainer.samples.tolist(),
                "tokens": trainer.tokens.tolist(),
                "controller": controller,
            }
            (folder / "state.json").write_text(json.dumps(state))
        if quantised := self._quantised():
            save_file(
                {name: values.cpu() for name, values in quantised.items()},
                folder / f"moments-{trainer.rank:05}.safetensors",
            )
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        save = partial(state_dict_saver.save, storage_writer=writer, process_group=self._group)
        self._pending = self._writing.submit(save, self._copied())
        return self._pending

    def wait(self) -> None:
        """Until the last save is written.

        Raises:
            Exception: what kept it from being written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Go on from a save, of whatever number of ranks; returns the controller's state."""
        trainer = self.trainer
        reader, tensors = HuggingFaceStorageReader(str(folder)), self._tensors()
        whole = {
            name: _on_host(tensor) for name, tensor in tensors.items() if _is_quantised(tensor)
        }
        # into the very tensors that train
        state_dict_loader.load(tensors | whole, storage_reader=reader, process_group=self._group)
        for name, tensor in whole.items():
            local(tensors[name]).copy_(local(tensor).to(trainer.device))
        quantised, file = self._quantised(), folder / f"moments-{trainer.rank:05}.safetensors"
        if len(list(folder.glob("moments-*"))) == trainer.world:
            stored = load_file(file)
            if {name: values.shape for name, values in stored.items()} == {
                name: values.shape for name, values in quantised.items()
            }:
                for name, values in quantised.items():
                    values.copy_(stored[name])
        state: dict[str, Any] = json.loads((folder / "state.json").read_text())
        trainer.scheduled = state["schedule"]["last_epoch"]
        trainer.skipped = state.get("skipped", 0)
        trainer.sampler.load_state_dict(state["sampler"])
        trainer.steps_done = state["step"]
        trainer.samples[:] = state["samples"]
        trainer.tokens[:] = state["tokens"]
        # With fewer ranks than before, the last ones' sums go to those that are left; with more,
        # the new ones begin at nothing.
        for file in sorted(folder.glob("rank-*.json")):
            rank = int(file.stem.rpartition("-")[2])
            if rank % trainer.world == trainer.rank:
                found = json.loads(file.read_text())
                trainer.train_loss += LossSums(np.array(found["nats"]), np.array(found["count"]))
                if rank == trainer.rank:
                    _set_random(found["random"], trainer.device)
        controller: dict[str, Any] | None = state["controller"]
        return controller

    def load_weights(self, folder: Path) -> None:
        """The model of a save, and nothing else of it."""
        reader = HuggingFaceStorageReader(str(folder))
        weights = {
            name: values for name, values in self._tensors().items() if name.startswith("model.")
        }
        state_dict_loader.load(weights, storage_reader=reader, process_group=self._group)

    def weights(self) -> dict[str, torch.Tensor]:
        """The whole model by the names of ``model.state_dict()``, on the CPU of rank 0; nothing
        elsewhere. Called by every rank.
        """
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        found = self._trained(get_model_state_dict(self.trainer.parallel.module, options=options))
        return {
            name.removeprefix("model."): values
            for name, values in found.items()
            if isinstance(values, torch.Tensor)
        }

    def _trained(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Without what is frozen. Torch leaves out one name of every frozen parameter; a tied head
        has two.
        """
        named = self.trainer.parallel.module.named_parameters(remove_duplicate=False)
        frozen = {
            name.removeprefix("module.") for name, parameter in named if not parameter.requires_grad
        }
        return {name: values for name, values in weights.items() if name not in frozen}

    def _tensors(self) -> dict[str, Any]:
        """The very tensors that train, and those of the optimizer."""
        options = StateDictOptions(flatten_optimizer_state_dict=True, ignore_frozen_params=True)
        model, optimizer = get_state_dict(
            self.trainer.parallel.module, self.trainer.optimizer, options=options
        )
        # Beside its state are settings of the optimizer, which the configuration and the schedule
        # give again.
        states = {
            name: values
            for name, values in optimizer.items()
            if name.startswith("state.") and isinstance(values, torch.Tensor)
        }
        return {f"model.{name}": values for name, values in self._trained(model).items()} | {
            f"optimizer.{name}": values for name, values in states.items()
        }

    def _quantised(self) -> dict[str, torch.Tensor]:
        """What this rank's moments of 8 bits are made of. As floats they are in the checkpoint,
        too, for any number of ranks to read; but those come out a bit coarser, where the largest of
        a block is negative: torchao's codes end at −0.993.
        """
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self._tensors().items():
            if _is_quantised(tensor):
                found |= {
                    f"{name}.codes": local(tensor).codes,
                    f"{name}.scale": local(tensor).scale,
                }
        return found

    @torch.no_grad()
    def _copied(self) -> dict[str, torch.Tensor]:
        """The state on the host, in memory that the next copy uses again."""
        for name, tensor in self._tensors().items():
            if name not in self._host:
                self._host[name] = _on_host(tensor)
            host, part = self._host[name], local(tensor)
            local(host).copy_(part.dequantize() if _is_quantised(part) else part, non_blocking=True)
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
        return self._host


def _is_quantised(tensor: torch.Tensor) -> bool:
    """Whether these are moments in 8 bits, torchao's."""
    return hasattr(local(tensor), "dequantize") and hasattr(local(tensor), "codes")


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """Memory for this rank's part of ``tensor``, sharded like it; pinned where the part is on a
    GPU.
    """
    part = local(tensor)
    host = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.device.type == "cuda")
    if not isinstance(tensor, DTensor):
        return host
    return DTensor(host, tensor._spec, requires_grad=False)  # type: ignore[no-untyped-call]  # from_local would move it to the GPU


def steps_in(folder: Path | None) -> int:
    """Optimizer steps before a save; 0 where there is none."""
    return 0 if folder is None else int(json.loads((folder / "state.json").read_text())["step"])


def _set_random(stored: dict[str, str], device: torch.device) -> None:
    states = {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        for name, text in stored.items()
    }
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
