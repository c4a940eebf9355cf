"""From settings to shares, policy and steps."""

from __future__ import annotations

import re

import pytest

from versatune_ray.config import load
from versatune_ray.errors import UserError
from versatune_ray.mixture import Constant, Expansion, VersaTune
from versatune_ray.training import plan

NAMES = ["law", "code", "general"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["mixture.start=detected"], [0.5, 0.25, 0.25]),
        (["mixture.start=uniform"], [1 / 3, 1 / 3, 1 / 3]),
        (["mixture.start=inverse"], [0.2, 0.4, 0.4]),  # 2 : 4 : 4
        (["mixture.start=proportional"], [0.1, 0.2, 0.7]),
        (["mixture.start=specific", "mixture.targets=code"], [0, 1, 0]),
        (["mixture.start=uniform_remainder", "mixture.targets=code", "mixture.target_share=0.6"], [0.2, 0.6, 0.2]),
        (["mixture.start={law: 1, code: 1, general: 2}"], [0.25, 0.25, 0.5]),
    ],
)
def test_starting_shares(overrides: list[str], expected: list[float]) -> None:
    shares = plan.starting_shares(load([], overrides), NAMES, [0.5, 0.25, 0.25], [10, 20, 70])
    assert shares == pytest.approx(expected)


def test_shares_for_other_domains_are_refused() -> None:
    with pytest.raises(UserError, match=r"mixture\.start: needs one share for each of law, code, general"):
        plan.starting_shares(load([], ["mixture.start={law: 1}"]), NAMES, None, [1, 1, 1])


def test_an_unknown_target_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(UserError, match="unknown domain 'cod'; valid: law, code, general"):
        plan.policy(load([], ["mixture.policy=expansion", "mixture.targets=cod", "domains.cod=a", "domains.x=b", "model.path=m"]), NAMES)


def test_floors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"mixture\.min_share: 0\.4 for each of 3 domains is more than 1; at most 0\.3333"):
        plan.policy(load([], ["mixture.min_share=0.4"]), NAMES)


def test_policies_carry_their_settings() -> None:
    assert plan.policy(load([], ["mixture.policy=constant"]), NAMES) == Constant()
    assert plan.policy(load([], ["mixture.sigma=2", "mixture.min_share=0.1"]), NAMES) == VersaTune(sigma=2, min_share=0.1)
    settings = ["mixture.policy=expansion", "mixture.targets=[code]", "mixture.delta=0.2", "mixture.mean_over=k-1", "mixture.guard=false"]
    expected = Expansion(targets=(1,), delta=0.2, mean_over="k-1", guard=False)
    assert plan.policy(load([], settings), NAMES) == expected


def test_steps_and_adjustments_follow_the_paper() -> None:
    # 4 epochs of 60,000 samples at batch 128: 240,000 / 128 = 1,875 steps, adjusted once per epoch: 468.75, rounded to 469.
    config = load([], ["training.samples_per_epoch=60000"])
    recipe = plan.recipe(config, train_records=100, unit="nats/token")
    assert recipe.steps == 1875
    assert plan.adjust_every(config, recipe.steps) == 469


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        # 40 steps of 10 are 400 samples; 10 + 20 + 70 = 100 records allow 4 · 100, and at 3.99 only 39 + 79 + 279 = 397.
        (["mixture.max_passes=4"], None),
        (["mixture.max_passes=3.99"], "mixture.max_passes: 3.99 over the 100 records of law, code, general give 397 samples"),
        (["mixture.start=detected", "mixture.max_passes=2"], "over the 100 records of law, code, general give 200 samples"),
        # A domain without a share stays without one: 30 records · 13 = 390, unless a floor or a target brings it back.
        (["mixture.start={law: 1, code: 1, general: 0}", "mixture.max_passes=13"], "13 over the 30 records of law, code give 390 samples"),
        (["mixture.start={law: 1, code: 1, general: 0}", "mixture.max_passes=13", "mixture.min_share=0.1"], None),
        (
            ["mixture.start={law: 1, code: 1, general: 0}", "mixture.max_passes=13", "mixture.min_share=0.1", "mixture.policy=constant"],
            "390",
        ),
    ],
)
def test_a_run_longer_than_the_records_last_is_refused(overrides: list[str], refusal: str | None) -> None:
    config = load([], ["training.epochs=4", "training.batch_size=10", "mixture.start=uniform", *overrides])
    recipe = plan.recipe(config, train_records=100, unit="nats/token")
    assert recipe.max_passes == config.mixture.max_passes
    if refusal is None:
        plan.check_passes(config, NAMES, [10, 20, 70], recipe)
    else:
        with pytest.raises(UserError, match=re.escape(refusal)):
            plan.check_passes(config, NAMES, [10, 20, 70], recipe)


def test_a_target_without_a_share_can_get_one() -> None:
    domains = [f"domains.{name}=a" for name in NAMES]
    settings = [
        "model.path=m",
        *domains,
        "mixture.policy=expansion",
        "mixture.targets=general",
        "mixture.start={law: 1, code: 1, general: 0}",
    ]
    config = load([], [*settings, "mixture.max_passes=13", "training.epochs=4", "training.batch_size=10"])
    plan.check_passes(config, NAMES, [10, 20, 70], plan.recipe(config, train_records=100, unit="nats/token"))


@pytest.mark.parametrize(("samples", "cap"), [(100, 4.0), (200, 4.0), (250, 5.0)])
def test_an_automatic_cap_is_four_passes_or_twice_the_runs_average(samples: int, cap: float) -> None:
    config = load([], ["mixture.max_passes=auto", f"training.samples_per_epoch={samples}", "training.epochs=1", "training.batch_size=10"])
    assert plan.recipe(config, train_records=100, unit="nats/token").max_passes == cap


def test_without_a_cap_any_run_is_long_enough() -> None:
    config = load([], ["training.epochs=1000"])
    recipe = plan.recipe(config, train_records=100, unit="nats/token")
    assert recipe.max_passes is None
    plan.check_passes(config, NAMES, [10, 20, 70], recipe)
