"""How good a judge is, and the shares without its confusions: both from texts whose domain is
known. NumPy and SciPy only.

A judge that takes a third of the law texts for general ones moves the detected distribution. Under
label shift (texts of one domain look alike, wherever they come from) the mean judge output is q =
Cᵀπ, with C the mean output per true domain and π the true shares; solving for π undoes the
confusion. This is Lipton et al. 2018 (arXiv 1802.03916) with probabilities instead of their hard
predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PSEUDO_RECORDS = 0.25  # per domain; see _means
# condition number beyond which a float64 solution has lost half its digits, and records never had
# as many
SINGULAR = 1e8
GROUPS = 1024  # rows beyond that many share their random weights; see _means


@dataclass(frozen=True)
class JudgeQuality:
    """A judge's answers on records of known domain.

    Attributes:
        confusion: [k, k], mean probability that the judge gives each domain (column) to records of
            a true domain (row).
        records: [k], records per true domain.
        accuracy: share of all records whose most probable domain is the true one (of equal ones,
            the first).
        recall: [k], the same among the records of each domain.
        log_loss: mean −log p of the true domain, in nats, p at least 1e-12; a judge that knows
            nothing has ln k.
        probabilities: [m, k], the judge's answers themselves.
        truth: [m], true domain of each.
    """

    confusion: Array
    records: NDArray[np.int64]
    accuracy: float
    recall: Array
    log_loss: float
    probabilities: Array
    truth: NDArray[np.int64]


@dataclass(frozen=True)
class Correction:
    """share [k] summing to 1, ci95 [k, 2]."""

    share: Array
    ci95: Array


def measure(probabilities: Array, truth: NDArray[np.int64], k: int) -> JudgeQuality:
    """Compare the judge's probabilities [m, k], rows summing to 1, with the true domains [m], in 0
    … k-1.

    Raises:
        ValueError: arrays that do not fit together, a true domain outside 0 … k-1, or one with
            fewer than two records (it is named).
    """
    if (
        probabilities.ndim != 2
        or probabilities.shape[1] != k
        or truth.shape != probabilities.shape[:1]
    ):
        raise ValueError(
            f"probabilities of shape {probabilities.shape} and truth of shape {truth.shape} are "
            f"not [m, {k}] and [m]"
        )
    if truth.size and not 0 <= truth.min() <= truth.max() < k:
        raise ValueError(
            f"truth: {truth.min()} … {truth.max()} are not all domains; valid are 0 to {k - 1}"
        )
    records = np.bincount(truth, minlength=k)
    if records.min() < 2:
        domain = int(records.argmin())
        raise ValueError(
            f"domain {domain} has {records[domain]} records; at least two are needed to measure "
            f"the judge"
        )
    right = probabilities.argmax(axis=1) == truth
    true_probability = np.maximum(probabilities[np.arange(truth.size), truth], 1e-12)
    return JudgeQuality(
        confusion=np.stack([probabilities[truth == domain].mean(axis=0) for domain in range(k)]),
        records=records,
        accuracy=float(right.mean()),
        recall=np.array([right[truth == domain].mean() for domain in range(k)]),
        log_loss=float(-np.log(true_probability).mean()),
        probabilities=probabilities,
        truth=truth,
    )


def corrected(
    share_probabilities: Array, quality: JudgeQuality, draws: int = 1000, seed: int = 0
) -> Correction:
    """The true shares π from the judge's probabilities [n, k] of the sequences: least squares of q
    = Cᵀπ with π ≥ 0, Σπ = 1.

    The 95 % interval takes in the chance of both the sequences and the records: q and every row of
    C are drawn anew ``draws`` times and π is solved for again, without π ≥ 0: it would pile the
    draws of small shares up at 0, where a bootstrap's percentiles are not valid (Andrews 2000).
    Instead the percentiles are cut to [0, 1], which costs no coverage: every true share is there.
    They hold ``share``.

    Args:
        share_probabilities: shape [n, k], independent sequences; rows sum to 1.
        quality: of the same judge, over the same domains in the same order.
        draws: of the interval.
        seed: of the draws.

    Raises:
        ValueError: fewer than two sequences, another number of domains, or C is singular: the judge
            cannot tell some domains apart.
    """
    confusion = quality.confusion
    k = len(confusion)
    if (
        share_probabilities.ndim != 2
        or share_probabilities.shape[1] != k
        or len(share_probabilities) < 2
    ):
        raise ValueError(
            f"share_probabilities: shape {share_probabilities.shape} is not [n, {k}] with n of at "
            f"least 2"
        )
    if not np.linalg.cond(confusion) < SINGULAR:
        first, second, distance = _closest(confusion)
        raise ValueError(
            "the judge cannot tell some domains apart, so its confusion cannot be undone: "
            f"its mean answers for domains {first} and {second} differ by {distance:.3g} (total "
            f"variation)"
        )
    share = _on_simplex(confusion, share_probabilities.mean(axis=0))
    rng = np.random.default_rng(seed)
    q = _means(share_probabilities, draws, rng)
    matrices = np.stack(
        [_means(quality.probabilities[quality.truth == domain], draws, rng) for domain in range(k)],
        axis=2,
    )
    drawn = np.linalg.solve(matrices, q[:, :, None])[:, :, 0]
    low, high = np.clip(np.percentile(drawn, [2.5, 97.5], axis=0), 0, 1)
    return Correction(share, np.stack([np.minimum(low, share), np.maximum(high, share)], axis=1))


def _on_simplex(confusion: Array, q: Array) -> Array:
    """The π [k] ≥ 0 with Σπ = 1 that minimises ‖Cᵀπ − q‖².

    There Cᵀπ − q = Aπ with A = Cᵀ − q1ᵀ. Minimising ‖Aπ‖² + (Σπ − 1)² over π ≥ 0 alone finds a
    multiple of the same π: for a given direction the best multiple leaves a² / (a² + 1), which
    grows with a = ‖Aπ‖ / Σπ. So no weight on the sum has to be chosen.
    """
    k = q.size
    from scipy.optimize import nnls

    solution, _ = nnls(
        np.vstack([confusion.T - q[:, None], np.ones(k)]), np.append(np.zeros(k), 1.0)
    )
    return np.asarray(solution / solution.sum(), dtype=np.float64)


def _means(rows: Array, draws: int, rng: np.random.Generator) -> Array:
    """Means that rows [m, k] like these might as well have had, [draws, k]; each sums to 1.

    Every row's deviation from the mean gets an exponential weight less its mean of 1, to first
    order Rubin's Bayesian bootstrap (1981): unlike the normal distribution it is skewed as rare
    answers are. An answer never seen in m records is not impossible, so each domain also gets
    PSEUDO_RECORDS of a row that is certain of it (ours). Without them the intervals of small shares
    cover far too rarely once sequences are many and records few; with the ½ of Jeffreys they cover
    too often. Neither moves the mean. Entries may fall below 0: cutting them off would shift it.
    """
    m, k = rows.shape
    mean = rows.mean(axis=0)
    deviations, certain = rows - mean, np.eye(k) - mean
    pseudo = (rng.standard_gamma(PSEUDO_RECORDS, (draws, k)) - PSEUDO_RECORDS) @ certain
    # Neighbours of 100,000s of sequences may share a weight: sums of independent rows vary and are
    # skewed as their rows are.
    sums = np.add.reduceat(deviations, np.arange(0, m, -(-m // GROUPS)))
    weights = rng.standard_exponential((draws, len(sums))) - 1
    return np.asarray(mean + (weights @ sums + pseudo) / m)


def _closest(confusion: Array) -> tuple[int, int, float]:
    """The two rows with the least total variation between them, and that."""
    k = len(confusion)
    return min(
        (
            (i, j, float(np.abs(confusion[i] - confusion[j]).sum() / 2))
            for i in range(k)
            for j in range(i + 1, k)
        ),
        key=lambda pair: pair[2],
    )
