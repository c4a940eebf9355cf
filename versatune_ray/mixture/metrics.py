"""What a domain still can teach (Eq. 2) and what the model forgot of it (Eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from versatune_ray.mixture.arrays import FloatArray, vector


def learnable_potential(
    loss: npt.ArrayLike, reference_loss: npt.ArrayLike, names: Sequence[str] | None = None
) -> FloatArray:
    """γ_j = max((ℓ_j − ℓ_ref,j) / ℓ_j, 0), Eq. 2 of VersaTune (arXiv 2411.11266).

    Args:
        loss: ℓ[k], in nats per response token (any unit that both losses share).
        reference_loss: ℓ_ref[k], the mastery ceiling, in the same unit.
        names: domain names, for errors.

    Returns:
        γ[k] in [0, 1], dimensionless. A loss of 0 has potential 0 (ours): nothing is left to learn.

    Raises:
        ValueError: a loss is NaN, infinite, negative or missing; its domain is named.
    """
    now = vector(loss, "loss", _length(loss, reference_loss, names), names)
    ceiling = vector(reference_loss, "reference loss", now.size, names)
    above = now > ceiling
    return np.divide(now - ceiling, now, out=np.zeros_like(now), where=above)


def forgetting_degree(
    loss: npt.ArrayLike, previous_loss: npt.ArrayLike, names: Sequence[str] | None = None
) -> FloatArray:
    """φ_j(t) = max((ℓ_j(t) − ℓ_j(t−1)) / ℓ_j(t−1), 0), Eq. 3 of VersaTune (arXiv 2411.11266).

    Args:
        loss: ℓ(t)[k], in nats per response token.
        previous_loss: ℓ(t−1)[k], in the same unit; at the first adjustment, the loss before step 1.
        names: domain names, for errors.

    Returns:
        φ[k] ≥ 0, dimensionless. After a previous loss of 0 (ours): 0 if the loss is still 0, else
        infinity, the limit of the formula, which closes any guard that averages it.

    Raises:
        ValueError: a loss is NaN, infinite, negative or missing; its domain is named.
    """
    now = vector(loss, "loss", _length(loss, previous_loss, names), names)
    before = vector(previous_loss, "previous loss", now.size, names)
    rising = now > before
    with np.errstate(divide="ignore", over="ignore"):
        return np.divide(now - before, before, out=np.zeros_like(now), where=rising)


def _length(first: npt.ArrayLike, second: npt.ArrayLike, names: Sequence[str] | None) -> int | None:
    """The longer of two loss vectors says how many domains there are, so that the shorter one's gap
    is the error.
    """
    if names is not None:
        return len(names)
    sizes = [np.size(values) for values in (first, second) if values is not None]
    return max(sizes) if sizes else None
