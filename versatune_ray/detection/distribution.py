"""From the judge's probabilities to the detected distribution, and the published ones by name.
NumPy and SciPy only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch
from versatune_ray.runs.thresholds import REPEATS_DIFFER, Z

Array = NDArray[np.float64]

# sequences of a domain below which their variance says too little: of none, nothing
RARE = 10

# Percent, as published with the paper's code (VersaTune, arXiv 2411.11266); its sixth domain is
# called "other" there.
_PUBLISHED_DOMAINS = ("law", "medicine", "finance", "science", "code", "general")
PUBLISHED = {
    "llama-2-7b": (5.72, 8.67, 6.54, 5.96, 8.14, 64.97),
    "llama-2-13b": (5.64, 7.85, 6.65, 6.09, 9.53, 64.24),
    "llama-3-8b": (1.94, 6.49, 2.89, 7.49, 55.58, 25.61),
    "qwen1.5-7b": (5.53, 8.44, 5.26, 21.64, 28.46, 30.67),
    "qwen2-7b": (10.61, 8.30, 4.31, 10.70, 41.29, 24.80),
    "qwen2.5-7b": (3.38, 5.53, 4.03, 8.33, 56.51, 22.22),
    "qwen2.5-14b": (2.21, 4.01, 4.06, 9.90, 62.78, 17.04),
}


@dataclass(frozen=True)
class Estimate:
    """What the judged sequences say.

    Attributes:
        share: [k], sums to 1.
        ci95: [k, 2], 95 % interval of each share by itself.
        repeats: [T, k], share per repeat, NaN where a repeat is empty.
        differ: p-value of the hypothesis that the repeats differ by the sampling of sequences only;
            1 with fewer than two repeats.
    """

    share: Array
    ci95: Array
    repeats: Array
    differ: float


def estimate(probabilities: Array, repeat: NDArray[np.int64], repeats: int) -> Estimate:
    """Algorithm 1: P^(t) = mean of the p_i of repeat t, P = mean over all sequences.

    Args:
        probabilities: the judge's probability per sequence and domain, shape [n, k]; rows sum to 1.
        repeat: repeat of each sequence, shape [n], in 0 … T-1.
        repeats: T.

    The intervals (ours) are Wilson's, with the number of yes-or-no answers that would vary as much
    as the probabilities do, and further where few sequences are a domain's (see ``_intervals``).
    Repeats that differ (p < 0.001) show that the sequences of one repeat are not independent: then
    the intervals are those of the repeats' means (t distribution), or the former where these reach
    further. ``tests/bench/interval_coverage.py`` has how often they cover.

    Raises:
        ValueError: fewer than two sequences.
    """
    n, k = probabilities.shape
    if n < 2:
        raise ValueError(f"{n} judged sequences; at least two are needed")
    share = probabilities.mean(axis=0)
    share = share / share.sum()
    counts = np.bincount(repeat, minlength=repeats)
    sums = np.zeros((repeats, k))
    np.add.at(sums, repeat, probabilities)
    per_repeat = np.divide(
        sums, counts[:, None], out=np.full((repeats, k), np.nan), where=counts[:, None] > 0
    )
    ci95 = _intervals(probabilities, share)
    differ = _differ(probabilities, per_repeat, counts)
    if differ < REPEATS_DIFFER:
        half = _half_width_of_repeats(share, per_repeat, counts)
        ci95 = np.stack(
            [np.minimum(ci95[:, 0], share - half), np.maximum(ci95[:, 1], share + half)], axis=1
        )
    return Estimate(share, np.clip(ci95, 0, 1), per_repeat, differ)


def half_width(found: Estimate) -> float:
    """Half the width of the widest 95 % interval."""
    return float((found.ci95[:, 1] - found.ci95[:, 0]).max() / 2)


def samples_needed(found: Estimate, probabilities: Array, tolerance: float) -> int:
    """Sequences with which ``half_width`` is expected to reach ``tolerance``; at least the n that
    there are.

    Args:
        found: the estimate from ``probabilities``.
        probabilities: shape [n, k], as in ``estimate``.
        tolerance: half-width, in share, > 0.

    Solves Wilson's half-width for n, at the present shares and variances; a rare domain's wider
    interval is expected to narrow as 1/n. Where the repeats differ,
    more sequences of the same repeats may not narrow the intervals; the answer then supposes that
    they do as 1/√n, which soon exhausts any cap.

    Raises:
        ValueError: ``tolerance`` is not above 0.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance: {tolerance} is not above 0")
    n, h, width = len(probabilities), tolerance, half_width(found)
    if width <= h:
        return n
    rare = n * width / h  # what the intervals of rare domains narrow by
    if found.differ < REPEATS_DIFFER:
        return int(np.ceil(n * (width / h) ** 2))
    # The positive root m of h = Z / (1 + Z²/m) · √(pq/m + Z²/4m²), a quadratic in m.
    pq = found.share * (1 - found.share)
    answers: Array = Z**2 * (pq - 2 * h**2 + np.sqrt(pq**2 + h**2 * (1 - 4 * pq))) / (2 * h**2)
    wilson = (answers / _answers_per_sequence(probabilities, found.share)).max()
    return int(np.ceil(max(rare, wilson)))


