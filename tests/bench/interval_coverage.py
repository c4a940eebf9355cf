"""How often the 95 % interval of a detected share holds what the judge would give on average, over
shares from 0.02 % to 50 %, 200 to 40,000 sequences and four judges.

usage: python tests/bench/interval_coverage.py [--quick]

Every draw has eleven domains at once, of the shares ``SHARES`` and one of the rest. The judges, and
what they give their most probable domain on average: ``sharp`` (0.99), ``good`` (0.88), ``diffuse``
(0.50), and ``biased`` (0.97), which takes 30 % of every domain for the one of 50 % and likes that
one anyway. A judge's answers are drawn from 20,000 per domain, so the mean that intervals should
hold is known exactly; a judge's errors move that mean, and undoing them is another matter
(``estimate=corrected``).

One line per judge: the ratio is the lowest coverage over 0.95, the detail percent per number of
sequences and share, and how much wider the interval is than plain Wilson's of the same variance.
1,000 draws have a standard error of 0.7 points at 95 %.

What came out, in percent (1,000 draws each):

| judge | n | 0.02 | 0.05 | 0.1 | 0.2 | 0.5 | 1 | 2 | 5 | 20 | 50 % |
|---|---|---|---|---|---|---|---|---|---|---|---|
| sharp | 200 | 99.2 | 99.4 | 99.3 | 99.5 | 98.2 | 98.4 | 95.5 | 95.5 | 95.5 | 95.2 |
| sharp | 400 | 99.6 | 98.7 | 99.3 | 99.2 | 98.5 | 96.1 | 96.0 | 95.2 | 95.7 | 95.5 |
| sharp | 2,000 | 98.9 | 99.0 | 97.7 | 95.1 | 97.1 | 96.0 | 95.4 | 95.8 | 94.8 | 96.2 |
| sharp | 10,000 | 99.2 | 97.5 | 95.9 | 94.8 | 94.2 | 95.1 | 93.7 | 93.7 | 95.4 | 95.4 |
| sharp | 40,000 | 97.0 | 94.8 | 92.0 | 95.4 | 95.1 | 94.9 | 93.5 | 95.7 | 94.7 | 94.9 |
| good | 200 | 98.1 | 98.5 | 98.4 | 99.0 | 98.0 | 98.1 | 95.7 | 95.3 | 94.8 | 95.2 |
| good | 400 | 98.6 | 98.6 | 98.6 | 99.3 | 98.1 | 97.0 | 96.0 | 93.9 | 95.2 | 95.7 |
| good | 2,000 | 96.9 | 96.6 | 96.8 | 95.3 | 95.7 | 95.1 | 96.1 | 95.5 | 95.4 | 96.3 |
| good | 10,000 | 94.4 | 95.4 | 94.9 | 94.7 | 94.3 | 94.8 | 94.0 | 94.3 | 95.7 | 95.0 |
| good | 40,000 | 94.0 | 95.0 | 94.2 | 94.6 | 94.6 | 94.2 | 94.0 | 96.0 | 95.2 | 94.8 |
| diffuse | 200 | 97.8 | 97.3 | 96.5 | 98.0 | 97.4 | 96.6 | 94.7 | 93.9 | 95.2 | 95.5 |
| diffuse | 400 | 95.0 | 94.8 | 95.6 | 94.2 | 93.9 | 95.4 | 93.6 | 95.1 | 95.3 | 95.0 |
| diffuse | 2,000 | 95.1 | 95.5 | 94.1 | 95.0 | 95.1 | 94.9 | 95.2 | 95.4 | 94.4 | 96.1 |
| diffuse | 10,000 | 95.8 | 94.5 | 95.2 | 95.4 | 94.8 | 94.0 | 96.4 | 94.4 | 96.7 | 94.1 |
| diffuse | 40,000 | 94.6 | 96.2 | 95.4 | 94.8 | 94.1 | 95.3 | 94.4 | 95.2 | 95.3 | 94.5 |
| biased | 200 | 99.4 | 99.5 | 98.8 | 98.2 | 97.5 | 97.5 | 98.3 | 96.5 | 95.0 | 94.6 |
| biased | 400 | 98.8 | 99.3 | 99.2 | 98.2 | 97.9 | 97.6 | 96.1 | 96.2 | 95.1 | 94.5 |
| biased | 2,000 | 99.2 | 98.8 | 98.2 | 97.7 | 96.6 | 96.1 | 94.5 | 94.2 | 96.2 | 96.2 |
| biased | 10,000 | 99.1 | 98.8 | 97.1 | 96.4 | 93.2 | 94.7 | 95.1 | 93.9 | 96.5 | 95.5 |
| biased | 40,000 | 95.6 | 95.1 | 93.7 | 96.0 | 94.9 | 95.7 | 93.2 | 94.8 | 95.2 | 94.9 |

The goal is 93 %, less two standard errors. The lowest, 92.0 (sharp, 40,000, 0.1 %), is chance: with
other draws the same place has 95.0. Up to about two expected sequences of a domain (share · n ≤ 2)
an interval that covers at least 93 % of the time covers up to 99.6: none, one or two are the only
answers, and each holds or misses as a whole. The diffuse judge's intervals are up to 1.12 times as
wide as Wilson's at 200 sequences and as wide from 400 on; the sharp judge's of 0.1 % are 18 times
as wide at 200 (which covered 42 %) and 1.8 times at 2,000.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

from versatune_ray.detection.distribution import estimate

Array = NDArray[np.float64]

SHARES = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2, 0.5)
SEQUENCES = (200, 400, 2_000, 10_000, 40_000)
JUDGES = ("sharp", "good", "diffuse", "biased")
DRAWS, BANK = 1_000, 20_000
LOWEST = 0.93
_ERROR = (LOWEST * (1 - LOWEST) / DRAWS) ** 0.5
_COMMON = SHARES.index(0.5)


def judged(kind: str, rng: np.random.Generator) -> Array:
    """Answers of a judge about texts of each domain, [k, BANK, k]."""
    k = len(SHARES) + 1
    own = np.eye(k)[:, None, :]
    if kind == "diffuse":
        weights = rng.standard_gamma(np.broadcast_to(1 + 9 * own, (k, BANK, k)))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
    size = {"sharp": 9.0, "good": 6.0, "biased": 8.0}[kind]
    logits = size * own + 1.5 * rng.normal(size=(k, BANK, k))
    if kind == "biased":
        logits[..., _COMMON] += 3
        taken = rng.random((k, BANK)) < 0.3
        logits[taken] = size * np.eye(k)[_COMMON] + 1.5 * rng.normal(size=(taken.sum(), k))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def coverage(bank: Array, n: int, draws: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Part of the draws whose interval holds the mean, and mean width over Wilson's, [k] each."""
    share = np.array([*SHARES, 1 - sum(SHARES)])
    truth, held, wider = share @ bank.mean(axis=1), np.zeros(len(share)), np.zeros(len(share))
    for _ in range(draws):
        domains = rng.choice(len(share), size=n, p=share)
        rows = bank[domains, rng.integers(0, BANK, n)]
        low, high = estimate(rows, np.zeros(n, dtype=np.int64), 1).ci95.T
        held += (low <= truth) & (truth <= high)
        wider += (high - low) / _wilson_width(rows)
    return held / draws, wider / draws


