"""Importance of a model's units for general abilities, from the gradient of gates on them; no
labels (CoFiTune, arXiv 2404.10306).

Every unit's output is multiplied by a gate g = 1. The records go through the model twice, under
different dropout of the attention weights, and L = 0.1 · KL(softmax(z₂) ‖ softmax(z₁)) at each
token. x = Σ ∂L/∂g over all tokens, however they are batched, and within each gate vector I =
|tanh((x − mean(x)) / std(x))|, which no common factor of x changes.

| gates on | units | rows of the importance |
|---|---|---|
| output of up_proj, gate_proj, down_proj, o_proj | output features | the same |
| heads of attention, before o_proj | query heads | of q_proj; of k_proj and v_proj, the highest of
their group (ours) |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from versatune_ray.errors import UserError

_SCALE = 0.1
_CHUNK = 256  # tokens whose logits are held at a time
_FEATURES = ("gate_proj", "up_proj", "down_proj", "o_proj")


def unit_importance(
    model: PreTrainedModel,
    batches: Sequence[Sequence[NDArray[np.int64]]],
    dropout: float,
    seed: int,
    progress: Callable[[int], None] = lambda records: None,
) -> dict[str, torch.Tensor]:
    """Importance per output unit, float32 [output features] within 0 and 1, by the projection's
    name.

    Args:
        model: on its device; it comes back as it was.
        batches: of token ids, one array per record.
        dropout: of attention weights, within 0 and 1.
        progress: is told how many records are done.

    Raises:
        UserError: the model lacks the projections, or what it answers is not finite.
    """
    linear = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    gated = {
        name: module for name, module in linear.items() if name.rpartition(".")[2] in _FEATURES
    }
    if not gated:
        raise UserError(
            f"unit importance needs a decoder with {', '.join(_FEATURES)}; {type(model).__name__} "
            f"has none of them"
        )
    attentions = {name.removesuffix("o_proj") for name in gated if name.endswith("o_proj")}
    if fused := [
        prefix
        for prefix in sorted(attentions)
        if any(f"{prefix}{kind}" not in linear for kind in ("q_proj", "k_proj", "v_proj"))
    ]:
        raise UserError(
            f"unit importance needs q_proj, k_proj and v_proj; {type(model).__name__} has not all "
            f"of them in {fused[0]}"
        )
    heads = model.config.num_attention_heads
    device = next(model.parameters()).device
    features = {
        name: torch.ones(module.out_features, device=device, requires_grad=True)
        for name, module in gated.items()
    }
    queries = {
        name: torch.ones(heads, device=device, requires_grad=True)
        for name in gated
        if name.endswith("o_proj")
    }
    summed = {gate: torch.zeros_like(gate) for gate in (*features.values(), *queries.values())}
    done = 0
    with _gates(gated, features, queries), _dropout(model, dropout):
        for number, records in enumerate(batches):
            torch.manual_seed(seed + number)
            gradients = torch.autograd.grad(_disagreement(model, records, device), list(summed))
            for gate, gradient in zip(summed, gradients, strict=True):
                summed[gate] += gradient
            done += len(records)
            progress(done)
    if not all(bool(torch.isfinite(x).all()) for x in summed.values()):
        raise UserError(
            f"unit importance: what {type(model).__name__} answers to the records of "
            f"cofitune.general is not finite"
        )
    found = {name: normalised(summed[gate]) for name, gate in features.items()}
    for name, gate in queries.items():
        found |= _attention_rows(name.removesuffix("o_proj"), normalised(summed[gate]), model)
    return {name: values.cpu().float().contiguous() for name, values in found.items()}


def normalised(x: torch.Tensor) -> torch.Tensor:
    """|tanh((x − mean) / std)|, [units]; 0 where all units are alike."""
    deviation = x.std() if x.numel() > 1 else torch.zeros(())
    return torch.tanh((x - x.mean()) / deviation).abs() if deviation > 0 else torch.zeros_like(x)


def _attention_rows(
    prefix: str, importance: torch.Tensor, model: PreTrainedModel
) -> dict[str, torch.Tensor]:
    """Rows of q_proj, k_proj and v_proj, from the importance of query heads."""
    modules = dict(model.named_modules())
    of_keys = importance.reshape(model.config.num_key_value_heads, -1).amax(1)
    found = {}
    for kind, heads in (("q_proj", importance), ("k_proj", of_keys), ("v_proj", of_keys)):
        rows = modules[f"{prefix}{kind}"].out_features
        assert isinstance(rows, int)
        found[f"{prefix}{kind}"] = heads.repeat_interleave(rows // len(heads))
    return found


def _disagreement(
    model: PreTrainedModel, records: Sequence[NDArray[np.int64]], device: torch.device
) -> torch.Tensor:
    """L of one batch: two forward passes under different dropout, summed over all tokens."""
    width = max(map(len, records))
    tokens = torch.zeros(len(records), width, dtype=torch.int64)
    real = torch.zeros(len(records), width, dtype=torch.bool)
    for row, record in enumerate(records):
        tokens[row, : len(record)] = torch.from_numpy(np.asarray(record, dtype=np.int64))
        real[row, : len(record)] = True
    # padded on the right: no real token sees what follows it
    tokens, real = tokens.to(device), real.to(device)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    first, second = (
        decoder(input_ids=tokens, use_cache=False).last_hidden_state[real] for _ in range(2)
    )

    def divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        expected, found = (
            functional.log_softmax(head(hidden).float(), dim=-1) for hidden in (one, other)
        )
        return functional.kl_div(expected, found, reduction="sum", log_target=True)

    # the logits of a whole batch can take more than the model
    chunks = zip(first.split(_CHUNK), second.split(_CHUNK), strict=True)
    return (
        _SCALE
        * torch.stack([checkpoint(divergence, *pair, use_reentrant=False) for pair in chunks]).sum()
    )


@contextmanager
def _gates(
    gated: dict[str, nn.Linear], features: dict[str, torch.Tensor], queries: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Multiply what the modules put out, and for query heads what o_proj takes in."""
    with ExitStack() as hooks:
        for name, module in gated.items():
            handle = module.register_forward_hook(
                lambda _module, _inputs, output, gate=features[name]: output * gate
            )
            hooks.callback(handle.remove)
            if name in queries:
                handle = module.register_forward_pre_hook(
                    lambda _module, inputs, gate=queries[name]: (_by_head(inputs[0], gate),)
                )
                hooks.callback(handle.remove)
        yield


def _by_head(values: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return (values.reshape(*values.shape[:-1], len(gate), -1) * gate[:, None]).flatten(-2)


@contextmanager
def _dropout(model: PreTrainedModel, probability: float) -> Iterator[None]:
    """Attention dropout on, as in training; parameters need no gradients meanwhile."""
    attentions = [module for module in model.modules() if hasattr(module, "attention_dropout")]
    if not attentions:
        raise UserError(
            f"unit importance needs attention with dropout; {type(model).__name__} has none"
        )
    before = [module.attention_dropout for module in attentions]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    try:
        for module in attentions:
            module.attention_dropout = probability  # type: ignore[assignment]
        model.requires_grad_(False)
        model.train()
        yield
    finally:
        for module, value in zip(attentions, before, strict=True):
            module.attention_dropout = value
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(training)
