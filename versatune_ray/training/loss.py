"""Negative log-likelihood of response tokens only, without ever holding the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

# Chunks of rows of logits, chosen by torch for the sizes at hand. From about this many logits on they are worth it.
_CHUNKED = torch.nn.LinearCrossEntropyOptions()
_WHOLE_LOGITS = 1 << 24


class ResponseLoss(nn.Module):
    """Decoder and output embedding as one module, so that data-parallel wrappers see one forward pass."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, kept: torch.Tensor, targets: torch.Tensor, **attention: Any) -> torch.Tensor:
        """Nats per target, float32 [n].

        Args:
            tokens: int64 [rows, length].
            kept: int64 [n], flat positions in ``tokens`` after which a response token follows.
            targets: int64 [n], those tokens.
            attention: what the attention needs to know of packed rows, ``position_ids`` and more (see ``attention``).
        """
        hidden = self.model.get_decoder()(input_ids=tokens, use_cache=False, **attention).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, kept)
        head = self.model.get_output_embeddings()
        if torch.is_autocast_enabled(hidden.device.type):  # the chunked loss is not among what autocast knows
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        options = _CHUNKED if hidden.shape[0] * head.weight.shape[0] > _WHOLE_LOGITS else None
        weight = head.weight.to(hidden.dtype)
        if options is None:
            return functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="none")
        return functional.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options).float()
