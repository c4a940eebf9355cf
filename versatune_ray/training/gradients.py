"""What some policies ask about the domains' gradients, measured at an adjustment."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from versatune_ray.domains import Records
from versatune_ray.training.adjustment import Array, Gradients
from versatune_ray.training.batches import Samples
from versatune_ray.training.trainer import Trainer

_HELD_OUT = 2**32  # among the numbers of domains that seed draws


def measure(
    trainer: Trainer, records: int, variances: bool = False, held_out: bool = False
) -> Gradients:
    """The gradients of the mean loss over the response tokens of ``records`` of each domain's
    training records (fewer if it has fewer, but one for each rank), at the present weights, drawn
    anew at every step of the run without moving the sampler.

    With ``variances``, ‖g_j‖² is the product of the gradients of two halves, at least 0: that of
    their mean would be larger by the variance over ``records``.

    Costs a forward and a backward pass over k · ``records``, and host memory for k gradients; for
    variances, of two halves of them, 2k; for the held-out one, a pass and a gradient more.
    """
    k, halves = len(trainer.data), 2 if variances else 1
    drawn_from = [domain for domain in range(k) if trainer.records_of(domain)]
    taken: list[list[torch.Tensor]] = []
    parts = np.zeros((k, halves * len(drawn_from)))  # of the tokens of a domain's gradient
    counts = np.ones((k, halves))
    for domain in drawn_from:
        size = trainer.records_of(domain)
        count = max(min(records, size), halves * trainer.world)
        index = _draw(trainer, size, count, domain)
        for half, some in enumerate(np.array_split(index, halves)):
            samples = trainer.training_samples(np.full(len(some), domain), some)
            tokens = samples.response_tokens.sum()
            weights = np.zeros(k)
            weights[domain] = 1 / tokens
            parts[domain, len(taken)], counts[domain, half] = tokens, len(some)
            taken.append(trainer.gradient(samples, weights))
    if held_out:
        taken.append(trainer.gradient(*_validation(trainer, records)))
    found = trainer.parallel.products(taken)
    number = parts.shape[1]
    parts = np.divide(parts, parts.sum(axis=1, keepdims=True), where=parts > 0, out=parts)
    products = parts @ found[:number, :number] @ parts.T
    spread = None
    if variances:
        spread = np.zeros(k)
        for place, domain in enumerate(drawn_from):
            one, other = 2 * place, 2 * place + 1
            apart = found[one, one] + found[other, other] - 2 * found[one, other]
            # E‖g_a − g_b‖² = σ²·(1/n_a + 1/n_b)
            spread[domain] = max(apart, 0.0) / (1 / counts[domain]).sum()
            products[domain, domain] = max(found[one, other], 0.0)
    return Gradients(
        products,
        spread,
        parts @ found[:number, -1] if held_out else None,
    )


def _validation(trainer: Trainer, records: int) -> tuple[Samples, Array]:
    """Some held-out records of every domain, and the weights of their tokens [k]."""
    k = len(trainer.data)
    held: list[Records] = [domain.validation for domain in trainer.data]
    drawn = [
        _draw(trainer, len(one), max(min(records, len(one)), trainer.world), _HELD_OUT + domain)
        for domain, one in enumerate(held)
    ]
    samples = Samples(held, np.repeat(np.arange(k), list(map(len, drawn))), np.concatenate(drawn))
    tokens = np.bincount(samples.domain, samples.response_tokens, k)
    return samples, 1 / (k * tokens)


def _draw(trainer: Trainer, size: int, count: int, number: int) -> NDArray[np.int64]:
    draw = np.random.default_rng([trainer.recipe.seed, trainer.steps_done, number])
    return draw.choice(size, count, replace=count > size)
