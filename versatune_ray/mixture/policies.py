"""Policies: shares and feedback in, the next shares out. All are pure, frozen and without state of
their own.

Where updates multiply (``multiplicative``), a share of 0 stays 0 for ever: only δ on a target, or a
``min_share``, can bring a domain back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray, check_targets
from versatune_ray.mixture.feedback import Feedback
from versatune_ray.mixture.shares import check_shares, floored, normalised


@dataclass(frozen=True)
class GuardState:
    """Both sides of Algorithm 3's guard: open where ``forgetting`` (mean φ of the others) <
    ``bound`` (ε·γ of the targets).
    """

    open: bool
    forgetting: float
    bound: float


class Policy(Protocol):
    """How shares follow the losses: two methods and a flag, of a class named in ``mixture.policy``.

    More flags it may have, all False where it has none: ``needs_gradients``, ``needs_variances``,
    ``needs_held_out_gradient`` and ``needs_budget``, of what it goes by in ``Feedback``;
    ``multiplicative``, where it leaves a share of 0 at 0; ``starts``, if shares before step 1 are
    its own, of a method ``start(sizes[k])``; ``counts_records``, where they are parts of samples.
    """

    @property
    def needs_reference(self) -> bool:
        """Whether ``feedback.reference_loss`` has to be there; an attribute of the class."""
        ...

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        """Return the next shares [k]: ≥ 0, summing to 1 within 1e-12.

        Raises:
            ValueError: ``shares`` are no distribution over the feedback's domains, or a loss that
                the policy needs is None.
        """
        ...

    def guard_state(self, shares: npt.ArrayLike, feedback: Feedback) -> GuardState | None:
        """What ``update`` decides by at these inputs, for the log; None for a policy without a
        guard.
        """
        ...


def needs(policy: Policy | type[Policy], what: str) -> bool:
    """Whether a policy has the flag ``needs_{what}``: gradients, variances, held_out_gradient or
    budget of ``Feedback``.
    """
    inner = policy.policy if isinstance(policy, Floored) else policy
    return bool(getattr(inner, f"needs_{what}", False))


def apply_policy(
    policy: Policy, shares: npt.ArrayLike, feedback: Feedback
) -> tuple[GuardState | None, FloatArray]:
    """What a policy decides by, and the next shares [k].

    Raises:
        ValueError: it fails, or its answer is no distribution over the feedback's domains; its
            class is named.
    """
    try:
        state = policy.guard_state(shares, feedback)
        return state, check_shares(
            policy.update(shares, feedback), feedback.loss.size, feedback.names
        )
    except Exception as error:  # also of a class of somebody else
        named = policy.policy if isinstance(policy, Floored) else policy
        raise ValueError(
            f"policy {type(named).__name__}: {error or type(error).__name__}"
        ) from error


@dataclass(frozen=True)
class Floored:
    """Another policy with a floor under every share, for one that has none of its own.

    Attributes:
        policy: whose answer is lifted. min_share: the floor, within 0 and 1.
    """

    policy: Policy
    min_share: float

    @property
    def needs_reference(self) -> bool:
        return self.policy.needs_reference

    def start(self, sizes: npt.ArrayLike) -> FloatArray:
        own = self.policy.start(sizes)  # type: ignore[attr-defined]
        return floored(check_shares(own), self.min_share)

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        return floored(
            check_shares(self.policy.update(shares, feedback), feedback.loss.size, feedback.names),
            self.min_share,
        )

    def guard_state(self, shares: npt.ArrayLike, feedback: Feedback) -> GuardState | None:
        return self.policy.guard_state(shares, feedback)


@dataclass(frozen=True)
class Constant:
    """Shares never move: VersaTune Constant with detected shares, or any other fixed mixture."""

    needs_reference: ClassVar[bool] = False
    multiplicative: ClassVar[bool] = True

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        return check_shares(shares, feedback.loss.size, feedback.names)

    def guard_state(self, shares: npt.ArrayLike, feedback: Feedback) -> None:
        return None


@dataclass(frozen=True)
class VersaTune:
    """Algorithm 2 of VersaTune (arXiv 2411.11266): P'_j = P_j(t−1)·(1 + σ·γ_j(t)), then P_j(t) =
    P'_j / Σ P'_i.

    Attributes:
        sigma: σ ≥ 0, strength of the learnable potential. The paper prints no value; 1 is ours.
        min_share: floor under every share (ours), applied last; 0 is the paper's letter.
        heed_overfitting: True counts γ_j as 0 while ℓ_j is above its own lowest, after two passes
            over the domain's records (ours). A scarce domain that overfits has a rising held-out
            loss, which Eq. 2 reads as potential, so that the letter gives it ever more.

    Raises:
        ValueError: a setting out of range; ``update`` without a reference loss, or with k ·
            min_share > 1.
    """

    needs_reference: ClassVar[bool] = True
    multiplicative: ClassVar[bool] = True

    sigma: float = 1.0
    min_share: float = 0.0
    heed_overfitting: bool = False

    def __post_init__(self) -> None:
        _check("sigma", self.sigma, self.sigma >= 0, "≥ 0")
        _check("min_share", self.min_share, 0 <= self.min_share <= 1, "within 0 and 1")

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        return floored(
            before * (1 + self.sigma * _potential(feedback, self.heed_overfitting)), self.min_share
        )

    def guard_state(self, shares: npt.ArrayLike, feedback: Feedback) -> None:
        return None


@dataclass(frozen=True)
class Balanced:
    """Ours: shares in proportion to what each domain has left to learn, P_j(t) = (1 − λ)/k +
    λ·e_j(t) / Σ e_i(t).

    e_j = max(ℓ_j − ℓ_ref,j, 0) is the excess loss, in nats. Why in proportion: what is wanted is a
    low mean loss, (1/k)·Σ ℓ_j. Learning curves are power laws to a good approximation: after n_j
    samples e_j = c_j·n_j^(−a), so that one more sample gains −de_j/dn_j = a·e_j/n_j. No sample can
    be moved to advantage where these gains are equal in all domains, which is n_j ∝ e_j.

    What this mends in Algorithm 2, both seen in our studies (README):

    - Its γ_j = e_j/ℓ_j is relative: a domain that is all but mastered, at 0.008 nats over a ceiling
      of 0.001, has γ = 0.8 and keeps being fed, though nothing is left to gain.
    - Its updates multiply: a constant difference in γ moves shares further at every adjustment,
      until one domain has everything. Here a share that has done its work comes down by itself, and
      a domain that is forgotten comes back.

    Attributes:
        strength: λ, 0 ≤ λ ≤ 1; the rest, (1 − λ)/k for each, keeps what is mastered from being
            forgotten. 0 is uniform.
        min_share: floor under every share, applied last.

    Raises:
        ValueError: a setting out of range; ``update`` without a reference loss, or with k ·
            min_share > 1.
    """

    needs_reference: ClassVar[bool] = True

    strength: float = 0.9
    min_share: float = 0.0

    def __post_init__(self) -> None:
        _check("strength", self.strength, 0 <= self.strength <= 1, "within 0 and 1")
        _check("min_share", self.min_share, 0 <= self.min_share <= 1, "within 0 and 1")

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        """Shares do not depend on those before, but where nothing is left to learn they stay."""
        before = check_shares(shares, feedback.loss.size, feedback.names)
        excess = feedback.excess_loss()
        if excess.any():
            before = (1 - self.strength) / before.size + self.strength * normalised(excess)
        return floored(before, self.min_share)

    def guard_state(self, shares: npt.ArrayLike, feedback: Feedback) -> None:
        return None


@dataclass(frozen=True)
class Expansion:
    """Algorithm 3 of VersaTune (arXiv 2411.11266): raise the targets by δ while the other domains
    forget little.

    With P' as in Algorithm 2 and E the targets' total share before the update:

    - guard open, (1/k)·Σ_{j not a target} φ_j < ε·γ_e: each target keeps its share and gets its
      part of δ; the others divide the rest in proportion to P'. (The printed remainder is indexed
      by j; only P_e(t−1) makes the shares sum to 1.)
    - guard closed: the shares of Algorithm 2.

    Where the paper is silent, these are ours:

    - Several targets share δ in proportion to their P' (equally if all are 0). γ_e is then the mean
      of their γ weighted by P', which is the potential of the samples that δ would add. With one
      target both are the printed formula.
    - The targets' total stops at ``max_share``: δ is cut to what fits. A total already above it is
      not raised, by δ or by Algorithm 2: with the guard open each target keeps its share, with it
          closed the total may fall but not rise.
    - Where every domain is a target nobody can forget: the mean is 0.

    Attributes:
        targets: indices of the domains to expand, in domain order.
        sigma: σ ≥ 0, strength of the learnable potential. The paper prints no σ, δ or ε; the
            defaults are ours.
        delta: δ, raise of the targets' total per adjustment, 0 < δ < 1.
        epsilon: ε ≥ 0, forgetting tolerated per unit of target potential; 0 never raises.
        max_share: ceiling of the targets' total share, 0 < max_share ≤ 1; at 1 the others can
            vanish for good.
        min_share: floor under every share, applied last; it may take from the targets.
        guard: False raises at every adjustment, the paper's ablation; previous losses are then not
            needed.
        mean_over: "k" divides the others' forgetting by k as printed, "k-1" by the number of
            others.
        remainder: how the others divide what the targets leave: "potential", in proportion to P' as
            printed; "uniform", equally, the paper's other baseline.
        heed_overfitting: as in ``VersaTune``.

    Raises:
        ValueError: a setting out of range; ``update`` with a target ≥ k, without a reference loss,
            without a previous loss (unless ``guard`` is False), or with k · min_share > 1.
    """

    needs_reference: ClassVar[bool] = True
    multiplicative: ClassVar[bool] = True

    targets: Sequence[int]
    sigma: float = 1.0
    delta: float = 0.05
    epsilon: float = 1.0
    max_share: float = 0.95
    min_share: float = 0.0
    guard: bool = True
    mean_over: Literal["k", "k-1"] = "k"
    remainder: Literal["potential", "uniform"] = "potential"
    heed_overfitting: bool = False

    def __post_init__(self) -> None:
        check_targets(self.targets)
        _check("sigma", self.sigma, self.sigma >= 0, "≥ 0")
        _check("delta", self.delta, 0 < self.delta < 1, "above 0 and below 1")
        _check("epsilon", self.epsilon, self.epsilon >= 0, "≥ 0")
        _check("max_share", self.max_share, 0 < self.max_share <= 1, "above 0 and at most 1")
        _check("min_share", self.min_share, 0 <= self.min_share <= 1, "within 0 and 1")
        if self.mean_over not in ("k", "k-1"):
            raise ValueError(f"mean_over: {self.mean_over!r} is unknown; valid: 'k', 'k-1'")
        if self.remainder not in ("potential", "uniform"):
            raise ValueError(
                f"remainder: {self.remainder!r} is unknown; valid: 'potential', 'uniform'"
            )

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        before = check_shares(shares, feedback.loss.size, feedback.names)
        weights = self._weights(before, feedback)
        targets = self._mask(before.size)
        guard = self.guard_state(before, feedback)
        total = float(before[targets].sum())
        result = weights / weights.sum()
        if guard is None or guard.open:
            raised = max(min(self.delta, self.max_share - total), 0.0)
            result[targets] = before[targets] + raised * _parts(weights[targets])
        elif (after := float(result[targets].sum())) > (ceiling := max(self.max_share, total)):
            result[targets] *= ceiling / after
        rest = max(1 - float(result[targets].sum()), 0.0)
        if self.remainder == "uniform":
            weights[~targets] = 1.0
        if (others := float(weights[~targets].sum())) > 0:
            result[~targets] = weights[~targets] / others * rest
        return floored(result, self.min_share)

    def guard_state(self, shares: npt.ArrayLike, feedback: Feedback) -> GuardState | None:
        """Both sides of the guard, by which ``update`` decides; None if ``guard`` is False. Raises
        as ``update`` does.
        """
        if not self.guard:
            return None
        before = check_shares(shares, feedback.loss.size, feedback.names)
        targets = self._mask(before.size)
        others = int(np.count_nonzero(~targets))
        terms = before.size if self.mean_over == "k" else max(others, 1)
        forgetting = float(feedback.forgetting_degree()[~targets].sum()) / terms
        parts = _parts(self._weights(before, feedback)[targets])
        bound = self.epsilon * float(parts @ _potential(feedback, self.heed_overfitting)[targets])
        return GuardState(open=forgetting < bound, forgetting=forgetting, bound=bound)

    def _weights(self, shares: FloatArray, feedback: Feedback) -> FloatArray:
        """P'_j = P_j(t−1)·(1 + σ·γ_j(t)), not normalised."""
        return shares * (1 + self.sigma * _potential(feedback, self.heed_overfitting))

    def _mask(self, k: int) -> npt.NDArray[np.bool_]:
        mask = np.zeros(k, dtype=np.bool_)
        mask[list(check_targets(self.targets, k))] = True
        return mask


def _potential(feedback: Feedback, heed_overfitting: bool) -> FloatArray:
    potential = feedback.learnable_potential()
    return np.where(feedback.overfits(), 0.0, potential) if heed_overfitting else potential


def _parts(weights: FloatArray) -> FloatArray:
    total = weights.sum()
    return weights / total if total > 0 else np.full(weights.size, 1 / weights.size)


def _check(name: str, value: float, valid: bool, rule: str) -> None:
    if not (valid and np.isfinite(value)):
        raise ValueError(f"{name}: {value} is not a finite number {rule}")