def _wilson_width(rows: Array) -> Array:
    mean, variance = rows.mean(axis=0), rows.var(axis=0)
    m = len(rows) * mean * (1 - mean) / variance
    z2 = 1.959964**2
    return np.asarray(2 * np.sqrt(z2 * (variance / len(rows) + z2 / (4 * m**2))) / (1 + z2 / m))


def parent(quick: bool) -> None:
    for kind in JUDGES:
        rng = np.random.default_rng(0)
        bank = judged(kind, rng)
        found: dict[int, Any] = {}
        lowest = []
        for n in SEQUENCES[:3] if quick else SEQUENCES:
            held, wider = coverage(bank, n, 30 if quick else DRAWS, rng)
            lowest += held[:-1].tolist()
            found[n] = {
                "percent": np.round(100 * held[:-1], 1).tolist(),
                "width_over_wilson": np.round(wider[:-1], 2).tolist(),
            }
            common.note(f"{kind}, {n:,} sequences: {found[n]['percent']}")
        detail = {
            "judge": kind,
            "most_probable": round(float(bank.max(axis=2).mean()), 3),
            "shares_percent": [100 * share for share in SHARES],
            "by_sequences": found,
        }
        ratios = [min(lowest) / 0.95]
        # the lowest of 50 figures that scatter
        goal = (LOWEST - 2 * _ERROR) / 0.95
        common.report("interval_coverage", ratios, round(goal, 3), detail)


if __name__ == "__main__":
    common.run(__doc__, parent, {})
