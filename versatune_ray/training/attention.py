"""Attention over packed rows: several samples one after another in a row, none of which sees another.

| kind | what runs | where |
|---|---|---|
| ``varlen`` | torch's variable-length flash attention, no mask at all | GPUs, bf16 or fp16 |
| ``flex`` | transformers' FlexAttention with a block mask, compiled | GPUs |
| ``sdpa`` | transformers' SDPA with a block-diagonal mask, [T, T] | anywhere |
| ``padded`` | one sample per row, padded on the right; causal attention never looks there | anywhere |
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from versatune_ray.errors import UserError

Kind = Literal["padded", "sdpa", "flex", "varlen"]
IMPLEMENTATION: dict[Kind, str] = {"padded": "sdpa", "sdpa": "sdpa", "flex": "flex_attention", "varlen": "versatune_varlen"}


def choose(asked: str, device: torch.device) -> Kind:
    """``auto`` is the fastest that needs nothing but torch.

    Raises:
        UserError: the device has no backward pass for what was asked.
    """
    if asked == "auto":
        return "varlen" if device.type == "cuda" else "padded"
    if asked in ("flex", "varlen") and device.type != "cuda":
        raise UserError(f"training.attention={asked}: needs a GPU; choose padded (fastest on a CPU) or sdpa")
    return asked  # type: ignore[return-value]


def _varlen(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Called by transformers with [1, heads, T, size]; returns [1, T, heads, size].

    cu_seq_lens_q: int32 [samples + 1], where each sample of the row begins, and the end; max_length_q: the longest.
    """
    from torch.nn.attention.varlen import varlen_attn

    assert cu_seq_lens_q is not None and max_length_q is not None
    if dropout:
        raise ValueError("attention dropout is not supported by varlen attention; choose training.attention=sdpa")
    q, k, v = (states.transpose(1, 2)[0] for states in (query, key, value))
    out = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
        scale=scaling, window_size=(-1 if sliding_window is None else sliding_window - 1, 0), enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    return out[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """The boundaries say it all."""


AttentionInterface.register(IMPLEMENTATION["varlen"], _varlen)
AttentionMaskInterface.register(IMPLEMENTATION["varlen"], _no_mask)
