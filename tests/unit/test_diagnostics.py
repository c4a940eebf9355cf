"""Each sign of trouble is told with its numbers when it begins, once, and again only after it had
gone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from versatune_ray.mixture import new_warnings

NAMES = ("law", "code")


def line(
    share: Sequence[float] = (0.5, 0.5),
    loss: Sequence[float | None] | None = (2.0, 1.0),
    potential: Sequence[float] | None = (0.5, 0.1),
    passes: Sequence[float] | None = (1.0, 1.0),
    feedback: str = "held_out",
) -> dict[str, Any]:
    def named(values: Sequence[float | None] | None) -> dict[str, float | None] | None:
        return None if values is None else dict(zip(NAMES, values, strict=True))

    told = {"share": share, "loss": loss, "learnable_potential": potential, "passes": passes}
    return {key: named(values) for key, values in told.items()} | {"feedback": feedback}


def shares(*law: float, feedback: str = "held_out") -> list[dict[str, Any]]:
    return [line(share=(value, 1 - value), feedback=feedback) for value in law]


def losses(
    *pairs: Sequence[float | None], feedback: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    return [
        line(loss=pair, feedback=kind)
        for pair, kind in zip(pairs, feedback or ["held_out"] * len(pairs), strict=True)
    ]


def history(lines: Sequence[dict[str, Any]], warn_passes: float = 4.0) -> list[list[str]]:
    """What is told at each line."""
    return [new_warnings(lines[: number + 1], warn_passes) for number in range(len(lines))]


def test_a_calm_run_and_lines_without_numbers_say_nothing() -> None:
    assert new_warnings([]) == []
    assert history([line()] * 8) == [[]] * 8
    assert history([line(loss=None, potential=None, passes=None)] * 8) == [[]] * 8
    assert history(losses((None, 1.0), (None, 1.1), (None, 1.2))) == [[], [], []]


def test_a_share_below_a_tenth_of_its_start_is_told_once_and_again_when_it_comes_back() -> None:
    # A tenth of 0.2 is 0.02: 0.019 and 0.01 are below, 0.021 is not.
    told = history(shares(0.2, 0.021, 0.019, 0.01, 0.021, 0.015))
    sentence = (
        "less than a tenth is left of the starting share of law (20 % → {}): mixture.min_share is "
        "a floor under every share"
    )
    assert told == [[], [], [sentence.format("1.9 %")], [], [], [sentence.format("1.5 %")]]


def test_a_share_that_a_floor_of_a_tenth_holds_has_not_vanished() -> None:
    floor = 0.1 * (1 / 3) * (1 - 1e-12)  # as ``min_share`` leaves it, rounding and all
    assert history(shares(1 / 3, floor, floor)) == [[]] * 3


def test_a_domain_that_never_had_a_share_has_lost_none() -> None:
    assert history(shares(0.0, 0.0, 0.0)) == [[], [], []]


def test_swings_are_told_at_the_fourth_turn_and_once() -> None:
    # Moves of law: +20 %, −17 %, +20 %, −17 %, +20 %, −17 %; the first is no turn. Code moves by ±
    # 0.1 of 0.5 and 0.4: 20 % and 25 %.
    told = history(shares(0.5, 0.6, 0.5, 0.6, 0.5, 0.6, 0.5))
    assert told[:5] + told[6:] == [[]] * 6
    assert told[5] == [
        "the share of law (last 50 % → 60 %) and code (last 50 % → 40 %) turned at each of the "
        "last 4 adjustments: "
        "lower mixture.sigma or mixture.delta, or measure on more records (data.max_validation)"
    ]


def test_a_share_of_a_domain_alone_may_swing_and_training_feedback_has_its_own_way_out() -> None:
    # Law moves by 0.02 of 0.1 and 0.12 (20 % and 17 %), code by 0.02 of 0.9 (2 %).
    ((sentence,),) = history(shares(0.1, 0.12, 0.1, 0.12, 0.1, 0.12, feedback="train"))[5:]
    assert sentence.startswith("the share of law (last 10 % → 12 %) turned")
    assert sentence.endswith("or raise mixture.smoothing")


@pytest.mark.parametrize(
    "law",
    [
        (0.5, 0.54, 0.5, 0.54, 0.5, 0.54),  # 8 %
        (0.5, 0.6, 0.5, 0.6, 0.5, 0.5),  # it stopped
        (0.5, 0.6, 0.5, 0.4, 0.5, 0.4),  # it went down twice running
        (0.2, 0.25, 0.32, 0.4, 0.5, 0.63),  # it grows
    ],
)
def test_small_or_steady_moves_are_no_swings(law: tuple[float, ...]) -> None:
    assert history(shares(*law)) == [[]] * 6


def test_losses_that_rise_everywhere_twice_running() -> None:
    told = history(
        losses(
            (2.0, 1.0),
            (1.5, 0.9),
            (1.6, 1.0),
            (1.8, 1.3),
            (2.0, 1.4),
            (1.9, 1.5),
            (2.0, 1.6),
            (2.1, 1.8),
        )
    )
    sentence = (
        "the loss of every domain rose at two adjustments running (by {}): lower "
        "training.learning_rate, or look at the records"
    )
    # Over both: law 1.8 − 1.5 = 0.3 and code 1.3 − 0.9 = 0.4; it goes on, law falls, and again: 2.1
    # − 1.9 = 0.2 and 1.8 − 1.5 = 0.3.
    assert told[:3] + told[4:7] == [[]] * 6
    assert told[3] == [sentence.format("0.3 in law to 0.4 in code")]
    assert told[7] == [sentence.format("0.2 in law to 0.3 in code")]


def test_a_held_out_loss_after_training_losses_is_no_rise() -> None:
    pairs = ((1.0, 1.0), (1.1, 1.1), (1.2, 1.2))
    assert history(losses(*pairs, feedback=("train", "train", "held_out"))) == [[]] * 3
    assert len(history(losses(*pairs, feedback=("train", "train", "train")))[2]) == 1


def test_no_potential_anywhere_is_told_from_the_first_line_on() -> None:
    none = line(potential=(0.0, 0.0))
    told = history([none, none, line(potential=(0.0, 0.1)), none])
    sentence = (
        "the loss of every domain (1 to 2) is no longer above its reference loss, so nothing "
        "guides the shares any more: "
        "find a lower ceiling with a stronger reference.model or more reference.epochs"
    )
    assert told == [[sentence], [], [], [sentence]]


def test_repeated_domains_are_told_each_when_they_begin_to_repeat() -> None:
    # 4.04 passes read 4.0, as batches do not end with an epoch.
    told = history([line(passes=passes) for passes in ((2, 4.04), (3, 4.06), (4, 5), (5, 6))])
    sentence = (
        "records repeat in {} passes); beyond 4 passes they teach less than new ones: "
        "add records, lower training.epochs, or set mixture.max_passes"
    )
    assert told == [[], [sentence.format("code (4.1")], [], [sentence.format("law (5.0")]]
    assert history([line(passes=(2, 2.5))], warn_passes=2) == [
        [
            "records repeat in code (2.5 passes); beyond 2 passes they teach less than new ones: "
            "add records, lower training.epochs, or set mixture.max_passes"
        ]
    ]


def test_many_domains_are_named_in_part() -> None:
    names = [f"d{number}" for number in range(9)]
    every = dict.fromkeys(names, 1 / 9)
    (sentence,) = new_warnings(
        [{"share": every, "loss": every, "passes": dict.fromkeys(names, 5.0)}]
    )
    assert sentence.startswith(
        "records repeat in d0 (5.0 passes), d1 (5.0 passes), d2 (5.0 passes), d3 (5.0 passes), d4 "
        "(5.0 passes) and 4 more;"
    )


def test_lines_read_back_from_the_log_say_the_same() -> None:
    lines = shares(0.2, 0.021, 0.019, 0.01, 0.021, 0.015)
    assert history(json.loads(json.dumps(lines))) == history(lines)


def test_a_domain_that_overfits_and_is_given_more_is_told() -> None:
    def scarce(
        loss: float, share: float, passes: float, feedback: str = "held_out"
    ) -> dict[str, Any]:
        return line(
            share=(share, 1 - share), loss=(loss, 1.0), passes=(passes, 0.5), feedback=feedback
        )

    # 1 % above 2.0 is 2.02
    course = [
        scarce(3.0, 0.2, 0),
        scarce(2.0, 0.25, 1.5),
        scarce(2.02, 0.3, 2.5),
        scarce(2.1, 0.35, 3.5),
        scarce(2.2, 0.4, 4),
    ]
    told = history(course)
    assert told[:3] == [[], [], []] and told[4] == []
    assert len(told[3]) == 1
    assert (
        "law (loss 2.000 → 2.100, share 25 % → 35 %, 3.5 passes)" in told[3][0]
        and "mixture.heed_overfitting=true" in told[3][0]
    )
    falling_share = [scarce(2.0, 0.25, 1.5), scarce(2.3, 0.2, 3)]
    first_passes = [scarce(2.0, 0.25, 0.5), scarce(2.3, 0.3, 1.9)]
    training = [scarce(2.0, 0.25, 1.5, "train"), scarce(2.3, 0.3, 3, "train")]
    assert not any(map(any, (history(falling_share), history(first_passes), history(training))))
