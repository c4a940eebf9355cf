"""One optimizer step: what it is made of, what came of it, and what cannot be mended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from versatune_ray.training.batches import MicroBatch, Samples

Array = NDArray[np.float64]


class Unrecoverable(Exception):
    """What another attempt would meet again: a loss or a gradient that is no number (the message
    names step, domains and records; the weights are those before the step), a sampler that has no
    more samples, or a decision that the controller refuses.
    """


@dataclass(frozen=True)
class StepStats:
    """An optimizer step, the same on every rank. lengths, responses: tokens and response tokens of
    its samples, [batch size].

    nats, count: summed over all ranks per domain [k], and what they are divided by (tokens or
    bytes). norm: of the gradient before clipping. rate: the learning rate. skipped: what
    ``on_nonfinite=skip`` left out, in words; None: nothing, the weights moved. terms: what
    ``training.keep`` adds to the loss and ``loss`` has not, by name: kl_to_base, the mean KL in
    nats per token before the step; distance_to_base, ‖θ − θ₀‖ before it.
    """

    lengths: NDArray[np.int64]
    responses: NDArray[np.int64]
    nats: Array
    count: Array
    norm: float
    rate: float
    skipped: str | None = None
    terms: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Mean over what all ranks trained on, in the unit of ``count``."""
        return float(self.nats.sum() / max(1.0, self.count.sum()))


@dataclass(frozen=True)
class Drawn:
    """A global batch, and this rank's micro-batches of it in host memory."""

    samples: Samples
    batches: list[MicroBatch]


def token_weights(samples: Samples, k: int, correction: float) -> Array:
    """What one response token of each domain counts in the loss of a batch, [k].

    The mean loss of domain j weighs as n_j^c · T_j^(1−c), for n_j samples of T_j response tokens
    and a correction c: 0 is the mean over tokens.
    """
    count = np.bincount(samples.domain, minlength=k)
    tokens = np.bincount(samples.domain, samples.response_tokens, k)
    weight = count**correction * tokens ** (1 - correction)
    weights: Array = np.divide(weight / weight.sum(), tokens, out=np.zeros(k), where=tokens > 0)
    return weights


def not_finite(losses: Iterable[str]) -> str:
    """What is not finite in a step, from the places of such losses on all ranks."""
    found = sorted(set(losses))
    if not found:
        return "a gradient is not finite, though every loss is"
    more = f"; and {len(found) - 8} more" if len(found) > 8 else ""
    return f"the loss is not finite on {'; '.join(found[:8])}{more}"
