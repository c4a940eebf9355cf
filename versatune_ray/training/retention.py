"""What keeps a model near its base, whatever the shares: two terms of the loss that hold for every
policy. What they need of the base is there at every start, so a checkpoint has nothing of them.

| setting | term | what it costs |
|---|---|---|
| ``training.keep.l2`` | λ/2 · ‖θ − θ₀‖², L2-SP (Li et al. 2018, arXiv 1802.01483) | θ₀ of what
trains; LoRA: nothing |
| ``training.keep.kl`` | λ · mean KL(base ‖ model) per response token of some records | two forward
passes and a backward one over them, and the base model; LoRA: no copy |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from versatune_ray.domains import DomainData
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.batches import Layout, Samples
from versatune_ray.training.loss import ResponseLoss
from versatune_ray.training.parallel import Parallel, local

# of a forward pass whose probabilities over the vocabulary are kept
KL_TOKENS = 1024
_STREAM = 0x6B6C  # of the draws: not the sampler's, nor those of gradient products


class L2ToBase:
    """λ/2 · the squared distance of the weights to those of the base model.

    With adapters the distance is that of the merged weights, ‖s·BA‖², which needs no copy of
    anything: it is s² · tr(BᵀB · AAᵀ).
    """

    def __init__(self, module: nn.Module, weight: float):
        """``module`` has the base's weights, or will before ``remember``."""
        self.weight, self._module = weight, module
        self._pairs = list(_adapters(module))
        self._base: list[tuple[nn.Parameter, torch.Tensor]] = []

    def remember(self) -> None:
        """Take the weights that are there now for the base's."""
        if not self._pairs:
            trained = (one for one in self._module.parameters() if one.requires_grad)
            self._base = [(one, local(one).detach().clone()) for one in trained]

    @torch.no_grad()
    def add_gradient(self, parallel: Parallel) -> torch.Tensor:
        """Add the term's gradient to that of all ranks; returns the distance, the same on every
        rank.
        """
        square = torch.zeros((), dtype=torch.float32, device=parallel.device)
        for parameter, base in self._base:
            moved = local(parameter) - base
            self._add(parameter, moved)
            square += moved.float().square().sum().to(parallel.device)
        square = parallel.over_shards(square)
        for first, second, scale in self._pairs:
            a, b = _whole(first), _whole(second)
            across, within = b.T @ b, a @ a.T
            self._add(first, _like(scale**2 * across @ a, first))
            self._add(second, _like(scale**2 * b @ within, second))
            square += (scale**2 * (across * within).sum()).to(parallel.device)
        return square.sqrt()

    def _add(self, parameter: nn.Parameter, part: torch.Tensor) -> None:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        local(parameter.grad).add_(part, alpha=self.weight)


class KLToBase:
    """λ · the mean over response tokens of KL(base ‖ model), each by its record's weight, on
    records drawn anew at each step as a function of the seed and the step alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Sequence[DomainData],
        parallel: Parallel,
        layout: Layout,
        execution: Execution,
        base: PreTrainedModel | None,
    ):
        """``base``: a model of its own, frozen here; None: that of ``parallel`` with its adapters
        off.

        Raises:
            ValueError: neither.
        """
        if base is None and not any(_adapters(parallel.module)):
            raise ValueError("a base model is needed where there are no adapters to switch off")
        self._data, self._parallel, self._layout = data, parallel, layout
        self._base = parallel if base is None else _frozen(base, parallel, execution)
        names = [one.name for one in data]
        self._domains = (
            range(len(names)) if recipe.kl_domain is None else [names.index(recipe.kl_domain)]
        )

    def backward(self, recipe: Recipe, step: int) -> torch.Tensor:
        """Add this rank's part of the gradient, which is reduced with the next one; returns its
        part of the mean KL, in nats per token.
        """
        samples = self.draw(recipe, step)
        # the layout multiplies by each record's weight
        counted = float(samples.weights @ samples.response_tokens)
        each = recipe.kl * self._layout.world / counted if counted else 0.0
        weights = np.full(len(self._data), each)
        capacity = min(recipe.micro_batch_tokens, KL_TOKENS)
        total = torch.zeros((), dtype=torch.float64, device=self._parallel.device)
        self._parallel.module.train()
        for batch in self._layout.micro_batches(samples, weights, capacity):
            inputs = batch.to(self._parallel.device).inputs
            inputs["targets"] = self._log_probabilities(inputs)
            with self._parallel.backward(last=False):
                loss, _ = self._parallel.forward(inputs, train=True)
                loss.backward()
            total += loss.detach().double() / (recipe.kl * self._layout.world)
        return total

    def draw(self, recipe: Recipe, step: int) -> Samples:
        """Records of one step, of each domain in turn."""
        rng = np.random.default_rng([recipe.seed, _STREAM, step])
        count = max(recipe.kl_records, self._layout.world)
        turn = (step * count + np.arange(count)) % len(self._domains)
        domain = np.asarray(self._domains, dtype=np.int64)[turn]
        sizes = np.array([len(one.train) for one in self._data])
        index: NDArray[np.int64] = rng.integers(0, sizes[domain])
        return Samples([one.train for one in self._data], domain, index)

    @torch.no_grad()
    def _log_probabilities(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Of the base, over the vocabulary at every target; float32 [n, vocabulary]."""
        asked = {name: value for name, value in inputs.items() if name != "weights"}
        module = self._base.module
        module.eval()
        with _without_adapters(module):
            found: torch.Tensor = self._base.forward(asked | {"targets": None}, train=False)
        self._parallel.module.train()
        return found


def _frozen(base: PreTrainedModel, parallel: Parallel, execution: Execution) -> Parallel:
    """The base model as the trained one is spread over ranks; where each holds the whole, nothing
    is exchanged.
    """
    low = torch.bfloat16 if execution.in_bf16(parallel.device.type) else torch.float32
    for parameter in base.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(low)
    world = parallel.world if parallel.kind == "fsdp" else 1
    return Parallel(ResponseLoss(base), execution, parallel.device, parallel.rank, world)


def _adapters(module: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter, float]]:
    """A, B and scale of every low-rank update s·BA."""
    for part in module.modules():
        if hasattr(part, "lora_A") and hasattr(part, "scaling"):
            for name in part.lora_A:  # type: ignore[union-attr]
                first, second = part.lora_A[name].weight, part.lora_B[name].weight  # type: ignore[index, union-attr]
                yield first, second, float(part.scaling[name])  # type: ignore[index, arg-type]


@contextmanager
def _without_adapters(module: nn.Module) -> Iterator[None]:
    """The model as it was before it got adapters; which of its parameters train stays as it is."""
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "_disable_adapters")]
    for part in parts:
        part._disable_adapters = True
    try:
        yield
    finally:
        for part in parts:
            part._disable_adapters = False


def _whole(parameter: nn.Parameter) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def _like(whole: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """This rank's part of what belongs to a parameter."""
    if not isinstance(parameter, DTensor):
        return whole
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
