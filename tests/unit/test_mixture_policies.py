"""Constant, Algorithm 2 and Algorithm 3."""

import dataclasses

import numpy as np
import pytest

from versatune_ray.mixture import (
    Balanced,
    Constant,
    Expansion,
    ExponentialLoss,
    Feedback,
    GuardState,
    Policy,
    VersaTune,
    specific,
    uniform,
)

SHARES = [0.5, 0.3, 0.2]
# γ = (0.5, 0, 0.5), so P' = (0.75, 0.3, 0.3), Σ 1.35; φ = (0, 0.25, 0)
FEEDBACK = Feedback(10, loss=[2, 2, 2], previous_loss=[2, 1.6, 2.5], reference_loss=[1, 2, 1])
ALGORITHM_2 = [0.75 / 1.35, 0.3 / 1.35, 0.3 / 1.35]


def close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def random_case(rng, k):
    shares = rng.dirichlet(np.full(k, 10 ** rng.uniform(-1, 1)))
    return shares, Feedback(1, rng.gamma(2, 1, k), rng.gamma(2, 1, k), rng.gamma(1, 1, k))


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


def test_an_open_guard_raises_the_target_by_delta_and_divides_the_rest_by_potential():
    # mean φ = 0.25/3 < 0.5 = ε·γ. Target 0.2 + 0.05; 0.75 left for 0.75 : 0.3
    close(
        Expansion(targets=[2]).update(SHARES, FEEDBACK),
        [0.75 * 0.75 / 1.05, 0.75 * 0.3 / 1.05, 0.25],
    )


def test_a_closed_guard_is_algorithm_2():
    # ε·γ = 0.1·0.5 = 0.05 < 0.25/3
    close(Expansion(targets=[2], epsilon=0.1).update(SHARES, FEEDBACK), ALGORITHM_2)
    rng = np.random.default_rng(0)
    for k in (2, 6, 200):
        shares, feedback = random_case(rng, k)
        shares = 0.5 * shares + 0.5 / k
        close(
            Expansion(targets=[1], epsilon=0).update(shares, feedback),
            VersaTune().update(shares, feedback),
        )


def test_the_guard_averages_over_k_as_printed_or_over_the_others():
    # ε·γ = 0.2·0.5 = 0.1 lies between 0.25/3 = 0.083 and 0.25/2 = 0.125
    printed, others = (Expansion(targets=[2], epsilon=0.2, mean_over=over) for over in ("k", "k-1"))
    state = printed.guard_state(SHARES, FEEDBACK)
    assert state == GuardState(True, pytest.approx(0.25 / 3), pytest.approx(0.1))
    assert others.guard_state(SHARES, FEEDBACK) == GuardState(
        False, pytest.approx(0.125), pytest.approx(0.1)
    )
    assert printed.update(SHARES, FEEDBACK)[2] == pytest.approx(0.25)
    close(others.update(SHARES, FEEDBACK), ALGORITHM_2)


def test_forgetting_of_the_target_itself_does_not_count():
    feedback = Feedback(1, loss=[1, 1, 9], previous_loss=[1, 1, 1], reference_loss=[1, 1, 1])
    assert Expansion(targets=[2]).guard_state(SHARES, feedback).forgetting == 0


def test_the_guard_is_strict():
    # nothing forgotten, nothing to learn: 0 < 0 is false; and 0.75/3 = 0.25 < 1·0.25 is false
    assert (
        not Expansion(targets=[0]).guard_state(SHARES, Feedback(1, [1] * 3, [1] * 3, [1] * 3)).open
    )
    edge = Feedback(1, loss=[1.75, 1, 4], previous_loss=[1, 1, 4], reference_loss=[1, 1, 3])
    assert Expansion(targets=[2]).guard_state(SHARES, edge) == GuardState(False, 0.25, 0.25)


def test_a_loss_rising_from_zero_closes_the_guard():
    feedback = Feedback(1, loss=[0.1, 1, 1], previous_loss=[0, 1, 1], reference_loss=[0, 1, 0])
    policy = Expansion(targets=[2], epsilon=1e300)
    assert policy.guard_state(SHARES, feedback) == GuardState(False, np.inf, 1e300)
    close(policy.update(SHARES, feedback), VersaTune().update(SHARES, feedback))


