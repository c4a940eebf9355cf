"""What a policy is told at one adjustment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture import metrics
from versatune_ray.mixture.arrays import FloatArray, square, vector

# passes over a domain's records from which a rising held-out loss means that they are learned by
# heart; before, they were hardly seen twice
REPEATED = 2.0


@dataclass(frozen=True, eq=False)
class Budget:
    """What a run has drawn, and may still draw; where it has several stages, the present one.

    Attributes:
        steps: optimizer steps planned. batch_size: samples per step.
        sizes: training records of each domain, [k].
        drawn: samples of each domain before every row of the history and now, [t + 1, k].
    """

    steps: int
    batch_size: int
    sizes: FloatArray
    drawn: FloatArray

    def of(self, domains: Sequence[int]) -> Budget:
        """What is told of some domains alone."""
        which = list(domains)
        return Budget(self.steps, self.batch_size, self.sizes[which], self.drawn[:, which])


@dataclass(eq=False, init=False)
class Feedback:
    """The losses of one adjustment, validated, in domain order; the arrays are read-only.

    Attributes:
        step: optimizer steps done so far, ≥ 0; where a run has several stages, those of the present
            one.
        loss: ℓ(t)[k] now, in nats per response token.
        previous_loss: ℓ(t−1)[k] at the adjustment before (the first time: before step 1), or None
            if unknown.
        reference_loss: ℓ_ref[k], the mastery ceiling, or None if unknown.
        history: losses [t, k] of the adjustments before this one, the oldest first (before step 1
            included); t may be 0. All state that a policy may need, so that none has to keep any.
        gradient_products: g_i · g_j of the domains' gradients now, [k, k], for a policy that asks
            for them (``needs_gradients``); or None.
        passes: over each domain's records so far, [k]; or None if unknown.
        budget: steps and samples of the run, or None if unknown.
        gradient_history: earlier gradient products, [t', k, k], the oldest first; those of the last
            t' rows of ``history``.
        gradient_variances: Σ over all weights of the variance of the gradient of one record's mean
            loss, [k] (``needs_variances``); or None.
        held_out_products: g_j · g of the gradient of the mean over domains of their held-out
            losses, [k] (``needs_held_out_gradient``); or None.
        names: domain names, for errors; or None.

    Raises:
        ValueError: a negative step; a loss or a number of passes is NaN, infinite, negative or
            missing (step and domain are named); or a product of gradients is no finite number.
    """

    step: int
    loss: FloatArray
    previous_loss: FloatArray | None
    reference_loss: FloatArray | None
    names: tuple[str, ...] | None
    history: FloatArray
    gradient_products: FloatArray | None
    passes: FloatArray | None
    budget: Budget | None
    gradient_history: FloatArray
    gradient_variances: FloatArray | None
    held_out_products: FloatArray | None

    def __init__(
        self,
        step: int,
        loss: npt.ArrayLike,
        previous_loss: npt.ArrayLike | None = None,
        reference_loss: npt.ArrayLike | None = None,
        names: Sequence[str] | None = None,
        history: npt.ArrayLike = (),
        gradient_products: npt.ArrayLike | None = None,
        passes: npt.ArrayLike | None = None,
        budget: Budget | None = None,
        gradient_history: Sequence[npt.ArrayLike] | FloatArray = (),
        gradient_variances: npt.ArrayLike | None = None,
        held_out_products: npt.ArrayLike | None = None,
    ) -> None:
        if index(step) < 0:
            raise ValueError(f"step: {step} is negative")
        known = None if names is None else tuple(names)
        k = len(known) if known is not None else vector(loss, f"step {step}: loss").size

        def read(values: npt.ArrayLike, what: str) -> FloatArray:
            array = vector(values, f"step {step}: {what}", k, known)
            array.flags.writeable = False
            return array

        def known_as(values: npt.ArrayLike | None, what: str) -> FloatArray | None:
            return None if values is None else read(values, what)

        rows = [
            read(row, f"history, row {number}")
            for number, row in enumerate(np.asarray(history, dtype=np.float64))
        ]
        products = None
        if gradient_products is not None:
            products = square(gradient_products, f"step {step}: gradient products", k)
            products.flags.writeable = False
        self.step = index(step)
        self.loss = read(loss, "loss")
        self.previous_loss = known_as(previous_loss, "previous loss")
        self.reference_loss = known_as(reference_loss, "reference loss")
        self.names = known
        self.history = np.stack(rows) if rows else np.empty((0, k))
        self.gradient_products = products
        self.passes = None if passes is None else read(passes, "passes")
        self.budget = budget
        if budget is not None and budget.drawn.shape != (len(rows) + 1, k):
            raise ValueError(
                f"step {step}: samples drawn {budget.drawn.shape} for {len(rows) + 1} rows of {k} "
                f"domains"
            )
        earlier = [
            square(one, f"step {step}: earlier gradient products", k) for one in gradient_history
        ]
        self.gradient_history = np.stack(earlier) if earlier else np.empty((0, k, k))
        self.gradient_variances = known_as(gradient_variances, "gradient variance")
        self.held_out_products = None
        if held_out_products is not None:
            self.held_out_products = np.array(held_out_products, dtype=np.float64)
            if self.held_out_products.shape != (k,) or not np.isfinite(held_out_products).all():
                raise ValueError(f"step {step}: held-out products: not {k} finite numbers")

    def needed(self, what: str, who: str) -> Any:
        """``what`` of these, where it is there.

        Raises:
            ValueError: it is None; ``who`` goes by it.
        """
        value = getattr(self, what)
        if value is None:
            verb, it = ("are", "them") if what[-2:] in ("ts", "es") else ("is", "it")
            raise ValueError(f"step {self.step}: {what} {verb} missing; {who} goes by {it}")
        return value

    def of(self, domains: Sequence[int], since: int = 0) -> Feedback:
        """What is told of some domains alone, in the order of ``domains``, with steps counted from
        ``since``.
        """
        which = list(domains)
        previous, reference, passes, variances, held_out = (
            None if values is None else values[which]
            for values in (
                self.previous_loss,
                self.reference_loss,
                self.passes,
                self.gradient_variances,
                self.held_out_products,
            )
        )
        names = None if self.names is None else [self.names[domain] for domain in which]
        products = (
            None if self.gradient_products is None else self.gradient_products[np.ix_(which, which)]
        )
        return Feedback(
            self.step - since,
            self.loss[which],
            previous,
            reference,
            names,
            self.history[:, which],
            products,
            passes,
            None if self.budget is None else self.budget.of(which),
            self.gradient_history[:, which][:, :, which],
            variances,
            held_out,
        )

    def excess_loss(self) -> FloatArray:
        """max(ℓ − ℓ_ref, 0)[k], in nats. Raises ``ValueError`` without a reference loss."""
        if self.reference_loss is None:
            raise ValueError(
                f"step {self.step}: reference_loss is missing; the excess loss needs it"
            )
        return np.maximum(self.loss - self.reference_loss, 0)

    def learnable_potential(self) -> FloatArray:
        """γ[k] (Eq. 2). Raises ``ValueError`` without a reference loss."""
        if self.reference_loss is None:
            raise ValueError(
                f"step {self.step}: reference_loss is missing; the learnable potential (Eq. 2) "
                f"needs it"
            )
        return metrics.learnable_potential(self.loss, self.reference_loss, self.names)

    def overfits(self) -> npt.NDArray[np.bool_]:
        """Where the loss is above its own lowest so far and the records were seen twice or more,
        [k]. A domain that is starved has a rising loss, too, but few passes; where these are not
        known, the rise alone counts.
        """
        rose = np.asarray(self.loss > self.history.min(axis=0, initial=np.inf))
        return rose if self.passes is None else rose & (self.passes >= REPEATED)

    def forgetting_degree(self) -> FloatArray:
        """φ[k] (Eq. 3). Raises ``ValueError`` without a previous loss."""
        if self.previous_loss is None:
            raise ValueError(
                f"step {self.step}: previous_loss is missing; the forgetting degree (Eq. 3) needs "
                f"it: measure before step 1 as well"
            )
        return metrics.forgetting_degree(self.loss, self.previous_loss, self.names)


def comparable(history: npt.ArrayLike, loss: npt.ArrayLike, trained: npt.ArrayLike) -> FloatArray:
    """``history`` [t, k] as ``loss`` [k] is to be compared with: what was measured otherwise, as
    the held-out losses before step 1 are where training losses are gone by, is given as the first
    that was measured alike (``loss`` itself, where none was before).

    Args:
        trained: which are training losses, [t + 1, k], those of ``loss`` last.
    """
    table = np.vstack([np.reshape(history, (-1, np.size(loss))), loss])
    kinds = np.asarray(trained, dtype=np.bool_)
    alike = kinds == kinds[-1]
    first = table[alike.argmax(axis=0), np.arange(table.shape[1])]
    found: FloatArray = np.where(alike, table, first)[:-1]
    return found


@dataclass(frozen=True)
class LossSums:
    """Per domain, shape [k]: summed negative log-likelihood in nats, and what it is divided by
    (tokens or bytes).
    """

    nats: FloatArray
    count: FloatArray

    @classmethod
    def zeros(cls, k: int) -> LossSums:
        return cls(np.zeros(k), np.zeros(k))

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(self.nats + other.nats, self.count + other.count)
