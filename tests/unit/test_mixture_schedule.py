"""Shares that follow a plan, and shares as people write them."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from versatune_ray.errors import UserError
from versatune_ray.mixture import Budget, Feedback, Schedule, replay
from versatune_ray.settings import semantics
from versatune_ray.settings.loading import load

NAMES = ["law", "code", "general"]
SIZES = [10, 20, 70]


def at(step: int, policy: Schedule, steps: int = 100) -> Any:
    budget = Budget(steps, 8, np.array(SIZES, dtype=float), np.zeros((1, 3)))
    return policy.update([0.2, 0.3, 0.5], Feedback(step, [1, 1, 1], budget=budget))


def test_shares_go_from_waypoint_to_waypoint() -> None:
    plan = Schedule([(20, (1, 0, 0)), (0.5, (0.5, 0.5, 0)), (1.0, (0, 0, 1))])
    np.testing.assert_allclose(plan.start(SIZES), [1, 0, 0])
    for step, expected in (
        (0, [1, 0, 0]),
        (20, [1, 0, 0]),
        # a third of the way from 20 to 50
        (30, [1 - 1 / 6, 1 / 6, 0]),
        (50, [0.5, 0.5, 0]),
        # half of the way to 100
        (75, [0.25, 0.25, 0.5]),
        (100, [0, 0, 1]),
        (120, [0, 0, 1]),
    ):
        np.testing.assert_allclose(at(step, plan), expected, atol=1e-12)
    # a quarter of the way on a cosine: (1 − cos(π/4)) / 2 = 0.146447
    two = Schedule([(0, (1, 0, 0)), (100, (0, 1, 0))], between="cosine")
    np.testing.assert_allclose(at(25, two), [1 - 0.1464466094, 0.1464466094, 0], atol=1e-9)


def test_annealing_is_a_temperature_that_falls_to_one() -> None:
    # half of the way from uniform to proportional, geometrically: records^(1/2), τ = 2
    roots = np.sqrt([10, 20, 70])
    np.testing.assert_allclose(at(50, Schedule(between="geometric")), roots / roots.sum())
    # linearly: the mean of both
    np.testing.assert_allclose(at(50, Schedule()), (1 / 3 + np.array([0.1, 0.2, 0.7])) / 2)
    np.testing.assert_allclose(Schedule().start(SIZES), 1 / 3)


def test_a_plan_is_replayed_like_any_policy() -> None:
    budget = Budget(20, 8, np.array(SIZES, dtype=float), np.zeros((2, 3)))
    found = replay(
        Schedule(), [1 / 3] * 3, np.ones((2, 3)), None, [1, 1, 1], NAMES, [10, 20], budget=budget
    )
    np.testing.assert_allclose(found[2], [0.1, 0.2, 0.7])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"waypoints": []}, "waypoints: at least one"),
        ({"waypoints": [(-1, "uniform")]}, "at -1 is no step"),
        ({"waypoints": [(1.5, "uniform")]}, "no fraction within 0 and 1"),
        ({"waypoints": [(0, "unifrom")]}, "'unifrom' are unknown"),
        ({"waypoints": [(0, (0.5, 0.6))]}, "shares sum to 1.1"),
        ({"between": "step"}, "between: 'step'"),
    ],
)
def test_plans_that_cannot_be_are_refused(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Schedule(**given)
    with pytest.raises(ValueError, match=r"at 60, 50 of 100 steps; they have to rise"):
        at(1, Schedule([(60, "uniform"), (0.5, "uniform")]))


def test_a_plan_from_a_configuration_starts_with_its_own_shares_and_needs_no_detection() -> None:
    config = load(
        [],
        [
            "mixture.policy=schedule",
            "mixture.options.waypoints=[{at: 0, shares: {law: 1, code: 1, general: 2}}, "
            "{at: 50%, shares: {a: {share: 3, members: [law, code]}, general: 1}}, "
            "{at: 1.0, shares: proportional}]",
        ],
    )
    assert not semantics.needs_detection(config)
    semantics.check(config, NAMES)
    found = semantics.policy(config, NAMES)
    assert isinstance(found, Schedule)
    assert found.waypoints == [
        (0, (0.25, 0.25, 0.5)),
        (0.5, (0.375, 0.375, 0.25)),
        (1.0, "proportional"),
    ]
    np.testing.assert_allclose(
        semantics.starting_shares(config, NAMES, None, SIZES), [0.25, 0.25, 0.5]
    )


@pytest.mark.parametrize(
    ("waypoints", "told"),
    [
        ("3", "mixture.options.waypoints: a list of"),
        ("[3]", "mixture.options.waypoints.0: write {at: 50%"),
        ("[{at: soon, shares: uniform}]", "waypoints.0.at: a step as 100, or a part as 50%"),
        ("[{at: 0, shares: {law: 1}}]", "waypoints.0.shares: needs one share for each of"),
        ("[{at: 0, shares: {law: x, code: 1, general: 1}}]", "waypoints.0.shares: law: a share"),
        ("[{at: 0, shares: {law: 1 epoch, code: 1 epoch, general: 1 epoch}}]", "not epochs"),
        ("[{at: 0, shares: [0.5, 0.5]}]", "waypoints.0.shares: write {law: 0.4, …}, uniform or"),
    ],
)
def test_a_wrong_plan_is_told_in_one_line(waypoints: str, told: str) -> None:
    config = load([], ["mixture.policy=schedule", f"mixture.options.waypoints={waypoints}"])
    with pytest.raises(UserError, match=re.escape(told)):
        semantics.check(config, NAMES)


def test_groups_have_a_share_that_their_members_divide() -> None:
    config = load(
        [],
        [
            "mixture.start={legal: {share: 0.4, members: {law: 3, inner: {share: 1, members: "
            "[code]}}}, general: 0.6}"
        ],
    )
    np.testing.assert_allclose(
        semantics.starting_shares(config, NAMES, None, SIZES), [0.3, 0.1, 0.6]
    )


def test_epochs_say_the_shares_and_how_long_the_run_is() -> None:
    settings = [
        "model.path=m",
        *(f"domains.{name}=a" for name in NAMES),
        "mixture.policy=constant",
        "mixture.start={law: 3 epochs, code: 1 epoch, general: 0.5 epochs}",
        "training.batch_size=5",
        "training.epochs=2",
    ]
    (one,) = semantics.stages(load([], settings), NAMES, SIZES, None, "nats/token")
    # 3 · 10 + 20 + 35 = 85 samples, of which 30 : 20 : 35, in 17 steps of 5
    np.testing.assert_allclose(one.start, np.array([30, 20, 35]) / 85)
    assert (one.recipe.steps, one.epoch(17)) == (17, 2)
    longer = load([], [*settings, "training.samples_per_epoch=100"])
    (two,) = semantics.stages(longer, NAMES, SIZES, None, "nats/token")
    assert two.recipe.steps == 40
    # a plan has a start, and so a length, of its own: 2 epochs of 100 records
    plan = load([], [*settings, "mixture.policy=schedule"])
    assert semantics.stages(plan, NAMES, SIZES, None, "nats/token")[0].recipe.steps == 40
    # records seen three times under a cap of two
    for cap, policy, refused in ((2, "constant", True), (2, "exponential_loss", False)):
        capped = [*settings, f"mixture.max_passes={cap}", f"mixture.policy={policy}"]
        if refused:
            with pytest.raises(UserError, match=r"max_passes: 2 is below the 3 epochs of law in"):
                semantics.stages(load([], capped), NAMES, SIZES, None, "nats/token")
        else:
            semantics.stages(load([], capped), NAMES, SIZES, None, "nats/token")


def test_a_run_has_as_many_steps_as_its_epochs_say() -> None:
    # 2.2 · 100 is 220.00000000000003 in floats
    settings = ["model.path=m", *(f"domains.{name}=a" for name in NAMES), "mixture.start=uniform"]
    more = ["training.epochs=2.2", "training.batch_size=10", "mixture.policy=constant"]
    (one,) = semantics.stages(load([], [*settings, *more]), NAMES, SIZES, None, "nats/token")
    assert one.recipe.steps == 22


def test_a_stage_of_no_epochs_is_told_in_one_line() -> None:
    domains = [f"domains.{name}=a" for name in NAMES]
    stage = (
        "{name: a, sources: [law, code], records: {law: 0}, start: {law: 1 epoch, code: 0 epoch}}"
    )
    config = load([], ["model.path=m", *domains, "mixture.policy=constant", f"stages=[{stage}]"])
    with pytest.raises(UserError, match=r"stages.a: mixture.start: shares must be ≥ 0"):
        semantics.stages(config, NAMES, SIZES, [1 / 3] * 3, "nats/token")


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (
            "{law: 3 epochs, code: 1, general: 1}",
            "write epochs for every one of these, or for none",
        ),
        ("{law: three, code: 1}", "law: a share, or passes as 3 epochs; found 'three'"),
        (
            "{a: {share: 3 epochs, members: [law]}, code: 1}",
            "a.share: a number, which its members divide; found '3 epochs'",
        ),
        ("{a: {share: 1}, code: 1}", "a: a group is written {share: 0.4, members: [a, b]}"),
        ("{a: {share: 1, members: []}, code: 1}", "a.members: name at least one domain"),
        ("{a: {share: 1, members: [law, code]}, code: 1}", "code stands in two places"),
    ],
)
def test_shares_that_cannot_be_are_told_in_one_line(start: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as refused:
        load([], [f"mixture.start={start}"])
    assert "mixture.start" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("steps", "every", "lost"),
    [
        # shares change at 25, 50 and 75, and the first lies between the two
        ([0, 100], 25, None),
        # one change alone, at the end, which nothing trains on
        ([0, 100], 100, 1),
        # from 10 on those of the second, but the next change finds the third
        ([0, 10, 20], 25, 1),
        ([0, 10, 26], 25, None),
        # at 75 on the way to the second; none after it
        ([0, 90, 100], 25, 2),
        ([0, 75, 90], 25, 2),
        ([0, 75, 90], 24, None),
        ([40], 100, None),
    ],
)
def test_a_waypoint_that_no_adjustment_heeds_is_found(
    steps: list[int], every: int, lost: int | None
) -> None:
    assert Schedule([(step, "uniform") for step in steps]).unheeded(100, every) == lost


@pytest.mark.parametrize(
    ("waypoints", "told"),
    [
        (
            "{at: 30, shares: uniform}, {at: 20, shares: uniform}",
            r"at 30, 20 of 40 .* have to rise",
        ),
        ("{at: 20, shares: uniform}, {at: 50%, shares: uniform}", r"at 20, 20 of 40 .* to rise"),
        ("{at: 0, shares: uniform}, {at: 41, shares: uniform}", r"at 0, 41 of 40 .* past the end"),
        (
            "{at: 1, shares: uniform}, {at: 2, shares: uniform}, {at: 9, shares: proportional}",
            r"waypoints\.1: shares change every 10 of 40 steps, .*; lower training\.adjust_every",
        ),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused_before_the_run(
    waypoints: str, told: str
) -> None:
    domains = [f"domains.{name}=a" for name in NAMES]
    plan = ["mixture.policy=schedule", f"mixture.options.waypoints=[{waypoints}]"]
    # 4 epochs of 100 records by 10
    config = load([], ["model.path=m", *domains, *plan, "training.batch_size=10"])
    with pytest.raises(UserError, match=told):
        semantics.stages(config, NAMES, SIZES, None, "nats/token")


def test_a_floor_lies_under_a_plan_from_its_first_step() -> None:
    plan = ["mixture.policy=schedule", "mixture.min_share=0.1"]
    shares = "mixture.options.waypoints=[{at: 0, shares: {law: 1, code: 0, general: 0}}]"
    config = load([], [*plan, shares])
    np.testing.assert_allclose(
        semantics.starting_shares(config, NAMES, None, SIZES), [0.8, 0.1, 0.1]
    )


def test_between_shares_without_a_common_domain_nothing_is_geometric() -> None:
    apart = [(0, (1.0, 0.0, 0.0)), (1.0, (0.0, 1.0, 0.0))]
    with pytest.raises(ValueError, match="geometric needs a domain with a share at both"):
        Schedule(apart, between="geometric")
    np.testing.assert_allclose(at(50, Schedule(apart)), [0.5, 0.5, 0])
