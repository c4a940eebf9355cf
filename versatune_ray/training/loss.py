"""Negative log-likelihood of response tokens only, without ever holding the logits of a whole
batch.

The gradient is computed with the loss, chunk by chunk: three matrix products with the output
embedding, where recomputing the logits in the backward pass would take four. Products run in the
precision of the hidden states, what is computed on logits in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

# of logits at a time: what a CPU's caches hold, what keeps a GPU's tensor cores busy
ROWS = {"cpu": 256, "cuda": 2048}

Gradient = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class ResponseLoss(nn.Module):
    """Decoder and output embedding as one module, so that data-parallel wrappers see one forward
    pass.
    """

    def __init__(self, model: PreTrainedModel, compiled: bool = False, rows: int | None = None):
        """``compiled``: what is computed on logits is fused by torch.compile. rows: of logits at a
        time; None: as the device likes it.
        """
        super().__init__()
        self.model = model
        gradient: Gradient = (
            torch.compile(nats_and_gradient, dynamic=True) if compiled else nats_and_gradient
        )
        head = model.get_output_embeddings()
        # The head's own forward pass, so that FSDP gathers it before and reduces its gradient
        # behind it as it does for any module.
        head.forward = partial(_head_loss, head, gradient, rows)  # type: ignore[method-assign, assignment]

    def forward(
        self,
        tokens: torch.Tensor,
        kept: torch.Tensor,
        targets: torch.Tensor | None,
        weights: torch.Tensor | None = None,
        **attention: Any,
    ) -> Any:
        """Nats per target, float32 [n], without gradient; with ``weights`` the pair (Σ weights ·
        nats, which has one; nats).

        Args:
            tokens: int64 [rows, length].
            kept: int64 [n], flat positions in ``tokens`` after which a response token follows.
            targets: int64 [n], those tokens. None: log-probabilities are returned, float32
                [n, vocabulary]. Log-probabilities of another model, float [n, vocabulary]: nats are
                KL(other ‖ this).
            weights: float32 [n], what each target counts in the loss.
            attention: what the attention needs to know of packed rows, ``position_ids`` and more
                (see ``attention``).
        """
        hidden = self.model.get_decoder()(
            input_ids=tokens, use_cache=False, **attention
        ).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, kept)
        return self.model.get_output_embeddings()(hidden, targets, weights)  # type: ignore[operator]


def nats_and_gradient(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats [n], and the gradient of Σ weights · nats with respect to ``logits`` [n, vocabulary];
    both float32.
    """
    log_p = functional.log_softmax(logits, -1, dtype=torch.float32)
    nats = -log_p.gather(1, targets[:, None]).squeeze(1)
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return nats, log_p.exp_().add_(hit, alpha=-1).mul_(weights[:, None])


def kl_and_gradient(
    logits: torch.Tensor, log_p: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(p ‖ softmax(logits)) [n], and the gradient of Σ weights · KL with respect to ``logits``
    [n, vocabulary], weights · (softmax(logits) − p); both float32.
    """
    log_q = functional.log_softmax(logits, -1, dtype=torch.float32)
    p = log_p.exp()
    divergence = (p * (log_p - log_q)).sum(-1)
    return divergence, log_q.exp_().sub_(p).mul_(weights[:, None])


def _head_loss(
    head: nn.Linear,
    gradient: Gradient,
    rows: int | None,
    hidden: torch.Tensor,
    targets: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    device, rows = hidden.device.type, rows or ROWS.get(hidden.device.type, 256)
    # which does not know functions of ours
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    weight = head.weight.to(hidden.dtype)
    if targets is None:
        parts = [_logits(part, weight).float().log_softmax(-1) for part in hidden.split(rows)]  # type: ignore[no-untyped-call]
        return torch.cat(parts)
    if targets.is_floating_point():
        gradient = kl_and_gradient
    if weights is None:
        return torch.cat(
            [
                functional.cross_entropy(_logits(part, weight).float(), aims, reduction="none")
                for part, aims in _chunks(rows, hidden, targets)
            ]
        )
    loss, nats = _WeightedNats.apply(hidden, weight, targets, weights, gradient, rows)  # type: ignore[no-untyped-call]
    return loss, nats


def _chunks(rows: int, *tensors: torch.Tensor) -> Any:
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)  # type: ignore[no-untyped-call]


def _logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In float32 where a GPU's product can give them: they are summed up so in any case, and
    rounding them is noise of some percent.
    """
    if hidden.device.type == "cuda" and hidden.dtype != torch.float32:
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return hidden @ weight.T


class _WeightedNats(torch.autograd.Function):
    """(hidden [n, size], weight [vocabulary, size], targets, weights [n]) → Σ weights · nats, and
    nats [n]; float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        gradient: Gradient,
        rows: int,
    ) -> Any:
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        nats, done = [], 0
        for part, aims, scale in _chunks(rows, hidden, targets, weights):
            found, of_logits = gradient(_logits(part, weight), aims, scale)
            of_logits = of_logits.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(of_logits, weight, out=of_hidden[done : done + len(part)])
            if of_weight is not None:
                of_weight.addmm_(of_logits.T, part)
            nats.append(found)
            done += len(part)
        ctx.gradients = of_hidden, of_weight
        every = torch.cat(nats)
        ctx.mark_non_differentiable(every)
        return (every * weights).sum(), every

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, of_loss: torch.Tensor, _: torch.Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        return (
            *(None if one is None else one.mul_(of_loss) for one in gradients),
            None,
            None,
            None,
            None,
        )
