"""Policies that try mixtures out: in some intervals they train mostly on one domain after another,
and fit how much of which domain lowers which loss.

A cycle has k probes (``sweeps`` times), then ``steady`` intervals with the shares that these lead
to. Probe j has the part ``smoothing`` of a uniform mixture and the rest on domain j. If D[i, j] is
what the loss of domain i fell by in the interval of probe j, and column j of M its mixture, then A
= D·M⁻¹ has how much a share of 1 of domain j would lower the loss of i in such an interval. M is
the mixture that was asked for: a cap on passes that changes a probe is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray, check_targets
from versatune_ray.mixture.feedback import Feedback
from versatune_ray.mixture.rules import Rival, exponentiated, is_number, positive, share, whole
from versatune_ray.mixture.shares import check_shares, normalised, uniform


@dataclass(frozen=True)
class Probing(Rival):
    """What policies that probe have in common."""

    smoothing: float = 0.5
    sweeps: int = 1
    steady: int | None = None

    def __post_init__(self) -> None:
        if not is_number(self.smoothing) or not 0 <= self.smoothing < 1:
            raise ValueError(
                f"smoothing: {self.smoothing!r} is not a number of at least 0 and below 1"
            )
        whole("sweeps", self.sweeps, 1)
        if self.steady is not None:
            whole("steady", self.steady, 1)

    def update(self, shares: npt.ArrayLike, feedback: Feedback) -> FloatArray:
        k = check_shares(shares, feedback.loss.size, feedback.names).size
        losses = np.vstack([feedback.history, feedback.loss])
        probes = k * self.sweeps
        cycle = probes + (3 * probes if self.steady is None else self.steady)
        number = len(losses) - 2  # of this update; the first row is from before step 1
        if number < 0:
            return uniform(k)
        if number % cycle < probes:
            return self._probe(number % cycle % k, k)
        found = uniform(k)
        for begin in range(0, number - probes + 1, cycle):
            # the probe of update u trains between rows u + 1 and u + 2
            rows = losses[begin + 1 : begin + probes + 2]
            falls = -np.diff(rows, axis=0).reshape(self.sweeps, k, k).mean(axis=0).T
            found = self._answer(found, self._slopes(falls), losses[begin + probes + 1])
        return found

    def intervals(self, k: int) -> int:
        """The fewest between adjustments in which a run over k domains comes to train on an
        answer: one before the first probe, the probes, one after them.
        """
        return k * self.sweeps + 2

    def _probe(self, domain: int, k: int) -> FloatArray:
        mixture = np.full(k, self.smoothing / k)
        mixture[domain] += 1 - self.smoothing
        return normalised(mixture)

    def _slopes(self, falls: FloatArray) -> FloatArray:
        k = len(falls)
        mixtures = np.stack([self._probe(domain, k) for domain in range(k)], axis=1)
        return np.asarray(np.linalg.solve(mixtures.T, falls.T).T)

    def _answer(self, before: FloatArray, slopes: FloatArray, loss: FloatArray) -> FloatArray:
        raise NotImplementedError


@dataclass(frozen=True)
class Aioli(Probing):
    """Aioli (arXiv 2411.05735): P_j ∝ P_j(r−1)·exp(η·Σ_i A_ij) in round r, from uniform, A from
    probes (see the module), shifted up to 0 where an entry is below, and divided by its sum, as the
    public code's runs have it.

    The original draws its probes in random order and spends a part of every round on them; here
    they go by turns, an interval between two adjustments each.

    Attributes:
        eta: η > 0; published: 0.1 to 0.5, tuned. smoothing: of probes; ours. sweeps: over the
            domains in each round; published: 1 to 6, of 4 to 5 steps a probe, here 1, for
            adjustments are few. steady: intervals of a round without probes; none: three times
            those with.

    Raises:
        ValueError: a setting out of range.
    """

    eta: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("eta", self.eta)

    def _answer(self, before: FloatArray, slopes: FloatArray, loss: FloatArray) -> FloatArray:
        gains = slopes - min(float(slopes.min()), 0.0)
        total = float(gains.sum())
        return exponentiated(before, self.eta * gains.sum(axis=0) / total) if total > 0 else before


@dataclass(frozen=True)
class Constrained(Probing):
    """Expansion by a program, as DynaMiCS (arXiv 2605.10770) has it: shares that lower the targets'
    loss most while no other domain's loss rises by more than a bound.

    With A from probes (see the module): maximise Σ_{t a target} (A·P)_t subject to −(A·P)_i ≤
    bound·ℓ_i for every other domain i, Σ P = 1 and Σ_t P_t ≤ max_share. A linear program. Where no
    mixture keeps the bound, one that hardly misses it more than it has to. Of the original we know
    the abstract only: which slopes, bounds and solver it has may differ.

    Attributes:
        targets: indices of the domains to expand. bound: rise of another domain's loss per
            interval, as a part of it; 0 is ours. max_share: ceiling of the targets' total.
            smoothing, sweeps, steady: as of ``Aioli``.

    Raises:
        ValueError: a setting out of range; ``update`` with a target ≥ k.
    """

    # has no default among those of its parent that have one, but is always named
    targets: Sequence[int] = (0,)
    bound: float = 0.0
    max_share: float = 0.95
    multiplicative: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_targets(self.targets)
        if not is_number(self.bound) or not (0 <= self.bound < np.inf):
            raise ValueError(f"bound: {self.bound!r} is not a finite number of at least 0")
        share("max_share", self.max_share)

    def _answer(self, before: FloatArray, slopes: FloatArray, loss: FloatArray) -> FloatArray:
        from scipy.optimize import linprog  # a quarter of a second that few runs need

        k = before.size
        targets = np.zeros(k, dtype=np.bool_)
        targets[list(check_targets(self.targets, k))] = True
        # last variable: what the bounds are missed by, dearer than any gain
        dear = 1e3 * (1 + float(np.abs(slopes).max()))
        rows = np.hstack([-slopes[~targets], -np.ones((k - targets.sum(), 1))])
        limits = self.bound * loss[~targets]
        if not targets.all():
            rows = np.vstack([rows, np.append(targets.astype(np.float64), 0)])
            limits = np.append(limits, self.max_share)
        found = linprog(
            np.append(-slopes[targets].sum(axis=0), dear),
            A_ub=rows,
            b_ub=limits,
            A_eq=np.append(np.ones(k), 0)[None],
            b_eq=[1.0],
            bounds=[(0, None)] * (k + 1),
        )
        if found.x is None:
            return before
        return normalised(np.maximum(found.x[:k], 0))
