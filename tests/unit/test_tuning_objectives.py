"""Gains, forgetting, scores and Pareto fronts, against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from versatune_ray.tuning.objectives import (
    accuracies,
    achieved,
    by_epoch,
    pareto_front,
    score,
    seconds_of,
)

BEFORE = {"law": 4.0, "code": 2.0, "general": 5.0}
AFTER = {"law": 3.0, "code": 2.2, "general": 4.5}


def test_gains_are_relative_decreases_and_forgetting_the_mean_increase_of_the_others() -> None:
    # law (4 - 3) / 4 = 0.25, code (2 - 2.2) / 2 = -0.1, general (5 - 4.5) / 5 = 0.1
    found = achieved(BEFORE, AFTER, ["law"])
    assert found == pytest.approx({"gain": 0.25 / 3, "target_gain": 0.25, "forgetting": 0.0})
    found = achieved(BEFORE, AFTER, ["law", "general"])
    assert found == pytest.approx({"gain": 0.25 / 3, "target_gain": 0.175, "forgetting": 0.1})
    assert achieved(BEFORE, AFTER) == pytest.approx({"gain": 0.25 / 3})
    assert score(found, {"target_gain": 1.0, "forgetting": -0.5}) == pytest.approx(0.125)


def test_accuracies_are_means_over_the_targets_and_the_others() -> None:
    scores = {"law": 0.9, "code": 0.2, "exam": 0.4}  # the last is no domain that trains
    assert accuracies(scores, ["law"]) == pytest.approx(
        {"accuracy": 0.5, "target_accuracy": 0.9, "other_accuracy": 0.3}
    )
    assert accuracies({"code": 0.2}, ["law"]) == {"accuracy": 0.2, "other_accuracy": 0.2}
    assert accuracies(scores) == pytest.approx({"accuracy": 0.5}) and accuracies({}) == {}


def test_losses_that_allow_no_comparison_are_named() -> None:
    with pytest.raises(ValueError, match="code: no loss after"):
        achieved(BEFORE, {"law": 1.0, "general": 1.0})
    with pytest.raises(ValueError, match=r"law: .*0 before"):
        achieved(BEFORE | {"law": 0.0}, AFTER)
    with pytest.raises(ValueError, match="every domain is one"):
        achieved(BEFORE, AFTER, list(BEFORE))


def test_the_front_is_what_no_other_point_beats() -> None:
    points = [[1, 1], [2, 0], [0, 2], [1, 0], [1, 1], [0, 0]]
    assert pareto_front(points) == [0, 1, 2, 4]
    assert pareto_front(np.zeros((0, 2))) == []
    # what is no number is on no front, and beats nothing
    assert pareto_front([[np.nan, 9], [1, 1], [np.nan, np.nan], [2, 0], [np.inf, 0]]) == [1, 3]
    rng = np.random.default_rng(0)
    table = rng.integers(0, 6, (60, 3))

    def beaten(one: np.ndarray, by: np.ndarray) -> bool:
        return all(by >= one) and any(by > one)

    brute = [i for i, one in enumerate(table) if not any(beaten(one, other) for other in table)]
    assert pareto_front(table) == brute


def test_losses_by_epoch_are_those_of_the_last_adjustment_within_it() -> None:
    lines = [
        {"epoch": epoch, "loss": {"law": loss}, "feedback": feedback}
        for epoch, loss, feedback in [
            (0.0, 5.0, "held_out"), (0.6, 4.0, "held_out"), (0.9, 3.0, "train"),
            (1.2, 2.0, "held_out"),
            (2.0, 1.0, "held_out"),
        ]
    ]  # fmt: skip
    assert by_epoch(lines) == [{"law": 4.0}, {"law": 1.0}]
    assert by_epoch(lines[:2]) == []
    # measured before and after three epochs alone: what the base has is not what it had after one
    assert by_epoch([lines[0], lines[-1] | {"epoch": 3.0}]) == [None, None, {"law": 1.0}]


def test_seconds_are_those_of_the_whole_run() -> None:
    parts = [{"training": 0.0, "measuring": 1.5}, {"training": 4.0, "measuring": 0.5}, {}]
    assert seconds_of([{"seconds": part} for part in parts]) == {"training": 4, "measuring": 2}
    assert seconds_of([{"step": 0}]) == {"training": 0, "measuring": 0}
