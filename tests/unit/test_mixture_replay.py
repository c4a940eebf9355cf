"""Policies over recorded losses."""

import numpy as np
import pytest

from versatune_ray.mixture import (
    Constant,
    Expansion,
    Feedback,
    VersaTune,
    mean_shares,
    replay,
    uniform,
)


def test_versatune_over_two_adjustments_by_hand():
    # γ(1) = (0.5, 0): P' = (0.75, 0.5), Σ 1.25 → (0.6, 0.4). γ(2) = (0, 0.5): P' = (0.6, 0.6) →
    # (0.5, 0.5)
    shares = replay(VersaTune(), [0.5, 0.5], losses=[[2, 1], [1, 2]], reference_loss=[1, 1])
    np.testing.assert_allclose(shares, [[0.5, 0.5], [0.6, 0.4], [0.5, 0.5]], atol=1e-15)


def test_each_row_is_one_update_with_the_loss_before_as_previous():
    rng = np.random.default_rng(0)
    losses, reference, initial = rng.gamma(3, 1, (20, 6)), rng.gamma(1, 1, 6), rng.gamma(3, 1, 6)
    policy = Expansion(targets=[2])
    rows = replay(policy, uniform(6), losses, reference, initial)
    assert rows.shape == (21, 6)
    previous = initial
    for i in range(20):
        expected = policy.update(rows[i], Feedback(i + 1, losses[i], previous, reference))
        assert rows[i + 1].tolist() == expected.tolist()
        previous = losses[i]


def test_no_adjustments_leave_the_start():
    for none in ([], np.empty((0, 2))):
        assert replay(Constant(), [0.3, 0.7], none, None).tolist() == [[0.3, 0.7]]


def test_a_policy_that_needs_the_loss_before_step_1_refuses_without():
    with pytest.raises(ValueError, match="step 1: previous_loss is missing"):
        replay(Expansion(targets=[0]), [0.5, 0.5], [[1, 1]], [0.5, 0.5])
    with pytest.raises(ValueError, match="step 1: reference_loss is missing"):
        replay(VersaTune(), [0.5, 0.5], [[1, 1]], None)


def test_bad_losses_name_adjustment_and_domain():
    with pytest.raises(ValueError, match="step 2: loss of 'code' is nan"):
        replay(Constant(), [0.5, 0.5], [[1, 1], [1, np.nan]], None, names=["law", "code"])
    with pytest.raises(ValueError, match="3 values per adjustment for 2 domains"):
        replay(Constant(), [0.5, 0.5], [[1, 1, 1]], None)
    with pytest.raises(ValueError, match="one row per adjustment"):
        replay(Constant(), [0.5, 0.5], [1, 1], None)


def test_the_average_mixture_counts_steps_and_not_the_last_decision():
    # (0.2, 0.8) for 10 steps, (0.6, 0.4) for 30; what was decided at step 40 was never trained on
    found = mean_shares([0, 10, 40], [[0.2, 0.8], [0.6, 0.4], [1, 0]])
    np.testing.assert_allclose(found, [0.5, 0.5], atol=1e-15)
    np.testing.assert_allclose(
        mean_shares([0, 1], [[0.3, 0.7], [0.9, 0.1]]), [0.3, 0.7], atol=1e-15
    )


def test_a_replay_heeds_the_passes_that_the_run_had():
    policy, losses = VersaTune(heed_overfitting=True), [[4.0, 4.0]]
    told = replay(policy, [0.5, 0.5], losses, [1, 1], [2, 2], passes=[[0.3, 2.0]])
    np.testing.assert_allclose(told[1], [0.875 / 1.375, 0.5 / 1.375])
    np.testing.assert_allclose(replay(policy, [0.5, 0.5], losses, [1, 1], [2, 2])[1], [0.5, 0.5])


@pytest.mark.parametrize(
    ("steps", "shares"), [([0], [[1.0]]), ([0, 0], [[1.0], [1.0]]), ([0, 5, 9], [[1.0], [1.0]])]
)
def test_an_average_needs_rising_steps_of_at_least_two_adjustments(steps, shares):
    with pytest.raises(ValueError, match="steps: expected"):
        mean_shares(steps, shares)


def recorded(*steps, passes=((0, 0), (1, 0.5), (2, 1))):
    """A log of two domains of 10 and 40 records, of which 10 and 20 are drawn in 5 steps."""
    names = ("law", "code")

    def line(step, seen):
        drawn = dict(zip(names, (10 * seen[0], 40 * seen[1]), strict=True))
        told = {"share": dict.fromkeys(names, 0.5), "loss": dict.fromkeys(names, 1.0)}
        return told | {"step": step, "drawn": drawn, "passes": dict(zip(names, seen, strict=True))}

    return [line(step, seen) for step, seen in zip(steps, passes, strict=True)]


def test_a_start_in_epochs_is_replayed_with_the_records_of_the_log():
    from versatune_ray.settings.loading import load
    from versatune_ray.tuning.lookahead import _answers

    # 3 · 10 of 3 · 10 + 40 samples
    start = "mixture.start={law: 3 epochs, code: 1 epoch}"
    config, names = load([], ["mixture.policy=constant", start]), ["law", "code"]
    found = _answers(config, recorded(0, 5, 10), names, None, np.array([0.5, 0.5]))
    np.testing.assert_allclose(found, [[3 / 7, 4 / 7]] * 3)


def test_a_plan_that_does_not_fit_the_log_is_told_in_one_line():
    from versatune_ray.errors import UserError
    from versatune_ray.settings.loading import load
    from versatune_ray.tuning.lookahead import _answers

    plan = "mixture.options.waypoints=[{at: 0, shares: uniform}, {at: 90, shares: proportional}]"
    config = load([], ["mixture.policy=schedule", plan])
    with pytest.raises(
        UserError, match=r"replay: .*at 0, 90 of 10 steps; the last is past the end"
    ):
        _answers(config, recorded(0, 5, 10), ["law", "code"], None, np.array([0.5, 0.5]))


def test_losses_that_were_measured_otherwise_are_not_compared_with() -> None:
    """Held out, both domains had 1.0 before; the first training losses would look forgotten."""
    policy = Expansion(targets=(0,), delta=0.1, epsilon=0.1)
    losses, ceiling = [[2.0, 2.0], [1.5, 1.8]], [0.5, 0.5]
    kinds = [[False, False], [True, True], [True, True]]
    told = replay(policy, [0.5, 0.5], losses, ceiling, [1.0, 1.0], trained=kinds)
    alike = replay(policy, [0.5, 0.5], losses, ceiling, losses[0])
    np.testing.assert_array_equal(told, alike)
    assert told[1][0] > 0.5 == replay(policy, [0.5, 0.5], losses, ceiling, [1.0, 1.0])[1][0]
