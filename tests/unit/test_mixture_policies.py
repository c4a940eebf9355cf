"""Constant, Algorithm 2, the released rule and balanced shares; what holds for every policy."""

import numpy as np
import pytest
from policy_cases import ALGORITHM_2, FEEDBACK, SHARES, close, random_case

from versatune_ray.mixture import (
    Balanced,
    Constant,
    Expansion,
    ExponentialLoss,
    Feedback,
    Policy,
    VersaTune,
    uniform,
)


def test_constant_keeps_shares_bit_for_bit_and_needs_no_losses_but_the_current():
    shares = np.array([0.1, 0.2, 0.7])
    assert Constant().update(shares, Feedback(0, [1, 1, 1])).tolist() == shares.tolist()


def test_versatune_multiplies_by_the_learnable_potential():
    close(VersaTune().update(SHARES, FEEDBACK), ALGORITHM_2)
    # σ = 2: P' = (0.5·2, 0.3, 0.2·2) = (1, 0.3, 0.4), Σ 1.7
    close(VersaTune(sigma=2).update(SHARES, FEEDBACK), [1 / 1.7, 0.3 / 1.7, 0.4 / 1.7])
    close(VersaTune(sigma=0).update(SHARES, FEEDBACK), SHARES)


def test_versatune_with_equal_potentials_stays():
    # zero losses have no potential, neither have losses under their reference
    close(VersaTune().update(SHARES, Feedback(1, [0, 0, 0], reference_loss=[0, 1, 0])), SHARES)
    close(VersaTune().update(SHARES, Feedback(1, [1, 1, 1], reference_loss=[2, 3, 4])), SHARES)
    close(VersaTune().update(SHARES, Feedback(1, [2, 4, 8], reference_loss=[1, 2, 4])), SHARES)


def test_a_share_of_zero_stays_zero_without_a_floor():
    feedback = Feedback(1, [1, 9], reference_loss=[1, 0])
    assert VersaTune().update([1, 0], feedback).tolist() == [1, 0]
    close(VersaTune(min_share=0.1).update([1, 0], feedback), [0.9, 0.1])


def test_floors_come_after_the_update():
    # Algorithm 2 gives (0.556, 0.222, 0.222); under a floor of 0.25: 0.25 twice, 0.5 left
    close(VersaTune(min_share=0.25).update(SHARES, FEEDBACK), [0.5, 0.25, 0.25])
    with pytest.raises(ValueError, match=r"min_share: 0\.4 for each of 3 domains"):
        VersaTune(min_share=0.4).update(SHARES, FEEDBACK)


@pytest.mark.parametrize("k", [1, 2, 6, 200])
def test_every_update_is_a_distribution_within_its_bounds(k):
    rng = np.random.default_rng(k)
    for _ in range(150):
        shares, feedback = random_case(rng, k)
        targets = rng.permutation(k)[: rng.integers(1, k + 1)].tolist()
        floor, ceiling = rng.choice([0, 0.5 / k]), rng.uniform(0.3, 1)
        settings = {
            "sigma": rng.uniform(0, 5),
            "delta": rng.uniform(0.01, 0.9),
            "epsilon": rng.uniform(0, 2),
            "max_share": ceiling,
        }
        expansion = Expansion(targets, **settings, guard=bool(rng.integers(2)), min_share=floor)
        policies: list[Policy] = [Constant(), VersaTune(settings["sigma"], floor), expansion]
        kept = shares.copy()
        for policy in policies:
            after = policy.update(shares, feedback)
            assert after.dtype == np.float64 and after.shape == (k,)
            assert after.min() >= 0 and abs(after.sum() - 1) < 1e-12
            assert shares.tolist() == kept.tolist()
        assert after.min() >= floor - 1e-15
        if floor == 0:
            assert after[targets].sum() <= max(ceiling, shares[targets].sum()) + 1e-12


def test_policies_refuse_missing_losses():
    with pytest.raises(ValueError, match="reference_loss is missing"):
        VersaTune().update(SHARES, Feedback(1, [1, 1, 1]))
    with pytest.raises(ValueError, match="reference_loss is missing"):
        Expansion(targets=[0]).update(SHARES, Feedback(1, [1, 1, 1], previous_loss=[1, 1, 1]))
    with pytest.raises(ValueError, match="previous_loss is missing"):
        Expansion(targets=[0]).update(SHARES, Feedback(1, [1, 1, 1], reference_loss=[1, 1, 1]))


def test_policies_refuse_what_is_no_distribution_over_the_domains():
    for policy in (Constant(), VersaTune(), Expansion(targets=[0])):
        with pytest.raises(ValueError, match="2 values for 3 domains"):
            policy.update([0.5, 0.5], FEEDBACK)
        with pytest.raises(ValueError, match="not to 1"):
            policy.update([0.5, 0.5, 0.5], FEEDBACK)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sigma", -1),
        ("sigma", np.nan),
        ("sigma", np.inf),
        ("delta", 0),
        ("delta", 1),
        ("epsilon", -0.1),
        ("epsilon", np.inf),
        ("max_share", 0),
        ("max_share", 1.01),
        ("min_share", -0.1),
        ("min_share", 1.1),
        ("mean_over", "n"),
        ("targets", []),
        ("targets", [0, 0]),
        ("targets", [-1]),
        ("targets", ["law"]),
        ("targets", 1),
    ],
)
def test_settings_out_of_range_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}: "):
        Expansion(**{"targets": [0], setting: value})