def _answers_per_sequence(probabilities: Array, share: Array) -> Array:
    """p(1−p)/s² ≥ 1, [k]: yes-or-no answers that say as much about a share as one probability does;
    1 where nothing varies.
    """
    variance, binary = probabilities.var(axis=0), share * (1 - share)
    # rounding alone leaves about 1e-33 in a constant column
    varies = (variance > 1e-20) & (binary > 0)
    answers: Array = np.divide(binary, variance, out=np.ones_like(share), where=varies)
    return answers


def _intervals(probabilities: Array, share: Array) -> Array:
    """95 % intervals of independent sequences, [k, 2]; what is rare may be a domain or all others.

    Wilson's, with two amendments for what is rare. Its end towards 0 is too near where answers are
    few (one of n excludes 0.18 / n): there Clopper and Pearson's one-sided 95 % limit is taken,
    much as Brown, Cai and DasGupta (2001) take the Poisson's. And a judge that is sure of itself
    gives a domain without a single sequence the same small probability n times, whose variance
    knows nothing of sequences that might have come: below ``RARE`` of them (probability above ½)
    the other end is at least where so many yes-or-no answers of n would put it, each worth what the
    judge's most probable domain has on average, less the share. For a judge that spreads its
    answers that is less than their own variance, and changes nothing.
    """
    n = len(probabilities)
    sure = probabilities.max(axis=1).mean()
    theirs = (probabilities > 0.5).sum(axis=0)
    m = n * _answers_per_sequence(probabilities, share)

    def ends(p: Array, count: NDArray[np.int64]) -> tuple[Array, Array]:
        low, high = _wilson(p, m).T
        yes = np.maximum(m * p, 1e-12)  # the inverse is not defined at 0
        from scipy import special

        low = np.minimum(low, special.betaincinv(yes, np.maximum(m - yes, 0) + 1, 0.05))
        part = count / n
        might = p + (sure - p) * (_wilson(part, np.full(len(p), float(n)))[:, 1] - part)
        return low, np.where(count < RARE, np.maximum(high, might), high)

    low, high = ends(share, theirs)
    low_of_others, high_of_others = ends(1 - share, n - theirs)
    return np.stack(
        [np.minimum(low, 1 - high_of_others), np.maximum(high, 1 - low_of_others)], axis=1
    )


def _wilson(p: Array, m: Array) -> Array:
    """Wilson's score interval (1927) for p [k] found from m [k] answers; shape [k, 2]."""
    centre = (p + Z**2 / (2 * m)) / (1 + Z**2 / m)
    half = Z / (1 + Z**2 / m) * np.sqrt(p * (1 - p) / m + Z**2 / (4 * m**2))
    return np.stack([centre - half, centre + half], axis=1)


