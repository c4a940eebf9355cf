"""Attention over rows of samples, none of which sees another: chosen once, when a model is loaded,
and read from the model after that.

| kind | what runs | where |
|---|---|---|
| ``varlen`` | torch's variable-length flash attention, no mask at all | GPUs, bf16 or fp16 |
| ``flex`` | transformers' FlexAttention with a block mask, compiled | GPUs |
| ``sdpa`` | transformers' SDPA with a block-diagonal mask, [T, T] | anywhere |
| ``padded`` | one sample per row, padded on the right; causal attention never looks there |
anywhere |

The first three are packed: several samples one after another in one row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flex_attention_mask, sdpa_mask

from versatune_ray.errors import UserError

Kind = Literal["padded", "sdpa", "flex", "varlen"]
# Names under which transformers knows them; of our own, so that a model says which kind it was
# loaded for.
IMPLEMENTATION: dict[Kind, str] = {
    "padded": "versatune_padded",
    "sdpa": "versatune_sdpa",
    "flex": "versatune_flex_attention",
    "varlen": "versatune_varlen",
}
# Before torch 2.12 grouped heads need not be asked for.
_GROUPED: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}
)
# What transformers passes on to every attention function, and says nothing about what is attended
# to.
_HARMLESS = frozenset(
    {
        "position_ids",
        "cache_position",
        "cache",
        "past_key_values",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
    }
)


def choose(asked: str, device: torch.device, bf16: bool) -> Kind:
    """``auto`` is the fastest that needs nothing but torch.

    Raises:
        UserError: the device has no backward pass for what was asked, or not in this precision.
    """
    if asked == "auto":
        return "padded" if device.type == "cpu" else "varlen" if bf16 else "sdpa"
    if asked == "varlen" and not bf16:
        raise UserError(
            "training.attention=varlen: flash attention knows no float32; write "
            "training.precision=bf16, or choose sdpa"
        )
    if asked in ("flex", "varlen") and device.type != "cuda":
        raise UserError(
            f"training.attention={asked}: needs a GPU; choose padded (fastest on a CPU) or sdpa"
        )
    return asked  # type: ignore[return-value]


def kind_of(model: PreTrainedModel) -> Kind:
    """The kind that ``model`` was loaded for; one that something else loaded attends as its rows
    are padded.

    Raises:
        ValueError: it attends in a way that knows nothing of rows of several samples, nor of our
            masks.
    """
    name = model.config._attn_implementation
    kinds: dict[str, Kind] = {
        implementation: kind for kind, implementation in IMPLEMENTATION.items()
    } | {
        "sdpa": "padded",
        "eager": "padded",
    }
    if name not in kinds:
        raise ValueError(
            f"attention implementation {name!r}; load the model with training.model.load_model"
        )
    return kinds[name]


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    """What a kernel is not told would be lost in silence: attention sinks, soft caps, biases, a
    window under another name.
    """
    for name, value in given.items():
        if (
            value is not None
            and name not in _HARMLESS
            and not (name == "is_causal" and value is True)
        ):
            raise UserError(
                f"the model passes {name} to its attention, which training would lose; it cannot "
                f"be fine-tuned here"
            )


def _masked(
    forward: Callable[..., Any],
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,  # which the mask says
    **more: Any,
) -> Any:
    """A function of transformers', under a mask of transformers'."""
    _refuse_unknown(more)
    return forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout)


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
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Called by transformers with [1, heads, T, size]; returns [1, T, heads, size].

    cu_seq_lens_q: int32 [samples + 1], where each sample of the row begins, and the end;
    max_length_q: the longest.
    """
    _refuse_unknown(more | {"attention_mask": attention_mask})
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("varlen attention: no boundaries of the samples in the row")
    if dropout:
        raise UserError(
            "attention_dropout in the model's config.json is not supported by varlen attention; "
            "choose training.attention=sdpa"
        )
    # Under autocast rotary embeddings leave q and k in float32; flash attention takes neither that
    # nor a mixture.
    q, k, v = (states.to(value.dtype).transpose(1, 2)[0] for states in (query, key, value))
    out = varlen.varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q,
        scale=scaling, window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        **_GROUPED,
    )  # fmt: skip
    assert isinstance(out, torch.Tensor)
    return out[None], None


for _kind, _forward, _mask in (
    ("padded", sdpa_attention_forward, sdpa_mask),
    ("sdpa", sdpa_attention_forward, sdpa_mask),
    ("flex", flex_attention_forward, flex_attention_mask),
):
    AttentionInterface.register(IMPLEMENTATION[_kind], partial(_masked, _forward))  # type: ignore[index]
    AttentionMaskInterface.register(IMPLEMENTATION[_kind], _mask)  # type: ignore[index]
# No mask function: with one, transformers would look for packed samples in every micro-batch, and
# wait for the GPU's answer.
AttentionInterface.register(IMPLEMENTATION["varlen"], _varlen)
