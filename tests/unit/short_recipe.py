"""Four steps whose numbers follow from the gradients alone: no warm-up, decay or clipping."""

from __future__ import annotations

from versatune_ray.settings.recipe import Recipe

RECIPE = Recipe(
    steps=4,
    batch_size=6,
    micro_batch_tokens=64,
    learning_rate=1e-2,
    warmup=0.0,
    weight_decay=0.0,
    max_grad_norm=0.0,
    seed=3,
)
