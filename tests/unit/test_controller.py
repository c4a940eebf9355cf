"""The weight controller, undecorated: one decision for all ranks, errors that name who or what is
missing, exact resume.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from versatune_ray.mixture import Constant, DoGE, Expansion, VersaTune
from versatune_ray.settings.recipe import Recipe, StagePlan
from versatune_ray.training.adjustment import Gradients, Refused, Report
from versatune_ray.training.controller import WeightController

START = np.array([0.5, 0.5])


def stage(
    policy: Any,
    name: str | None = None,
    sources: tuple[int, ...] = (0, 1),
    start: Any = START,
    first: int = 0,
    steps: int = 99,
) -> StagePlan:
    recipe = Recipe(
        steps, 8, 100, learning_rate=1e-3, warmup=0.0, weight_decay=0.0, max_grad_norm=0.0, seed=0
    )
    return StagePlan(
        name,
        sources,
        (10, 10),
        start,
        policy,
        recipe,
        adjust_every=10,
        epoch_samples=80,
        first=first,
    )


def controller(
    policy: Any = None, reference: Any = (1.0, 1.0), timeout: float = 5.0, **more: float
) -> WeightController:
    return WeightController(
        ["law", "code"],
        [stage(policy or VersaTune(sigma=1.0))],
        np.array(reference),
        timeout,
        **more,
    )


def report(
    step: int, sums: list[float], counts: list[float], samples: tuple[int, int] = (3, 1)
) -> Report:
    zero, some = np.zeros(2), np.array(samples)
    return Report(
        0,
        step,
        step / 10,
        np.array(sums),
        np.array(counts),
        zero,
        zero,
        some,
        some * 10,
        np.zeros(2),
        {"training": 1.0},
    )


def exchange(actor: WeightController, *reports: Report, attempt: int = 1) -> list[Any]:
    async def run() -> list[Any]:
        return await asyncio.gather(
            *(actor.exchange(attempt, {rank: told}) for rank, told in enumerate(reports))
        )

    return asyncio.run(run())


def test_all_ranks_get_the_same_numbered_shares_from_the_sums_of_all() -> None:
    actor = controller()
    actor.begin(2, None)
    # Losses over both ranks: law (6 + 2) / (2 + 2) = 2, code (1 + 1) / (1 + 1) = 1: only law has
    # potential, γ = (2 - 1) / 2 = 0.5.
    first, second = exchange(actor, report(10, [6, 1], [2, 1]), report(10, [2, 1], [2, 1]))
    assert first.number == second.number == 0
    # P' = 0.5 · (1 + 0.5) and 0.5, which is 0.75 : 0.5 = 0.6 : 0.4.
    np.testing.assert_allclose(first.share, [0.6, 0.4], atol=1e-12)
    np.testing.assert_array_equal(first.share, second.share)
    assert first.line["loss"] == {"law": 2.0, "code": 1.0}
    assert first.line["learnable_potential"] == {"law": 0.5, "code": 0.0}
    assert first.line["share_achieved"] == {"law": 0.75, "code": 0.25}


def test_ranks_of_one_node_report_together_and_rank_0_alone_gets_the_line() -> None:
    actor = controller()
    actor.begin(3, None)
    node = {1: report(10, [6, 1], [2, 1]), 2: report(10, [1, 0.5], [1, 0.5])}

    async def run() -> list[Any]:
        return await asyncio.gather(
            actor.exchange(1, node), actor.exchange(1, {0: report(10, [1, 0.5], [1, 0.5])})
        )

    others, zero = asyncio.run(run())
    # The same sums as of two ranks above: law 8 / 4, code 2 / 2.
    np.testing.assert_allclose(zero.share, [0.6, 0.4], atol=1e-12)
    np.testing.assert_array_equal(others.share, zero.share)
    assert zero.line["loss"] == {"law": 2.0, "code": 1.0}
    assert others.line == {}


def test_the_measurement_before_step_1_moves_no_share_but_is_remembered() -> None:
    actor = controller(Expansion(targets=[0], delta=0.1, epsilon=1.0))
    actor.begin(1, None)
    (before,) = exchange(actor, report(0, [2, 2], [1, 1]))
    np.testing.assert_array_equal(before.share, START)
    assert before.line["forgetting_degree"] is None
    (after,) = exchange(actor, report(10, [2, 3], [1, 1]))
    # φ_code = (3 - 2) / 2 = 0.5, its mean over k = 2 is 0.25, and γ_law = (2 - 1) / 2 = 0.5 bounds
    # it: open, law + 0.1.
    assert after.line["forgetting_degree"] == {"law": 0.0, "code": 0.5}
    assert after.line["guard"] == {"open": True, "forgetting": 0.25, "bound": 0.5}
    np.testing.assert_allclose(after.share, [0.6, 0.4], atol=1e-12)


def test_a_rank_that_stays_silent_is_named() -> None:
    actor = controller(timeout=0.05)
    actor.begin(3, None)

    async def two_of_three() -> None:
        # of one node
        await actor.exchange(1, {rank: report(10, [1, 1], [1, 1]) for rank in (0, 2)})

    with pytest.raises(TimeoutError, match=r"step 10: no word from rank\(s\) \[1\]"):
        asyncio.run(two_of_three())


def test_an_earlier_attempt_is_refused() -> None:
    actor = controller()
    actor.begin(1, None)
    actor.begin(1, None)
    with pytest.raises(RuntimeError, match="attempt 1; attempt 2 is running"):
        exchange(actor, report(10, [1, 1], [1, 1]), attempt=1)


def test_ranks_at_different_steps_are_told_so() -> None:
    actor = controller()
    actor.begin(2, None)
    with pytest.raises(RuntimeError, match="reports step 20 while the others are at step 10"):
        exchange(actor, report(10, [1, 1], [1, 1]), report(20, [1, 1], [1, 1]))


@pytest.mark.parametrize(
    ("sums", "counts"), [([np.nan, 1], [1, 1]), ([np.inf, 1], [1, 1]), ([1, 1], [0, 1])]
)
def test_a_loss_that_is_no_number_names_its_domain(sums: list[float], counts: list[float]) -> None:
    actor = controller()
    actor.begin(1, None)
    with np.errstate(all="ignore"), pytest.raises(Refused, match="law"):
        exchange(actor, report(10, sums, counts))


def test_a_restored_controller_decides_as_the_undisturbed_one() -> None:
    told = [report(step, [3 - step / 20, 2 + step / 30], [1, 1]) for step in (0, 10, 20, 30)]
    whole = controller(Expansion(targets=[1], delta=0.07))
    whole.begin(1, None)
    lines = [exchange(whole, one)[0].line for one in told]

    first = controller(Expansion(targets=[1], delta=0.07))
    first.begin(1, None)
    for one in told[:2]:
        exchange(first, one)
    state = json.loads(json.dumps(first.state_dict(1)))  # as it lies in the checkpoint
    exchange(first, told[2])  # decided after the checkpoint, then lost
    second = controller(Expansion(targets=[1], delta=0.07))
    attempt, share, log = second.begin(1, state)
    assert (attempt, log) == (1, lines[:2])
    assert share == list(lines[1]["share"].values())
    assert lines[2:] == [exchange(second, one)[0].line for one in told[2:]]


def test_a_controller_that_came_back_empty_gives_no_state_to_a_checkpoint() -> None:
    with pytest.raises(RuntimeError, match="the state of attempt 1 is gone"):
        controller().state_dict(1)


def test_a_checkpoint_of_other_domains_is_refused() -> None:
    state = controller().state_dict(0) | {"domains": ["law", "medicine"]}
    with pytest.raises(ValueError, match="medicine"):
        controller().begin(1, state)


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


def drawn(step: int, law: float | None, code: float | None, passes: tuple[float, float]) -> Report:
    """A report of training losses, of one token per domain; None: not drawn."""
    losses, counts = (
        np.array([law or 0.0, code or 0.0]),
        np.array([law is not None, code is not None]).astype(float),
    )
    samples = counts.astype(np.int64)
    return Report(
        0, step, step / 10, None, None, losses, counts, samples, samples, np.array(passes)
    )


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


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ([0.6, 0.3], "policy Wrong: shares sum to 0.9, not to 1"),
        ([1.0], "policy Wrong: .*2"),
        (None, "policy Wrong: it broke"),
    ],
)
def test_a_policy_of_ones_own_that_goes_wrong_is_named_on_all_ranks(
    answer: list[float] | None, told: str
) -> None:
    class Wrong:
        needs_reference = False

        def update(self, shares: Any, feedback: Any) -> Any:
            if answer is None:
                raise RuntimeError("it broke")
            return np.array(answer)

        def guard_state(self, shares: Any, feedback: Any) -> None:
            return None

    actor = controller(Wrong())
    actor.begin(2, None)
    exchange(actor, report(0, [4, 4], [1, 1]), report(0, [4, 4], [1, 1]))
    with pytest.raises(ValueError, match=told):
        exchange(actor, report(10, [4, 4], [1, 1]), report(10, [4, 4], [1, 1]))


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
