"""Algorithm 3: targets, its guard, its ceiling, and how the others share the rest."""

import dataclasses

import numpy as np
import pytest
from policy_cases import ALGORITHM_2, FEEDBACK, SHARES, close, random_case

from versatune_ray.mixture import Expansion, Feedback, GuardState, VersaTune, specific, uniform


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


def test_repeated_expansion_climbs_by_delta_to_the_ceiling_and_stays():
    calm = Feedback(1, np.full(6, 2.0), np.full(6, 2.0), np.full(6, 1.0))
    policy, shares = Expansion(targets=[3], delta=0.1), uniform(6)
    seen = []
    for _ in range(12):
        shares = policy.update(shares, calm)
        seen.append(shares[3])
    close(seen, [min(1 / 6 + 0.1 * i, 0.95) for i in range(1, 13)], 1e-12)
    close(shares[:3], 0.01, 1e-12)  # 0.05 over five equals


def test_a_target_beyond_the_domains_is_refused_with_the_valid_range():
    with pytest.raises(ValueError, match="3 is no domain index; valid are 0 to 2"):
        Expansion(targets=[3]).update(SHARES, FEEDBACK)


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