def _differ(probabilities: Array, per_repeat: Array, counts: NDArray[np.int64]) -> float:
    """p-value of Σ_t n_t (P_t − P)ᵀ S⁺ (P_t − P) as χ² with (T − 1)·rank(S) degrees of freedom, S
    the covariance of the sequences.
    """
    filled = counts > 0
    mean = probabilities.mean(axis=0)
    deviations = probabilities - mean
    size, axes = np.linalg.eigh(deviations.T @ deviations / (len(probabilities) - 1))
    # rows sum to 1, so at least one direction is only rounding
    kept = size > max(1e-12 * size.max(), 1e-20)
    degrees = (np.count_nonzero(filled) - 1) * np.count_nonzero(kept)
    if degrees == 0:
        return 1.0
    projected = (per_repeat[filled] - mean) @ axes[:, kept]
    from scipy import stats

    return float(stats.chi2.sf((counts[filled, None] * projected**2 / size[kept]).sum(), degrees))


def _half_width_of_repeats(share: Array, per_repeat: Array, counts: NDArray[np.int64]) -> Array:
    """Of the 95 % t interval, [k], of a mean over T independent repeats weighted by their
    sequences.
    """
    filled = counts > 0
    repeats, weights = np.count_nonzero(filled), counts[filled, None] / counts.sum()
    variance = (
        repeats / (repeats - 1) * (weights**2 * (per_repeat[filled] - share) ** 2).sum(axis=0)
    )
    from scipy import stats

    return np.asarray(stats.t.ppf(0.975, repeats - 1) * np.sqrt(variance))


def total_variation(p: Array, q: Array) -> float:
    """Half the sum of absolute differences of two distributions."""
    return float(np.abs(p - q).sum() / 2)


def published_for(model: str, domains: Sequence[str]) -> tuple[str, Array] | None:
    """The published name and shares [k], summing to 1 and in the order of ``domains``, of a base
    model; None for any other.

    Args:
        model: Hugging Face id or path; its last part decides. Instruction-tuned variants and other
            sizes are other models.
        domains: must be the published six; "general" and the paper's "other" are the same one.
    """
    name = Path(model).name.lower().removeprefix("meta-").removesuffix("-hf")
    known = ["general" if domain == "other" else domain for domain in domains]
    if name not in PUBLISHED or sorted(known) != sorted(_PUBLISHED_DOMAINS):
        return None
    percent = dict(zip(_PUBLISHED_DOMAINS, PUBLISHED[name], strict=True))
    shares = np.array([percent[domain] for domain in known])
    return name, shares / shares.sum()


def given(source: str, domains: Sequence[str]) -> dict[str, Any]:
    """A distribution that need not be detected: ``source`` is a published model's name or a
    ``distribution.json``.

    Raises:
        UserError: no such name or file, or its domains are not ``domains``.
    """
    if source.lower() in PUBLISHED:
        percent = dict(zip(_PUBLISHED_DOMAINS, PUBLISHED[source.lower()], strict=True))
        found: dict[str, Any] = {
            "model": source.lower(),
            "domains": list(percent),
            "share": list(percent.values()),
            "judge": "published",
        }
    else:
        path = Path(fetch(source)).expanduser()
        if not path.is_file():
            raise UserError(
                f"detection.distribution: {source!r} is neither a file nor one of "
                f"{', '.join(PUBLISHED)}"
            )
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found.get("used") == "corrected":
                found["share"] = found["corrected"]["share"]
            values = [float(value) for value in found["share"]]
            names = [str(name) for name in found["domains"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: no distribution (needs `domains` and `share`): {error}"
            ) from None
        if len(values) != len(names) or min(values) < 0 or not 0 < sum(values) < np.inf:
            raise UserError(
                f"{path}: `share` needs one number ≥ 0 for each of its {len(names)} domains"
            )
    shares = dict(zip(found["domains"], found["share"], strict=True))
    if set(shares) != set(domains):
        raise UserError(
            f"detection.distribution: {source}: its domains {sorted(shares)} are not the "
            f"configured ones {sorted(domains)}"
        )
    total = sum(shares.values())
    kept = {key: found[key] for key in ("model", "samples", "judge") if key in found}
    return kept | {
        "domains": list(domains),
        "share": [shares[name] / total for name in domains],
        "given": source,
    }
