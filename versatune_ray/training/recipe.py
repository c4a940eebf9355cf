"""Plain values that the training core and the rest share; imports neither torch nor Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["nats/token", "nats/byte"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers of a training run, apart from model and data."""

    steps: int
    batch_size: int
    micro_batch_tokens: int
    learning_rate: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    unit: Unit = "nats/token"


@dataclass(frozen=True)
class LossSums:
    """Per domain, shape [k]: summed negative log-likelihood in nats, and what it is divided by (tokens or bytes)."""

    nats: NDArray[np.float64]
    count: NDArray[np.float64]

    @classmethod
    def zeros(cls, k: int) -> LossSums:
        return cls(np.zeros(k), np.zeros(k))

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(self.nats + other.nats, self.count + other.count)
