"""Shares of three domains, what is measured on them, and what Algorithm 2 makes of it by hand."""

import numpy as np

from versatune_ray.mixture import Feedback

SHARES = [0.5, 0.3, 0.2]
# γ = (0.5, 0, 0.5), so P' = (0.75, 0.3, 0.3), Σ 1.35; φ = (0, 0.25, 0)
FEEDBACK = Feedback(10, loss=[2, 2, 2], previous_loss=[2, 1.6, 2.5], reference_loss=[1, 2, 1])
ALGORITHM_2 = [0.75 / 1.35, 0.3 / 1.35, 0.3 / 1.35]


def close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def random_case(rng, k):
    shares = rng.dirichlet(np.full(k, 10 ** rng.uniform(-1, 1)))
    return shares, Feedback(1, rng.gamma(2, 1, k), rng.gamma(2, 1, k), rng.gamma(1, 1, k))
