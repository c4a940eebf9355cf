"""What the weight controller makes of its measurements: averages, passes, products of gradients,
stages, and what it tells.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from controllers import controller, drawn, exchange, report, stage

from versatune_ray.mixture import Constant, DoGE, Feedback, VersaTune
from versatune_ray.training.adjustment import Gradients, Refused, Report
from versatune_ray.training.controller import WeightController


def test_training_feedback_keeps_the_last_loss_of_a_domain_that_was_not_drawn() -> None:
    actor = controller(Constant(), reference=(1.0, 1.0))
    actor.begin(1, None)
    exchange(actor, report(0, [4, 3], [1, 1]))
    drawn = np.array([8, 0])
    (decision,) = exchange(
        actor,
        Report(
            0,
            10,
            1.0,
            None,
            None,
            np.array([16.0, 0.0]),
            np.array([8.0, 0.0]),
            drawn,
            drawn,
            np.zeros(2),
        ),
    )
    assert decision.line["loss"] == {"law": 2.0, "code": 3.0}
    assert decision.line["train_loss"] == {"law": 2.0, "code": None}


def test_training_feedback_is_a_moving_average_of_the_losses_of_drawn_domains() -> None:
    actor = controller(Constant(), smoothing=0.75)
    actor.begin(1, None)
    exchange(actor, report(0, [9, 9], [1, 1]))
    told = [
        drawn(10, 4.0, None, (1, 0)),
        drawn(20, 2.0, 3.0, (2, 1)),
        drawn(30, None, 1.0, (2, 2)),
        drawn(40, 5.5, 2.5, (3, 3)),
    ]
    lines = [exchange(actor, one)[0].line for one in told]
    assert [line["loss"] for line in lines] == [
        # the first training loss as it is; code still has the loss measured before step 1
        {"law": 4.0, "code": 9.0},
        {"law": 3.5, "code": 3.0},  # 0.75 · 4 + 0.25 · 2
        {"law": 3.5, "code": 2.5},  # law was not drawn; 0.75 · 3 + 0.25 · 1
        {"law": 4.0, "code": 2.5},  # 0.75 · 3.5 + 0.25 · 5.5; 0.75 · 2.5 + 0.25 · 2.5
    ]
    assert [line["train_loss"]["law"] for line in lines] == [4.0, 2.0, None, 5.5]
    assert [line["feedback"] for line in lines] == ["train"] * 4


def test_training_losses_are_compared_with_training_losses_alone() -> None:
    """Each domain's first one is also what it was before: 9, 9 was measured on other records."""
    told: list[Feedback] = []

    class Noting(Constant):
        def update(self, shares: Any, feedback: Feedback) -> Any:
            told.append(feedback)
            return super().update(shares, feedback)

    actor = controller(Noting(), smoothing=0.0)
    actor.begin(1, None)
    exchange(actor, report(0, [9, 9], [1, 1]))
    rows = [(10, 12.0, None, (1, 0)), (20, 6.0, 3.0, (2, 1)), (30, 9.0, 6.0, (3, 2))]
    lines = [exchange(actor, drawn(*row))[0].line for row in rows]
    assert [one.history.tolist() for one in told] == [
        [[12, 9]],
        [[12, 3], [12, 3]],
        [[12, 3], [12, 3], [6, 3]],
    ]
    # Eq. 3, (ℓ(t) − ℓ(t−1)) / ℓ(t−1) where that is above 0
    assert [list(line["forgetting_degree"].values()) for line in lines] == [
        [0, 0],
        [0, 0],
        [0.5, 1],
    ]
    (last,) = exchange(actor, report(40, [4, 12], [1, 1]))
    assert told[-1].history.tolist() == [[9, 9]] * 4
    assert last.line["forgetting_degree"] == {"law": 0, "code": pytest.approx(1 / 3)}


