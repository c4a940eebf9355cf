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
from controllers import START, controller, exchange, report

from versatune_ray.mixture import Constant, Expansion, Floored, Schedule
from versatune_ray.training.adjustment import Refused


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


def test_a_plan_that_takes_a_share_away_is_no_sign_of_trouble() -> None:
    plan = Schedule([(0, (0.5, 0.5)), (10, (0.99, 0.01))])
    for policy, warned in ((plan, False), (Floored(plan, 0.001), False), (Constant(), True)):
        actor = controller(policy)
        actor.begin(1, None)
        if warned:  # the same shares, of whatever else
            actor.stages[0] = replace(actor.stages[0], policy=_Sudden())
        for step in (0, 10):
            (decision,) = exchange(actor, report(step, [6, 2], [2, 1]))
        assert decision.share[1] == pytest.approx(0.01)
        assert any("less than a tenth" in one for one in decision.line["warnings"]) == warned


class _Sudden(Constant):
    def update(self, shares: Any, feedback: Any) -> Any:
        return np.array([0.99, 0.01])
