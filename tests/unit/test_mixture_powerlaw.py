"""PowerLaw: curves that are fitted, and a budget that is spent where it lowers the mean most."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from versatune_ray.mixture import Budget, Feedback, PowerLaw
from versatune_ray.mixture.powerlaw import fit, spend


def test_a_power_law_is_found_whatever_one_measurement_says() -> None:
    drawn = np.array([0, 10, 20, 40, 80.0])
    excess = np.append(5, 3 * drawn[1:] ** -0.5)
    # exponent 0.5 is also the prior: (2·0.5 + 3·0.5) / 5; and c = 3
    np.testing.assert_allclose(fit(drawn, excess, 0.5), (3, 0.5))
    # another prior weighs two measurements against three
    assert fit(drawn, excess, 1.0)[1] == pytest.approx((2 * 1.0 + 3 * 0.5) / 5)
    # one wild measurement moves three of six slopes: the median of the sorted six stays near
    wild = excess.copy()
    wild[2] *= 1.2
    assert fit(drawn, wild, 0.5)[1] == pytest.approx(0.5, abs=0.1)
    # nothing drawn: the prior through what is measured; at the reference: nothing to learn
    assert fit(np.zeros(2), np.array([2, 2.0]), 0.5) == (2.0, 0.5)
    # as if it had a step of 16 samples: 2 = c·16^(−0.5); so has one that had fewer
    assert fit(np.zeros(2), np.array([2, 2.0]), 0.5, 16) == (8.0, 0.5)
    assert fit(np.array([0, 4.0]), np.array([2, 2.0]), 0.5, 16) == pytest.approx((8.0, 0.5))
    assert fit(drawn, np.array([5, 3, 2, 1, 0.0]), 0.5)[0] == 0.0
    # a loss that rises with its samples has no exponent
    assert fit(drawn, np.array([1, 1, 2, 4, 8.0]), 0.5)[1] == 0.0


def test_a_budget_by_hand() -> None:
    # Gains c·a·n^(−a−1) are equal where n^(1.5) is in proportion to c: 8 : 1 in c is 4 : 1 in n.
    # With 10 drawn of each and 80 left, 100 in all, n = (80, 20), so m = (70, 10).
    m = spend(80, np.array([8.0, 1.0]), np.full(2, 0.5), np.full(2, 10.0), np.full(2, 1e9))
    np.testing.assert_allclose(m, [70, 10], rtol=1e-9)
    # A cap of 50 hands 20 on; a cap that is below the budget leaves samples over.
    m = spend(80, np.array([8.0, 1.0]), np.full(2, 0.5), np.full(2, 10.0), np.array([50, 1e9]))
    np.testing.assert_allclose(m, [50, 30], rtol=1e-9)
    # what is far ahead is not fed until the others are as far: 8 : 1 with (10, 90) drawn
    m = spend(80, np.array([8.0, 1.0]), np.full(2, 0.5), np.array([10.0, 90]), np.full(2, 1e9))
    np.testing.assert_allclose(m, [80, 0], atol=1e-6)


def test_a_budget_is_what_a_solver_finds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        c, a, n = rng.uniform(0.5, 5, 4), rng.uniform(0.1, 1.2, 4), rng.uniform(5, 50, 4)
        most = rng.uniform(20, 90, 4)
        m = spend(100, c, a, n, most)
        found = minimize(
            lambda x, c=c, a=a, n=n: float((c * (n + x) ** -a).sum()),
            np.full(4, 20.0),
            bounds=[(0, cap) for cap in most],
            constraints={"type": "eq", "fun": lambda x: x.sum() - 100},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert m.sum() == pytest.approx(100) and (m <= most + 1e-9).all()
        assert (c * (n + m) ** -a).sum() <= found.fun + 1e-8


def test_shares_spend_what_is_left() -> None:
    # The first example: batches of 1, 20 of 100 steps done, excess 8·n^(−1/2) and n^(−1/2).
    drawn = np.array([[0, 0], [5, 5], [10, 10.0]])
    rows = 1 + np.array([[9, 9], [8 * 5**-0.5, 5**-0.5], [8 * 10**-0.5, 10**-0.5]])
    told = Feedback(
        20,
        rows[2],
        history=rows[:2],
        reference_loss=[1, 1],
        budget=Budget(100, 1, np.array([1e6, 1e6]), drawn),
    )
    found = PowerLaw(strength=1).update([0.5, 0.5], told)
    np.testing.assert_allclose(found, [70 / 80, 10 / 80], rtol=1e-9)
    np.testing.assert_allclose(
        PowerLaw(strength=0.5).update([0.5, 0.5], told), [0.25 + 35 / 80, 0.25 + 5 / 80], rtol=1e-9
    )
    # at the end, and at the reference, shares stay
    over = Feedback(100, rows[2], reference_loss=[1, 1], budget=Budget(100, 1, drawn[2], drawn[:1]))
    mastered = Feedback(
        9, [1, 1], reference_loss=[1, 2], budget=Budget(100, 1, drawn[2], drawn[:1])
    )
    for one in (over, mastered):
        np.testing.assert_array_equal(PowerLaw().update([0.3, 0.7], one), [0.3, 0.7])


def test_a_domain_smaller_than_a_batch_may_still_be_drawn() -> None:
    # 4 passes over 10 records, of which 4 samples were drawn: 36 of the 19 · 128 that are left
    budget = Budget(20, 128, np.array([10.0, 5000, 5000]), np.array([[0, 0, 0], [4.0, 62, 62]]))
    feedback = Feedback(1, [50, 2, 2], None, [1, 1, 1], history=[[60, 2.2, 2.2]], budget=budget)
    found = PowerLaw().update([1 / 3] * 3, feedback)
    assert found[0] == pytest.approx(0.1 / 3 + 0.9 * 36 / (19 * 128))