def test_a_line_is_json_where_a_loss_rises_from_nothing() -> None:
    actor = controller(Constant())
    actor.begin(1, None)
    exchange(actor, report(0, [0, 4], [1, 1]))
    (rising,) = exchange(actor, report(10, [1, 5], [1, 1]))
    assert rising.line["forgetting_degree"] == {"law": None, "code": 0.25}
    json.dumps(rising.line, allow_nan=False)


def test_held_out_feedback_is_not_averaged() -> None:
    actor = controller(smoothing=0.75)
    actor.begin(1, None)
    exchange(actor, report(0, [4, 4], [1, 1]))
    (decision,) = exchange(actor, report(10, [2, 3], [1, 1]))
    assert decision.line["loss"] == {"law": 2.0, "code": 3.0}
    assert decision.line["feedback"] == "held_out"


def test_the_average_and_the_warnings_go_on_after_a_restore() -> None:
    told = [
        report(0, [9, 9], [1, 1]),
        *(drawn(10 * n, 3 + n / 7, 2 + n / 3, (n, 2.3 * n)) for n in range(1, 6)),
    ]
    whole = controller(smoothing=0.5)
    whole.begin(1, None)
    lines = [exchange(whole, one)[0].line for one in told]
    assert [bool(line["warnings"]) for line in lines] == [False, False, True, True, False, True]
    for cut in range(1, 6):
        first, second = controller(smoothing=0.5), controller(smoothing=0.5)
        first.begin(1, None)
        for one in told[:cut]:
            exchange(first, one)
        second.begin(1, json.loads(json.dumps(first.state_dict(1))))
        assert lines[cut:] == [exchange(second, one)[0].line for one in told[cut:]]


def test_a_line_tells_what_is_new_and_nothing_where_nothing_is() -> None:
    actor = controller(Constant(), reference=(1.0, 1.0), warn_passes=0.5)
    actor.begin(1, None)
    (calm,) = exchange(actor, report(0, [4, 4], [1, 1]))
    assert calm.line["warnings"] == []
    some = np.ones(2, dtype=np.int64)
    told = Report(
        0,
        10,
        1.0,
        np.array([2.0, 2.0]),
        np.ones(2),
        np.ones(2),
        np.ones(2),
        some,
        some,
        np.array([0.2, 0.8]),
    )
    (decision,) = exchange(actor, told)
    (warning,) = decision.line["warnings"]
    assert warning.startswith("records repeat in code (0.8 passes); beyond 0.5 passes")


def test_a_stage_begins_with_its_own_shares_and_its_policy_hears_of_its_own_domains_alone() -> None:
    told: list[Any] = []

    class Probe:
        needs_reference = False

        def update(self, shares: Any, feedback: Any) -> Any:
            told.append(
                (shares.tolist(), feedback.loss.tolist(), feedback.history.tolist(), feedback.names)
            )
            told[-1] += (feedback.step,)
            return np.array([1.0])

        def guard_state(self, shares: Any, feedback: Any) -> None:
            return None

    stages = [
        stage(Constant(), "both", steps=10),
        stage(Probe(), "code", sources=(1,), start=np.array([0.0, 1.0]), first=10),
    ]
    actor = WeightController(["law", "code"], stages, None, 5.0)
    actor.begin(1, None)
    shares = []
    for number, step, losses in ((0, 0, [4, 3]), (0, 10, [3, 2]), (1, 10, [3, 2]), (1, 20, [5, 1])):
        (decision,) = exchange(actor, replace(report(step, losses, [1, 1]), stage=number))
        shares.append((decision.line["stage"], decision.share.tolist()))
    assert shares == [
        ("both", [0.5, 0.5]),
        ("both", [0.5, 0.5]),
        ("code", [0, 1]),
        ("code", [0, 1]),
    ]
    assert told == [([1.0], [1.0], [[2.0]], ("code",), 10)], (
        "steps count from where the stage begins"
    )
    assert decision.line["warnings"] == [], "law's share was never more in this stage"
    again = WeightController(["law", "code"], stages, None, 5.0)
    again.begin(1, json.loads(json.dumps(actor.state_dict(1))))
    assert again.share.tolist() == [0, 1]


