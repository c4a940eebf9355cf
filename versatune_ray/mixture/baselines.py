"""Loss-driven mixers of others, as policies: to compare with, on the same data, model, budget and
path.

What some of them carry from step to step follows from the losses measured so far
(``Feedback.history``), so that none has state of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray, square
from versatune_ray.mixture.feedback import Feedback
from versatune_ray.mixture.rules import Rival, exponentiated, is_number, mixed, positive, share
from versatune_ray.mixture.shares import check_shares, normalised


@dataclass(frozen=True)
class ExponentialLoss(Rival):
    """What the released code of VersaTune does in place of Algorithm 2: P_j ∝ P_j(t−1)·exp(ℓ_j(t)).
    No reference, no σ, no settings.
    """

    multiplicative: ClassVar[bool] = True

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        return exponentiated(before, feedback.loss)


@dataclass(frozen=True)
class _Excess(Rival):
    """Goes by what a loss has beyond a reference."""

    needs_reference: ClassVar[bool] = True

    eta: float = 1.0
    smoothing: float = 1e-4

    def __post_init__(self) -> None:
        positive("eta", self.eta)
        share("smoothing", self.smoothing)


@dataclass(frozen=True)
class DoReMi(_Excess):
    """DoReMi (Xie et al. 2023, arXiv 2305.10429, Algorithm 1): P_j ∝ P_j(t−1)·exp(η·max(ℓ_j −
    ℓ_ref,j, 0)), then (1 − c)·P_j + c/k.

    The original steers a small proxy model at every step and trains the large one on the average
    mixture; ``mixture.start=trajectory`` does the second half here. The reference losses are those
    of Eq. 2 here, of a model tuned on the starting mixture there. The original cuts the excess at 0
    token by token and then takes the mean; here the mean loss of a domain is cut, which is never
    larger.

    Attributes:
        eta: η > 0, step size; published: 1. smoothing: c, 0 ≤ c ≤ 1, part of a uniform mixture;
            1e-4 in the public code.

    Raises:
        ValueError: a setting out of range; ``update`` without a reference loss.
    """

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        return mixed(exponentiated(before, self.eta * feedback.excess_loss()), self.smoothing)


@dataclass(frozen=True)
class DynamicLoading(_Excess):
    """Dynamic batch loading of Sheared LLaMA (Xia et al. 2023, arXiv 2310.06694): P =
    softmax(log P(t−1) + η·(ℓ − ℓ_target)).

    As in the public code, and unlike in the paper's Algorithm 1 and in DoReMi, a domain below its
    target is pushed down: the difference is not cut at 0. Its target losses, fitted to a scaling
    law there, are the reference losses here.

    Attributes:
        eta: η > 0, step size; published: 1. smoothing: part of a uniform mixture; in the code:
            1e-4.

    Raises:
        ValueError: a setting out of range; ``update`` without a reference loss.
    """

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        if feedback.reference_loss is None:
            raise ValueError(
                f"step {feedback.step}: reference_loss is missing; it is the target of dynamic "
                f"loading"
            )
        return mixed(
            exponentiated(before, self.eta * (feedback.loss - feedback.reference_loss)),
            self.smoothing,
        )


@dataclass(frozen=True)
class OnlineDataMixing(Rival):
    """ODM (Albalak et al. 2023, arXiv 2312.02406): Exp3 with the loss as a domain's reward.

    R_j(n) = α·R_j(n−1) + (1 − α)·exp(ℓ_j(n)) at the n-th measurement, from R = 0; ε_t = min(1/k,
    √(ln k / (k·t))) after t optimizer steps; P_j = (1 − k·ε_t)·R_j / Σ R_i + ε_t. Shares do not
    depend on those before. The reward exp(ℓ) and shares in proportion to R are those of the public
    code. Every domain's loss is known at each measurement here, so that there is no importance
    weight.

    Attributes:
        alpha: α, 0 ≤ α < 1; 0.9 in the code base, 0.5 in its released runs. warmup: optimizer steps
            during which the shares stay; 2,000 of 100,000 in the paper, 0 here.

    Raises:
        ValueError: a setting out of range.
    """

    alpha: float = 0.9
    warmup: int = 0

    def __post_init__(self) -> None:
        if not is_number(self.alpha) or not 0 <= self.alpha < 1:
            raise ValueError(f"alpha: {self.alpha!r} is not a number of at least 0 and below 1")
        if not is_number(self.warmup, int) or self.warmup < 0:
            raise ValueError(f"warmup: {self.warmup!r} is not a whole number of at least 0")

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        k = before.size
        if feedback.step < self.warmup or k == 1:
            return before
        losses = np.vstack([feedback.history, feedback.loss])
        ages = np.arange(len(losses))[::-1]
        # a common factor cancels
        rewards = (self.alpha**ages)[:, None] * np.exp(losses - losses.max())
        explored = min(1 / k, float(np.sqrt(np.log(k) / (k * max(feedback.step, 1)))))
        return normalised((1 - k * explored) * normalised(rewards.sum(axis=0)) + explored)


@dataclass(frozen=True)
class SkillIt(Rival):
    """Skill-It (Chen et al. 2023, arXiv 2307.14430, Algorithm 1): P ∝ exp(η·A·Σ ℓ over the last
    ``window`` adjustments).

    The original begins at P ∝ exp(η·A·1); here at ``mixture.start``, which is the same where all
    rows of A sum to the same.

    Attributes:
        skills: A [k, k], ``skills[i][j]`` how much learning i helps j; None: the identity, each
            domain helps itself alone.
        eta: η > 0; published: 0.2 to 0.8. window: adjustments that count, at least 1; published: 3.

    Raises:
        ValueError: a setting out of range, or A is not [k, k] of finite numbers.
    """

    skills: Sequence[Sequence[float]] | None = None
    eta: float = 0.5
    window: int = 3

    def __post_init__(self) -> None:
        positive("eta", self.eta)
        if not is_number(self.window, int) or self.window < 1:
            raise ValueError(f"window: {self.window!r} is not a whole number of at least 1")
        if self.skills is not None:
            try:
                graph = np.asarray(self.skills, dtype=np.float64)
            except (TypeError, ValueError):
                graph = np.empty(0)
            if graph.ndim != 2 or graph.shape[0] != graph.shape[1] or not np.isfinite(graph).all():
                raise ValueError(
                    f"skills: {self.skills!r} are not as many rows of finite numbers as there are "
                    f"in each row"
                )

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        k = before.size
        graph = np.eye(k) if self.skills is None else square(self.skills, "skills", k)
        recent = np.vstack([feedback.history, feedback.loss])[-self.window :].sum(axis=0)
        return exponentiated(np.ones(k), self.eta * (graph @ recent))


@dataclass(frozen=True)
class DoGE(Rival):
    """DoGE (Fan et al. 2023, arXiv 2310.15393, Algorithm 1): more of the domains whose gradients
    help the others.

    P_j ∝ P_j(t−1)·exp(s_j / μ) with s_j = clip(η·Σ_{i≠j} g_i·g_j / mean_i ‖g_i‖, 0, 5η): the public
    code's form, which leaves out a domain's product with itself, divides by the mean norm and
    clips; the printed one is η·Σ_i g_i·g_j. Its gradients are clipped to norm 1 one by one before
    that, these are not. The original steers a small proxy model at every step
    with its learning rate for η, and trains the large one on the average mixture
    (``mixture.start=trajectory``).

    Attributes:
        eta: η > 0; 5e-4 is the published peak. Shares move by a factor of exp(5η/μ) per adjustment
            at most, which are few here.
        mu: μ > 0, strength of the pull to the shares before; 0.05 in the code.

    Raises:
        ValueError: a setting out of range; ``update`` without the products of gradients.
    """

    needs_gradients: ClassVar[bool] = True
    multiplicative: ClassVar[bool] = True

    eta: float = 5e-4
    mu: float = 0.05

    def __post_init__(self) -> None:
        positive("eta", self.eta)
        positive("mu", self.mu)

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        products = feedback.gradient_products
        if products is None:
            raise ValueError(
                f"step {feedback.step}: gradient_products are missing; DoGE goes by them"
            )
        own = products.diagonal()
        mean_norm = float(np.sqrt(own).mean())
        if mean_norm == 0:
            return before
        return exponentiated(
            before, self.eta * np.clip((products.sum(axis=0) - own) / mean_norm, 0, 5) / self.mu
        )
