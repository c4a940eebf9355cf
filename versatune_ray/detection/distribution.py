"""From the judge's probabilities to the detected distribution, and the published ones by name. Pure NumPy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from versatune_ray.errors import UserError

Array = NDArray[np.float64]

# Percent, as published with the paper's code (VersaTune, arXiv 2411.11266); its sixth domain is called "other" there.
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
    """share [k], ci95 [k, 2] (95 % interval per share), repeats [T, k] (share per repeat, NaN where a repeat is empty)."""

    share: Array
    ci95: Array
    repeats: Array


def estimate(probabilities: Array, repeat: NDArray[np.int64], repeats: int) -> Estimate:
    """Algorithm 1: P^(t) = mean of the p_i of repeat t, P = mean over all sequences.

    Args:
        probabilities: the judge's probability per sequence and domain, shape [n, k]; rows sum to 1.
        repeat: repeat of each sequence, shape [n], in 0 … T-1.
        repeats: T.

    The interval is the normal one of the mean over the n independent sequences, cut to [0, 1].

    Raises:
        ValueError: fewer than two sequences.
    """
    n, k = probabilities.shape
    if n < 2:
        raise ValueError(f"{n} judged sequences; at least two are needed")
    share = probabilities.mean(axis=0)
    half = 1.959964 * probabilities.std(axis=0, ddof=1) / np.sqrt(n)
    counts = np.bincount(repeat, minlength=repeats)[:, None]
    sums = np.zeros((repeats, k))
    np.add.at(sums, repeat, probabilities)
    per_repeat = np.divide(sums, counts, out=np.full((repeats, k), np.nan), where=counts > 0)
    return Estimate(share / share.sum(), np.clip(np.stack([share - half, share + half], axis=1), 0, 1), per_repeat)


def total_variation(p: Array, q: Array) -> float:
    """Half the sum of absolute differences of two distributions."""
    return float(np.abs(p - q).sum() / 2)


def given(source: str, domains: Sequence[str]) -> dict[str, Any]:
    """A distribution that need not be detected: ``source`` is a published model's name or a ``distribution.json``.

    Raises:
        UserError: no such name or file, or its domains are not ``domains``.
    """
    if source.lower() in PUBLISHED:
        percent = dict(zip(_PUBLISHED_DOMAINS, PUBLISHED[source.lower()], strict=True))
        found: dict[str, Any] = {"model": source.lower(), "domains": list(percent), "share": list(percent.values()), "judge": "published"}
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise UserError(f"detection.distribution: {source!r} is neither a file nor one of {', '.join(PUBLISHED)}")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            values = [float(value) for value in found["share"]]
            names = [str(name) for name in found["domains"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no distribution (needs `domains` and `share`): {error}") from None
        if len(values) != len(names) or min(values) < 0 or not 0 < sum(values) < np.inf:
            raise UserError(f"{path}: `share` needs one number ≥ 0 for each of its {len(names)} domains")
    shares = dict(zip(found["domains"], found["share"], strict=True))
    if set(shares) != set(domains):
        raise UserError(f"detection.distribution: {source}: its domains {sorted(shares)} are not the configured ones {sorted(domains)}")
    total = sum(shares.values())
    kept = {key: found[key] for key in ("model", "samples", "judge") if key in found}
    return kept | {"domains": list(domains), "share": [shares[name] / total for name in domains], "given": source}