def test_products_of_gradients_come_to_the_policy_and_into_the_log() -> None:
    actor = controller(DoGE(eta=1.0, mu=1.0))
    actor.begin(2, None)
    (first, _) = exchange(actor, report(0, [4, 4], [1, 1]), report(0, [4, 4], [1, 1]))
    assert "gradient_products" not in first.line
    told = replace(
        report(10, [4, 4], [1, 1]), gradients=Gradients(np.array([[1.0, 0.5], [0.5, 9.0]]))
    )
    (decision, _) = exchange(actor, told, told)
    np.testing.assert_allclose(decision.share, [0.5, 0.5])  # both help the other alike: 0.5 / 2
    assert decision.line["gradient_products"] == {
        "law": {"law": 1.0, "code": 0.5},
        "code": {"law": 0.5, "code": 9.0},
    }
    broken = replace(report(20, [4, 4], [1, 1]), gradients=Gradients(np.full((2, 2), np.inf)))
    with pytest.raises(Refused, match="step 20: gradient products: inf is not a finite number"):
        exchange(actor, broken, broken)


def test_a_policy_is_told_the_passes_so_that_a_starved_domain_is_not_taken_for_overfitting() -> (
    None
):
    # Both losses rise from 2 to 4 over references of 1: potential (4 − 1) / 4. Code has been seen
    # twice and overfits; law has been seen 0.3 times and is given more: 0.5 · 1.75 to 0.5.
    actor = controller(VersaTune(sigma=1.0, heed_overfitting=True))
    actor.begin(1, None)
    actor.decide([replace(report(0, [2, 2], [1, 1]), passes=np.zeros(2))])
    decision = actor.decide([replace(report(10, [4, 4], [1, 1]), passes=np.array([0.3, 2.0]))])
    np.testing.assert_allclose(decision.share, [0.875 / 1.375, 0.5 / 1.375])


def test_passes_go_on_counting_from_stage_to_stage() -> None:
    stages = [
        stage(Constant(), "both", steps=10),
        stage(Constant(), "code", sources=(1,), start=np.array([0.0, 1.0]), first=10),
    ]
    actor = WeightController(["law", "code"], stages, None, 5.0)
    actor.begin(1, None)
    found = []
    for number, step, passes in (
        (0, 0, (0, 0)),
        (0, 10, (0.5, 2)),
        (1, 10, (0, 0)),
        (1, 20, (0, 1.5)),
    ):
        (decision,) = exchange(
            actor,
            replace(
                report(step, [2, 2], [1, 1]), stage=number, passes=np.array(passes, dtype=float)
            ),
        )
        found.append(list(decision.line["passes"].values()))
    assert found == [[0, 0], [0.5, 2], [0.5, 2], [0.5, 3.5]]


def test_the_average_of_training_losses_begins_anew_in_every_stage() -> None:
    stages = [stage(Constant(), "one", steps=10), stage(Constant(), "two", first=10)]
    actor = WeightController(["law", "code"], stages, None, 5.0, smoothing=0.5)
    actor.begin(1, None)
    told = [
        report(0, [9, 9], [1, 1]),
        drawn(10, 4.0, 2.0, (1, 1)),
        replace(report(10, [8, 8], [1, 1]), stage=1),  # held out, as a stage's first ones are
        replace(drawn(20, 3.0, None, (1, 0)), stage=1),
        replace(drawn(30, 1.0, 6.0, (2, 1)), stage=1),
    ]
    losses = [list(exchange(actor, one)[0].line["loss"].values()) for one in told]
    # 0.5 · 3 + 0.5 · 1 in the end; code is drawn from for the first time in this stage
    assert losses == [[9, 9], [4, 2], [8, 8], [3, 8], [2, 6]]