def test_without_guard_the_target_is_always_raised_and_no_previous_loss_needed():
    policy = Expansion(targets=[2], epsilon=0, guard=False)
    assert policy.update(SHARES, FEEDBACK)[2] == pytest.approx(0.25)
    assert policy.guard_state(SHARES, FEEDBACK) is None
    assert policy.update(SHARES, dataclasses.replace(FEEDBACK, previous_loss=None))[
        2
    ] == pytest.approx(0.25)


def test_only_the_share_before_normalises_the_others():
    # As printed, P_j = P'_j/Σ_{i≠e}P'_i·(1 − P_e(t−1) − δ): the ratio of the others is that of
    # their P', whatever the target's P'
    rng = np.random.default_rng(1)
    for _ in range(100):
        k = int(rng.integers(2, 201))
        shares, feedback = random_case(rng, k)
        shares = 0.5 * shares + 0.5 / k
        raised = shares * (1 + 0.7 * np.maximum(1 - feedback.reference_loss / feedback.loss, 0))
        rest = raised[1:] / raised[1:].sum() * (1 - shares[0] - 0.03)
        expected = np.concatenate([[shares[0] + 0.03], rest])
        close(
            Expansion(targets=[0], sigma=0.7, delta=0.03, guard=False, max_share=1).update(
                shares, feedback
            ),
            expected,
        )


def test_several_targets_share_delta_by_their_own_weight():
    # γ = (0.75, 0.5, 0): P' = (0.7, 0.6, 0.2). δ goes 7 : 6. φ_2 = 0.25
    shares = [0.4, 0.4, 0.2]
    feedback = Feedback(1, loss=[4, 2, 2], previous_loss=[4, 2, 1.6], reference_loss=[1, 1, 2])
    policy = Expansion(targets=[1, 0], delta=0.13)
    close(policy.update(shares, feedback), [0.4 + 0.07, 0.4 + 0.06, 0.2 - 0.13])
    # bound: (0.7·0.75 + 0.6·0.5)/1.3; mean over k = 3, or over the one other domain
    state = policy.guard_state(shares, feedback)
    assert (state.forgetting, state.bound) == (pytest.approx(0.25 / 3), pytest.approx(0.825 / 1.3))
    assert dataclasses.replace(policy, mean_over="k-1").guard_state(
        shares, feedback
    ).forgetting == pytest.approx(0.25)


def test_targets_without_any_share_start_in_equal_parts():
    feedback = Feedback(1, [1, 1, 1], [1, 1, 1], [0.5, 0.2, 0.6])
    policy = Expansion(targets=[0, 1], delta=0.1)
    # γ of (0.5, 0.8) in plain mean
    assert policy.guard_state([0, 0, 1], feedback).bound == pytest.approx(0.65)
    close(policy.update([0, 0, 1], feedback), [0.05, 0.05, 0.9])


def test_a_raise_stops_at_the_ceiling():
    calm = Feedback(1, [2, 2, 2], [2, 2, 2], [1, 1, 1])
    policy = Expansion(targets=[0], delta=0.05)
    # 0.93 + 0.05 is cut to 0.95; the others keep 5 : 2 of the remaining 0.05
    close(policy.update([0.93, 0.05, 0.02], calm), [0.95, 0.05 * 5 / 7, 0.05 * 2 / 7])
    close(policy.update([0.95, 0.03, 0.02], calm), [0.95, 0.03, 0.02])


def test_a_share_above_the_ceiling_is_not_raised():
    calm = Feedback(1, [2, 2, 2], [2, 2, 2], [1, 2, 1])
    # γ = (0.5, 0, 0.5), others P' = 0.01 : 0.03 of the remaining 0.03
    close(Expansion(targets=[0]).update([0.97, 0.01, 0.02], calm), [0.97, 0.0075, 0.0225])


