"""What ranks and controller tell each other at an adjustment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gradients:
    """products: g_i · g_j [k, k]; where variances are asked for, ‖g_j‖² is free of the noise of the
    records that it was measured on. variances: of the gradient of one record, summed over weights,
    [k]; held_out: g_j · g of the mean held-out loss over domains, [k]; None: not asked for. The
    same on every rank; 0 of a domain that the recipe does not draw from.
    """

    products: Array | None
    variances: Array | None = None
    held_out: Array | None = None


@dataclass(frozen=True)
class Report:
    """What one rank tells at one adjustment. Sums are this rank's own part; the rest is the same on
    every rank.

    stage: the number of the stage that it belongs to, from 0.
    loss_sums, token_counts: held-out nats and their divisor (tokens or bytes) per domain [k]; None
    with training feedback. train_loss_sums, train_token_counts: the same of the training batches
    since the last adjustment. samples, tokens: samples and response tokens (where shares count all
    tokens, these) drawn per domain by all ranks since the last adjustment.
    passes: of this stage over the records that it draws from, so far. seconds: timings, for the log
    only.
    gradients: of the domains, where the stage's policy asks for them.
    """

    stage: int
    step: int
    epoch: float
    loss_sums: Array | None
    token_counts: Array | None
    train_loss_sums: Array
    train_token_counts: Array
    samples: NDArray[np.int64]
    tokens: NDArray[np.int64]
    passes: Array
    seconds: dict[str, float] = field(default_factory=dict)
    gradients: Gradients | None = None


@dataclass(frozen=True)
class Decision:
    """Numbered shares [k], the same for every rank, and for rank 0 the line for
    ``adjustments.jsonl``.
    """

    number: int
    share: Array
    line: dict[str, Any]


class Refused(ValueError):
    """What the controller cannot decide on, and could not in another attempt: a loss that is none,
    or a policy that fails.
    """