def test_policies_without_a_guard_have_no_guard_state():
    assert Constant().guard_state(SHARES, FEEDBACK) is None
    assert VersaTune().guard_state(SHARES, FEEDBACK) is None


def test_policies_are_values():
    assert Expansion(targets=(2, 0)) == Expansion(targets=(2, 0), sigma=1.0)
    assert hash(VersaTune()) == hash(VersaTune(1.0))


def test_the_released_rule_multiplies_by_the_exponential_of_the_loss():
    # losses ln 2, ln 3, 0: weights 0.5·2, 0.3·3, 0.2·1 = 1, 0.9, 0.2; Σ 2.1
    feedback = Feedback(1, loss=[np.log(2), np.log(3), 0])
    close(ExponentialLoss().update(SHARES, feedback), [1 / 2.1, 0.9 / 2.1, 0.2 / 2.1])
    # a loss of 1,000 nats overflows no exponential
    close(ExponentialLoss().update(SHARES, Feedback(1, loss=[1000, 0, 0])), [1, 0, 0])


def test_heeding_overfitting_counts_no_potential_above_the_lowest_loss():
    # The first domain was at 1.8 before: its γ of 0.5 counts as 0, so P' = (0.5, 0.3, 0.3).
    feedback = Feedback(
        10,
        loss=[2, 2, 2],
        previous_loss=[2, 1.6, 2.5],
        reference_loss=[1, 2, 1],
        history=[[2.5, 1.6, 2.2], [1.8, 1.9, 2]],
    )
    close(
        VersaTune(heed_overfitting=True).update(SHARES, feedback), [0.5 / 1.1, 0.3 / 1.1, 0.3 / 1.1]
    )
    close(VersaTune().update(SHARES, feedback), ALGORITHM_2)
    # As a target it has no potential either, which closes the guard.
    guard = Expansion(targets=[0], heed_overfitting=True).guard_state(SHARES, feedback)
    assert guard is not None and not guard.open and guard.bound == 0
    # Where nothing was measured before, nothing is above its lowest.
    close(
        VersaTune(heed_overfitting=True).update(SHARES, FEEDBACK),
        VersaTune().update(SHARES, FEEDBACK),
    )


def test_a_starved_domain_whose_loss_rises_does_not_overfit():
    # The losses of the first two rose above their lowest; the first was seen 2.0 times, the second
    # is starved at 0.4 passes: it alone keeps its potential of (4 − 2) / 4 = 0.5.
    losses = {"loss": [2, 4, 2], "reference_loss": [1, 2, 2], "history": [[1.8, 3, 3]]}
    policy = VersaTune(heed_overfitting=True)
    starved = Feedback(10, **losses, passes=[2.0, 0.4, 1.0])
    assert starved.overfits().tolist() == [True, False, False]
    assert starved.of([1, 0]).overfits().tolist() == [False, True]
    close(policy.update(SHARES, starved), [0.5 / 1.15, 0.45 / 1.15, 0.2 / 1.15])
    # where passes are not known, the rise is all there is to go by
    close(policy.update(SHARES, Feedback(10, **losses)), SHARES)
    with pytest.raises(ValueError, match="step 10: passes of domain 2 is nan"):
        Feedback(10, **losses, passes=[1, 1, np.nan])


def test_balanced_shares_go_as_the_excess_losses():
    # e = (1, 0, 1.5, 0): 0.9 of the shares go as 0.4 : 0.6, and 0.1 / 4 to each
    feedback = Feedback(10, loss=[2, 2, 2, 0.5], reference_loss=[1, 2, 0.5, 1])
    close(
        Balanced().update([0.1, 0.2, 0.3, 0.4], feedback),
        [0.025 + 0.36, 0.025, 0.025 + 0.54, 0.025],
    )
    close(Balanced(strength=0).update([0.1, 0.2, 0.3, 0.4], feedback), [0.25] * 4)
    # a floor of 0.1 under two: 0.8 left for 0.385 : 0.565
    close(
        Balanced(min_share=0.1).update([0.1, 0.2, 0.3, 0.4], feedback),
        [0.8 * 0.385 / 0.95, 0.1, 0.8 * 0.565 / 0.95, 0.1],
    )
    # nothing left to learn: as before
    close(Balanced().update([0.1, 0.9], Feedback(1, [1, 1], reference_loss=[1, 2])), [0.1, 0.9])


def test_balanced_shares_are_the_best_static_ones_of_power_laws():
    """At its fixed point p ∝ e, no small move of samples between two domains lowers the mean
    loss.
    """
    scale, ceiling, n, a = np.array([3.0, 1.0, 0.2]), np.array([1.0, 2.0, 0.5]), 1000, 0.4
    shares = uniform(3)
    for _ in range(200):
        loss = ceiling + scale * (n * shares) ** -a
        shares = 0.5 * shares + 0.5 * Balanced(strength=1).update(
            shares, Feedback(1, loss, reference_loss=ceiling)
        )
    best = (scale * (n * shares) ** -a).sum()
    for step in ([1e-3, -1e-3, 0], [-1e-3, 0, 1e-3], [0, 1e-3, -1e-3]):
        for sign in (1, -1):
            assert (scale * (n * (shares + sign * np.array(step))) ** -a).sum() > best
