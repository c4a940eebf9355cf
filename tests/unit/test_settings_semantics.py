"""From settings to shares, policy and steps."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from versatune_ray.errors import UserError
from versatune_ray.mixture import Constant, DoReMi, Expansion, OnlineDataMixing, VersaTune
from versatune_ray.settings import semantics
from versatune_ray.settings.loading import load
from versatune_ray.settings.stages import half_up

NAMES = ["law", "code", "general"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["mixture.start=detected"], [0.5, 0.25, 0.25]),
        (["mixture.start=uniform"], [1 / 3, 1 / 3, 1 / 3]),
        (["mixture.start=inverse"], [0.2, 0.4, 0.4]),  # 2 : 4 : 4
        (["mixture.start=proportional"], [0.1, 0.2, 0.7]),
        (["mixture.start=specific", "mixture.targets=code"], [0, 1, 0]),
        (
            ["mixture.start=uniform_remainder", "mixture.targets=code", "mixture.target_share=0.6"],
            [0.2, 0.6, 0.2],
        ),
        (["mixture.start={law: 1, code: 1, general: 2}"], [0.25, 0.25, 0.5]),
    ],
)
def test_starting_shares(overrides: list[str], expected: list[float]) -> None:
    shares = semantics.starting_shares(load([], overrides), NAMES, [0.5, 0.25, 0.25], [10, 20, 70])
    assert shares == pytest.approx(expected)


def test_shares_for_other_domains_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"mixture\.start: needs one share for each of law, code, general"
    ):
        semantics.starting_shares(load([], ["mixture.start={law: 1}"]), NAMES, None, [1, 1, 1])


def test_an_unknown_target_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(UserError, match="unknown domain 'cod'; valid: law, code, general"):
        semantics.policy(
            load(
                [],
                [
                    "mixture.policy=expansion",
                    "mixture.targets=cod",
                    "domains.cod=a",
                    "domains.x=b",
                    "model.path=m",
                ],
            ),
            NAMES,
        )


def test_floors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        UserError,
        match=r"mixture\.min_share: 0\.4 for each of 3 domains is more than 1; at most 0\.3333",
    ):
        semantics.policy(load([], ["mixture.min_share=0.4"]), NAMES)


def test_policies_carry_their_settings() -> None:
    assert semantics.policy(load([], ["mixture.policy=constant"]), NAMES) == Constant()
    assert semantics.policy(
        load([], ["mixture.sigma=2", "mixture.min_share=0.1"]), NAMES
    ) == VersaTune(sigma=2, min_share=0.1)
    settings = [
        "mixture.policy=expansion",
        "mixture.targets=[code]",
        "mixture.delta=0.2",
        "mixture.mean_over=k-1",
        "mixture.guard=false",
    ]
    expected = Expansion(targets=(1,), delta=0.2, mean_over="k-1", guard=False)
    assert semantics.policy(load([], settings), NAMES) == expected


def test_steps_and_adjustments_follow_the_paper() -> None:
    # 4 epochs of 60,000 samples at batch 128: 240,000 / 128 = 1,875 steps, adjusted once per epoch:
    # 468.75, rounded to 469.
    config = load([], ["training.samples_per_epoch=60000", "mixture.start=uniform"])
    (stage,) = semantics.stages(config, NAMES, [10, 20, 70], None, "nats/token")
    assert stage.recipe.steps == stage.last == 1875
    assert stage.adjust_every == 469


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        # 40 steps of 10 are 400 samples; 10 + 20 + 70 = 100 records allow 4 · 100, and at 3.99 only
        # 39 + 79 + 279 = 397.
        (["mixture.max_passes=4"], None),
        (
            ["mixture.max_passes=3.99"],
            "mixture.max_passes: 3.99 over the 100 records of law, code, general give 397 samples",
        ),
        (
            ["mixture.start=detected", "mixture.max_passes=2"],
            "over the 100 records of law, code, general give 200 samples",
        ),
        # A domain without a share stays without one: 30 records · 13 = 390, unless a floor or a
        # target brings it back.
        (
            ["mixture.start={law: 1, code: 1, general: 0}", "mixture.max_passes=13"],
            "13 over the 30 records of law, code give 390 samples",
        ),
        (
            [
                "mixture.start={law: 1, code: 1, general: 0}",
                "mixture.max_passes=13",
                "mixture.min_share=0.1",
            ],
            None,
        ),
        (
            [
                "mixture.start={law: 1, code: 1, general: 0}",
                "mixture.max_passes=13",
                "mixture.min_share=0.1",
                "mixture.policy=constant",
            ],
            "390",
        ),
    ],
)
def test_a_run_longer_than_the_records_last_is_refused(
    overrides: list[str], refusal: str | None
) -> None:
    config = load(
        [], ["training.epochs=4", "training.batch_size=10", "mixture.start=uniform", *overrides]
    )
    recipe = semantics.recipe(config, train_records=100, unit="nats/token")
    assert recipe.max_passes == config.mixture.max_passes
    if refusal is None:
        semantics.check_passes(config, NAMES, [10, 20, 70], recipe)
    else:
        with pytest.raises(UserError, match=re.escape(refusal)):
            semantics.check_passes(config, NAMES, [10, 20, 70], recipe)


def stages(*overrides: str) -> list[Any]:
    domains = [f"domains.{name}=a" for name in NAMES]
    config = load(
        [],
        [
            "model.path=m",
            *domains,
            "mixture.start=proportional",
            "mixture.policy=constant",
            *overrides,
        ],
    )
    semantics.check(config, NAMES)
    return semantics.stages(config, NAMES, [110_142, 20_022, 86_060], [0.5, 0.3, 0.2], "nats/token")


def test_the_published_subsets_of_dmt() -> None:
    """Dong et al. 2023 (arXiv 2310.05492): 1/256 of 110,142, 20,022 and 86,060 records are 430, 78
    and 336.
    """
    (one,) = stages("stages=[{name: all, fraction: 1/256}]")
    assert one.records == (430, 78, 336)
    assert half_up("1/2", 5) == 3 and half_up("1/2", 3) == 2, (
        "a half rounds up, never to the even number"
    )
    assert half_up(0.1, 35) == 4, "0.1 means a tenth, not the binary number that is slightly more"


def test_stages_follow_each_other_each_planned_like_a_run_of_its_own() -> None:
    first, second = stages(
        "training.batch_size=100",
        "stages=[{name: s, sources: [general, law], epochs: 2}, "
        "{name: g, sources: code, rehearse: 1/256, start: detected, epochs: 1,"
        " learning_rate: 1e-6, batch_size: 10}]",
    )
    assert first.sources == (0, 2) and first.records == (110_142, 0, 86_060)
    # 2 epochs of 110,142 + 86,060 records are 392,404 samples: 3,925 steps of 100, and an
    # adjustment per epoch, 1,962.5, rounded to even.
    assert (first.first, first.last, first.adjust_every) == (0, 3925, 1962)
    np.testing.assert_allclose(first.start, [110_142 / 196_202, 0, 86_060 / 196_202])
    assert second.records == (430, 20_022, 336) and second.sources == (0, 1, 2)
    # 20,788 samples in steps of 10
    assert (second.first, second.recipe.steps, second.recipe.learning_rate) == (3925, 2079, 1e-6)
    np.testing.assert_allclose(second.start, [0.5, 0.3, 0.2])
    # Steps of 100 over 196,202 samples per epoch, then 2,079 of 10 over 20,788.
    assert second.epoch(second.last) == pytest.approx(392_500 / 196_202 + 20_790 / 20_788)
    assert (first.recipe.scheduled, second.recipe.scheduled) == (3925, 2079)


def test_stages_of_one_schedule_share_its_steps() -> None:
    two = (
        "stages=[{name: a, samples_per_epoch: 1280, epochs: 1}, "
        "{name: b, samples_per_epoch: 2560, epochs: 1, fresh: false}]"
    )
    assert [(one.recipe.steps, one.recipe.scheduled) for one in stages(two)] == [(10, 30), (20, 30)]


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ("[{name: s, sources: [lwa]}]", "stages.s: unknown domain 'lwa'; did you mean 'law'?"),
        ("[{name: s, records: {lwa: 3}}]", "stages.s: unknown domain 'lwa'"),
        ("[{name: s}, {name: s}]", "stages: two are called 's'"),
        ("[{name: s, fraction: 2}]", "a fraction within 0 and 1, as 1/16 or 0.0625; found 2"),
        ("[{name: s, fraction: 1/0}]", "found '1/0'"),
        ("[{name: s, records: 3, fraction: 1/2}]", "write one of them for each source"),
        ("[{name: s, sources: law, records: 0}]", "stages.s: no record is left of law"),
        (
            "[{name: s, fresh: false}]",
            "stages.s.fresh: the first stage has no optimizer to go on with",
        ),
        (
            "[{name: s}, {name: t, fresh: false, learning_rate: 1.0}]",
            "stages.t.learning_rate: 1.0 differs from that of 's'",
        ),
        ("[{name: s, sources: law, policy: expansion}]", "stages.s: mixture.targets"),
        (
            "[{name: s, start: {law: 1}}]",
            "stages.s: mixture.start: needs one share for each of law, code, general",
        ),
        (
            "[{name: s, batch_size: 1}]",
            "stages.s: training.batch_size: 1 is less than one sample for each of 2 workers",
        ),
        (
            "[{name: s, sources: law, records: {code: 5}}]",
            "stages.s.records: this stage does not train on 'code', but on law",
        ),
        (
            "[{name: s, sources: law, start: {law: 0.5, code: 0.5}}]",
            "stages.s.start: this stage does not train on 'code'",
        ),
        (
            "[{name: s, policy: odm, options: {eta: 1}}]",
            "stages.s: mixture.options.eta: odm takes no such setting",
        ),
        (
            "[{name: s, sources: law}, {name: g, sources: code, rehearse: 1/4, policy: constant, "
            "start: {law: 1, code: 0}}]",
            "stages.g: start={'law': 1, 'code': 0} gives nothing to code, which this stage is for",
        ),
        ("[{epochs: 1}]", "stages.0.name"),
    ],
)
def test_stages_that_cannot_be_are_refused(given: str, refusal: str) -> None:
    with pytest.raises(UserError, match=re.escape(refusal)):
        stages(f"stages={given}")


def test_what_is_rehearsed_is_a_part_of_what_was_used() -> None:
    first = "{name: s, sources: [law, general], records: {law: 40}}"
    _, second = stages(f"stages=[{first}, {{name: g, sources: code, rehearse: 1/16}}]")
    assert second.records == (3, 20_022, 5379)  # 40 / 16 = 2.5 and 86,060 / 16 = 5,378.75
    _, second = stages(
        f"stages=[{first}, {{name: g, sources: code, rehearse: 1/16, fraction: {{law: 1/2}}}}]"
    )
    assert second.records == (20, 20_022, 5379), "a fraction of its own counts in place of k"


def test_every_stage_may_have_settings_for_its_policy() -> None:
    first, second, third = stages(
        "mixture.policy=odm",
        "mixture.options.alpha=0.5",
        "stages=[{name: a}, {name: b, policy: doremi, options: {eta: 2}}, "
        "{name: c, policy: doremi}]",
    )
    assert (first.policy, second.policy, third.policy) == (
        OnlineDataMixing(alpha=0.5),
        DoReMi(eta=2),
        DoReMi(),
    )
    assert [one.recipe.order for one in (first, second, third)] == [0, 1, 2]


def test_keys_of_a_stage_are_reached_by_its_name() -> None:
    (one, two) = load([], ["stages=[{name: s}, {name: g}]", "stages.g.rehearse=1/16"]).stages
    assert (one.rehearse, two.rehearse) == (0.0, "1/16")
    with pytest.raises(UserError, match=r"stages.h: none has this name; valid: s, g"):
        load([], ["stages=[{name: s}, {name: g}]", "stages.h.rehearse=1/16"])


def test_a_target_without_a_share_can_get_one() -> None:
    domains = [f"domains.{name}=a" for name in NAMES]
    settings = [
        "model.path=m",
        *domains,
        "mixture.policy=expansion",
        "mixture.targets=general",
        "mixture.start={law: 1, code: 1, general: 0}",
    ]
    config = load(
        [], [*settings, "mixture.max_passes=13", "training.epochs=4", "training.batch_size=10"]
    )
    semantics.check_passes(
        config, NAMES, [10, 20, 70], semantics.recipe(config, train_records=100, unit="nats/token")
    )


@pytest.mark.parametrize(("samples", "cap"), [(100, 4.0), (200, 4.0), (250, 5.0)])
def test_an_automatic_cap_is_four_passes_or_twice_the_runs_average(
    samples: int, cap: float
) -> None:
    config = load(
        [],
        [
            "mixture.max_passes=auto",
            f"training.samples_per_epoch={samples}",
            "training.epochs=1",
            "training.batch_size=10",
        ],
    )
    assert semantics.recipe(config, train_records=100, unit="nats/token").max_passes == cap


def test_without_a_cap_any_run_is_long_enough() -> None:
    config = load([], ["training.epochs=1000"])
    recipe = semantics.recipe(config, train_records=100, unit="nats/token")
    assert recipe.max_passes is None
    semantics.check_passes(config, NAMES, [10, 20, 70], recipe)


def test_what_shares_count_and_the_order_of_records_reach_the_recipe() -> None:
    (plain,) = stages()
    assert plain.recipe.counted == "samples" and set(plain.recipe.orders) == {"random"}
    (one,) = stages(
        "mixture.start=uniform",
        "mixture.unit=tokens",
        "domains.law={train: a, order: length}",
        "mixture.tokens=all",
    )
    assert one.recipe.counted == "all"
    assert one.recipe.orders == tuple("length" if name == "law" else "random" for name in NAMES)


def test_no_run_lies_in_what_another_keeps() -> None:
    for folder in ("cofitune", "hub", "trials", "reports"):
        with pytest.raises(
            UserError, match=f"^run: 'mine/{folder}' would lie in the folder of run"
        ):
            semantics.check_run(load([], [f"run=mine/{folder}"]))
    semantics.check_run(load([], ["run=cofitune/mine"]))
