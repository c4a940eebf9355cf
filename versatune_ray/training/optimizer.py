"""AdamW in three precisions, and the learning rate as a function of the step alone, so that no
scheduler has a state to keep.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from versatune_ray.errors import UserError
from versatune_ray.settings.recipe import Recipe

# Bytes of the two moments per trained parameter; torchao's 8 bits have a float32 scale for every
# 256 of them.
STATE_BYTES = {"adamw": 8.0, "adamw_8bit": 2 * (1 + 4 / 256), "adamw_bf16": 4.0}


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of one step, of those since the optimizer was new, counted from 0.

    Over w warm-up steps it rises by equal amounts, from peak / (w + 1) to the peak at step w: no
    step trains at a rate of 0. After them it follows ``recipe.schedule`` and would reach
    ``min_lr_ratio`` · peak at the step after the last.
    """
    steps, peak, lowest = (
        recipe.scheduled or recipe.steps,
        recipe.learning_rate,
        recipe.min_lr_ratio,
    )
    warmup = math.ceil(recipe.warmup * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    begin = (
        max(warmup, steps - math.ceil(recipe.decay * steps)) if recipe.schedule == "wsd" else warmup
    )
    done = max(0.0, min(1.0, (step - begin) / max(1, steps - begin)))
    left = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2}.get(
        recipe.schedule, 1 - done
    )
    return peak * (lowest + (1 - lowest) * left)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):  # torchao's, compiled once for all rates
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def build(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of what trains in ``module``, sharded or not; weight decay leaves norms, biases
    and embeddings alone.

    Raises:
        UserError: it needs a package that is not installed.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    # a tied head among them
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    decayed = {
        id(parameter)
        for parameter in trained
        if parameter.dim() >= 2 and id(parameter) not in embeddings
    }
    groups: list[dict[str, Any]] = [
        {
            "params": [parameter for parameter in trained if id(parameter) in decayed],
            "weight_decay": recipe.weight_decay,
        },
        {
            "params": [parameter for parameter in trained if id(parameter) not in decayed],
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    options: dict[str, Any] = {"lr": recipe.learning_rate, "betas": recipe.betas, "eps": recipe.eps}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=True, **options)
    try:
        from torchao import optim
    except ImportError:
        raise UserError(
            f"training.optimizer={recipe.optimizer}: torchao is not installed; pip install "
            f"torchao==0.18.0"
        ) from None
    if recipe.optimizer == "adamw_8bit":
        return optim.AdamW8bit(groups, **options)  # type: ignore[no-any-return]
    return optim._AdamW(groups, bf16_stochastic_round=True, **options)  # type: ignore[no-any-return]  # public but for its name
