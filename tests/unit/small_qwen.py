"""What tests of frozen parts, soft masks and importance train: a random Qwen2 of four layers."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from versatune_ray.settings.recipe import Recipe

CPU = torch.device("cpu")
EVEN = np.array([0.5, 0.5])
RECIPE = Recipe(
    60,
    batch_size=4,
    micro_batch_tokens=200,
    learning_rate=1e-2,
    warmup=0.1,
    weight_decay=0.1,
    max_grad_norm=1.0,
    seed=3,
)


def qwen() -> PreTrainedModel:
    """Four query heads that share two key-value heads, and biases on all three."""
    torch.manual_seed(1)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=64, tie_word_embeddings=False, initializer_range=0.1,
        )
    )  # fmt: skip


PROJECTIONS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