def test_algorithm_2_cannot_carry_the_targets_over_the_ceiling_either():
    eager = Feedback(1, [2, 2, 2], [2, 2, 1], [0, 2, 2])
    # γ = (1, 0, 0), closed by ε = 0: P' = (1.8, 0.06, 0.04) → 0.947 < 0.95; and from 0.94:
    # 1.88/1.94 = 0.969 → 0.95
    policy = Expansion(targets=[0], epsilon=0)
    close(policy.update([0.9, 0.06, 0.04], eager), [1.8 / 1.9, 0.06 / 1.9, 0.04 / 1.9])
    close(policy.update([0.94, 0.04, 0.02], eager), [0.95, 0.05 * 2 / 3, 0.05 / 3])
    close(policy.update([0.97, 0.02, 0.01], eager), [0.97, 0.02, 0.01])


def test_a_ceiling_of_one_lets_the_target_take_everything():
    calm = Feedback(1, [2, 2], [2, 2], [1, 1])
    policy = Expansion(targets=[0], max_share=1, delta=0.3)
    close(policy.update([0.8, 0.2], calm), [1, 0])
    assert policy.update([1, 0], calm).tolist() == [1, 0]


def test_others_without_any_share_leave_everything_with_the_target():
    feedback = Feedback(1, [2, 2, 2], [2, 1, 2], [1, 1, 1])
    for epsilon in (0, 1):
        assert Expansion(targets=[1], epsilon=epsilon).update(
            specific(3, [1]), feedback
        ).tolist() == [0, 1, 0]
    close(Expansion(targets=[1], min_share=0.1).update(specific(3, [1]), feedback), [0.1, 0.8, 0.1])


def test_one_domain_or_only_targets_have_nobody_who_forgets():
    one = Feedback(1, [2], [1], [1])
    for over in ("k", "k-1"):
        policy = Expansion(targets=[0], mean_over=over)
        assert policy.guard_state([1], one) == GuardState(True, 0, 0.5)
        assert policy.update([1], one).tolist() == [1]
    assert VersaTune().update([1], one).tolist() == [1]
    close(Expansion(targets=[0, 1, 2]).update(SHARES, FEEDBACK), SHARES)


def test_two_domains_move_delta_from_one_to_the_other():
    calm = Feedback(1, [2, 2], [2, 2], [1, 1])
    close(Expansion(targets=[1]).update([0.6, 0.4], calm), [0.55, 0.45])


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


def test_repeated_expansion_climbs_by_delta_to_the_ceiling_and_stays():
    calm = Feedback(1, np.full(6, 2.0), np.full(6, 2.0), np.full(6, 1.0))
    policy, shares = Expansion(targets=[3], delta=0.1), uniform(6)
    seen = []
    for _ in range(12):
        shares = policy.update(shares, calm)
        seen.append(shares[3])
    close(seen, [min(1 / 6 + 0.1 * i, 0.95) for i in range(1, 13)], 1e-12)
    close(shares[:3], 0.01, 1e-12)  # 0.05 over five equals


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


def test_a_target_beyond_the_domains_is_refused_with_the_valid_range():
    with pytest.raises(ValueError, match="3 is no domain index; valid are 0 to 2"):
        Expansion(targets=[3]).update(SHARES, FEEDBACK)


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


def test_a_uniform_remainder_divides_the_rest_equally():
    # mean φ = 0.25/3 < 0.5: target 0.25, the others (1 - 0.25) / 2
    close(
        Expansion(targets=[2], remainder="uniform").update(SHARES, FEEDBACK), [0.375, 0.375, 0.25]
    )
    # closed: the target has what Algorithm 2 gives it, the others halve the rest
    rest = (1 - ALGORITHM_2[2]) / 2
    close(
        Expansion(targets=[2], remainder="uniform", epsilon=0).update(SHARES, FEEDBACK),
        [rest, rest, ALGORITHM_2[2]],
    )
    with pytest.raises(ValueError, match="remainder: 'equal' is unknown"):
        Expansion(targets=[2], remainder="equal")


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
