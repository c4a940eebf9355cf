"""Negative log-likelihood of response tokens only, without ever holding the logits of a whole batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

# Torch's own choice of the chunk makes it tiny where targets are fewer than the hidden size: up to 35 times slower on a CPU.
_CHUNK = 256  # rows of logits at a time
_OPTIONS = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=_CHUNK, chunking_method=None)
_WHOLE_LOGITS = 1 << 24  # from so many logits on, chunks are worth it


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
        weight = head.weight.to(hidden.dtype)
        if len(hidden) <= _CHUNK or len(hidden) * len(weight) <= _WHOLE_LOGITS:
            return functional.cross_entropy(functional.linear(hidden, weight).float(), targets, reduction="none")
        return functional.linear_cross_entropy(hidden, weight, targets, reduction="none", options=_OPTIONS).float()
