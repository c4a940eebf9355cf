"""Mixers of others that were published since 2024, as policies: formula, published defaults, and
what differs here.

What some of them carry from step to step follows from what was measured so far (``Feedback``), so
that none has state of its own. Those that probe are in ``probing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray
from versatune_ray.mixture.feedback import Feedback
from versatune_ray.mixture.rules import Rival, exponentiated, mixed, positive, share, whole
from versatune_ray.mixture.shares import check_shares, normalised, proportional


@dataclass(frozen=True)
class DynamixSFT(Rival):
    """DynamixSFT (arXiv 2508.12116): a bandit around the proportional mixture p⁰, P_j = (1 −
    γ)·p⁰_j·exp(β·Q_j)/Σ + γ/k with Q_j ← α·Q_j + (1 − α)·r_j.

    r_j is, scaled to 0 … 1 over the domains, the relative fall of a domain's loss in one virtual
    step on a batch of it, (ℓ_before − ℓ_after)/(ℓ_before + 1e-8). The original takes that step;
    here it is taken to first order, lr·‖g_j‖²/(ℓ_j + 1e-8), where lr cancels, over the held-out
    loss.

    Attributes:
        gamma: γ, part of a uniform mixture; published: 0.3. alpha: α; published: 0.95. beta: β;
            published: 4 (1B) to 5 (8B). The original measures every 50 steps.

    Raises:
        ValueError: a setting out of range; ``update`` without gradients or budget.
    """

    needs_gradients: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True
    counts_records: ClassVar[bool] = True

    gamma: float = 0.3
    alpha: float = 0.95
    beta: float = 4.0

    def __post_init__(self) -> None:
        share("gamma", self.gamma)
        share("alpha", self.alpha)
        positive("beta", self.beta)

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        check_shares(shares, feedback.loss.size, feedback.names)
        now = feedback.needed("gradient_products", "DynamixSFT")
        start = proportional(feedback.needed("budget", "DynamixSFT").sizes)
        earlier = feedback.gradient_history
        losses = np.vstack([feedback.history, feedback.loss])[-len(earlier) - 1 :]
        quality = np.zeros(feedback.loss.size)
        for products, loss in zip([*earlier, now], losses, strict=True):
            fall = products.diagonal() / (loss + 1e-8)
            span = fall.max() - fall.min()
            reward = (fall - fall.min()) / span if span > 0 else np.zeros_like(fall)
            quality = self.alpha * quality + (1 - self.alpha) * reward
        return mixed(exponentiated(start, self.beta * quality), self.gamma)


@dataclass(frozen=True)
class Velocitune(Rival):
    """Velocitune (arXiv 2411.14318): more of what learns slowly, P_j ∝ P_j(t−1)·exp(V_j) with V_j =
    clip((ℓ_j − ℓ_target,j)/(ℓ₀,j − ℓ_target,j), 0, 1), the part of the way that is left.

    No settings. Its targets, from a scaling law, are the reference losses here. The original gives
    the average mixture as well (``mixture.start=trajectory``). A domain that began at its target
    or below it has nothing left (ours: of one that began below, the formula makes a positive part
    of the way back up).

    Raises:
        ValueError: ``update`` without a reference loss.
    """

    needs_reference: ClassVar[bool] = True
    multiplicative: ClassVar[bool] = True

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        target = feedback.needed("reference_loss", "Velocitune")
        first = feedback.history[0] if len(feedback.history) else feedback.loss
        way = first - target
        left = np.divide(feedback.loss - target, way, out=np.zeros_like(way), where=way > 0)
        return exponentiated(before, np.clip(left, 0, 1))


@dataclass(frozen=True)
class PiKE(Rival):
    """PiKE (arXiv 2502.06244): P_j ∝ P_j(t−1)·exp((ζ₁·‖g_j‖² − ζ₂·σ_j²/(2b)) / mean ‖g‖²), for
    domains whose gradients are all but orthogonal.

    σ_j² is the variance of the gradient over a domain's records, b the samples of a step. Here it
    comes from the difference of the gradients of two halves of the records that are measured, and
    ‖g_j‖² is the product of the two, which the noise of neither adds to (``Gradients``). The
    original does not divide, and tunes ζ for every model: squares of tens to thousands, as here,
    leave one domain at ζ = 1.

    Attributes:
        zeta1, zeta2: ours; of 0.03 and 0.1 the better one in the microworld.

    Raises:
        ValueError: a setting out of range; ``update`` without gradients, variances or budget.
    """

    needs_gradients: ClassVar[bool] = True
    needs_variances: ClassVar[bool] = True
    needs_budget: ClassVar[bool] = True
    multiplicative: ClassVar[bool] = True

    zeta1: float = 0.03
    zeta2: float = 0.03

    def __post_init__(self) -> None:
        positive("zeta1", self.zeta1)
        positive("zeta2", self.zeta2)

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        squares = feedback.needed("gradient_products", "PiKE").diagonal()
        variances = feedback.needed("gradient_variances", "PiKE")
        batch = feedback.needed("budget", "PiKE").batch_size
        mean = float(squares.mean())
        told = self.zeta1 * squares - self.zeta2 * variances / (2 * batch)
        return exponentiated(before, told / mean) if mean > 0 else before


@dataclass(frozen=True)
class RandB(Rival):
    """Balance of R&B (arXiv 2505.00358): P = softmax(λ·G·p_e/‖G·p_e‖), G the products of the
    domains' gradients, p_e the shares that are wanted in evaluation.

    Its other half, domains made anew by k-means, is a matter of the records. The original sums the
    gradients of the steps between; here they are measured at each adjustment.

    Attributes:
        strength: λ; 1 is ours, the paper names none that we could verify. wanted: p_e, [k]; none:
            uniform, as published.

    Raises:
        ValueError: a setting out of range; ``update`` without gradients, or with ``wanted`` of
            another number of domains.
    """

    needs_gradients: ClassVar[bool] = True

    strength: float = 1.0
    wanted: Sequence[float] | None = None

    def __post_init__(self) -> None:
        positive("strength", self.strength)
        if self.wanted is not None:
            check_shares(self.wanted)

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        products = feedback.needed("gradient_products", "R&B")
        k = before.size
        wanted = np.full(k, 1 / k) if self.wanted is None else check_shares(self.wanted, k)
        helps = products @ wanted
        length = float(np.linalg.norm(helps))
        return exponentiated(np.ones(k), self.strength * helps / length) if length > 0 else before


@dataclass(frozen=True)
class Ideal(Rival):
    """IDEAL (arXiv 2505.12762) without its Hessian: the size of domain j × (1 + β_j), with β ∝
    g·g_j of a held-out gradient g, the largest |β| given.

    The original goes by g·H⁻¹·g_j and trains anew in each of its rounds; here a round is an
    adjustment of one run, after which shares stay. Start it with the sizes, ``proportional``.

    Attributes:
        largest: of |β|; published: 0.15. rounds: adjustments that move shares; published: 2.

    Raises:
        ValueError: a setting out of range; ``update`` without the held-out products.
    """

    needs_held_out_gradient: ClassVar[bool] = True
    multiplicative: ClassVar[bool] = True

    largest: float = 0.15
    rounds: int = 2

    def __post_init__(self) -> None:
        share("largest", self.largest)
        whole("rounds", self.rounds, 1)

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        helps = feedback.needed("held_out_products", "IDEAL")
        most = float(np.abs(helps).max())
        if most == 0 or len(feedback.history) > self.rounds:
            return before
        return normalised(before * (1 + self.largest * helps / most))


@dataclass(frozen=True)
class MSFT(Rival):
    """mSFT (arXiv 2603.21606): a domain whose held-out loss has passed its minimum leaves the
    mixture for good; the others divide its share in proportion to theirs.

    The original goes back to the best checkpoint of the domain that leaves and continues from
    there. Here the weights go on, so that what was learned past the minimum is not undone; and a
    domain leaves by itself, where the original lets the first one go and starts anew. If all have
    left, the last to leave stay.

    Attributes:
        patience: measurements above the minimum after which a domain leaves; 1 is ours. The
            original sets a budget of steps in its place, by whose end each domain's peak is known,
            and goes by a metric of the task, measured every quarter of an epoch.

    Raises:
        ValueError: a setting out of range.
    """

    multiplicative: ClassVar[bool] = True

    patience: int = 1

    def __post_init__(self) -> None:
        whole("patience", self.patience, 1)

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        losses = np.vstack([feedback.history, feedback.loss])
        lowest, at = losses[0].copy(), np.zeros(before.size, dtype=np.int64)
        stays = np.ones(before.size, dtype=np.bool_)
        for row, loss in enumerate(losses):
            # as low counts too: with training feedback a domain that was not drawn keeps its loss
            better = loss <= lowest
            lowest[better], at[better] = loss[better], row
            left = stays & (row - at < self.patience)
            if not before[left].any():
                break
            stays = left
        return normalised(np.where(stays, before, 0.0))
