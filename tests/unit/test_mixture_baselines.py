"""The mixers of others, against numbers worked out by hand from their formulas."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from versatune_ray import mixture as mix
from versatune_ray.errors import UserError
from versatune_ray.mixture import (
    DoGE,
    DoReMi,
    DynamicLoading,
    Feedback,
    OnlineDataMixing,
    SkillIt,
    replay,
)
from versatune_ray.settings import semantics
from versatune_ray.settings.loading import parse

SHARES = [0.5, 0.3, 0.2]


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert abs(found.sum() - 1) < 1e-12


def test_doremi_cuts_the_excess_at_zero_and_mixes_in_a_little_of_everything() -> None:
    # Excess (ln 2, 0, ln 4): 0.5·2 : 0.3·1 : 0.2·4 = 1 : 0.3 : 0.8, of 2.1; then 0.9 of that and
    # 0.1 / 3 each.
    feedback = Feedback(8, loss=[1 + np.log(2), 1, 1 + np.log(4)], reference_loss=[1, 3, 1])
    close(
        DoReMi(smoothing=0.1).update(SHARES, feedback),
        0.9 * np.array([1, 0.3, 0.8]) / 2.1 + 0.1 / 3,
    )
    # η = 2 squares the factors: 0.5·4 : 0.3 : 0.2·16
    close(DoReMi(eta=2, smoothing=0).update(SHARES, feedback), np.array([2, 0.3, 3.2]) / 5.5)
    assert (DoReMi().eta, DoReMi().smoothing) == (1.0, 1e-4)
    # A share of 0 comes back with c / k.
    assert DoReMi().update([1, 0, 0], feedback)[1] == pytest.approx(1e-4 / 3)


def test_dynamic_loading_pushes_down_what_is_below_its_target() -> None:
    # ℓ − target = (ln 2, −ln 3, 0): 0.5·2 : 0.3 / 3 : 0.2 = 1 : 0.1 : 0.2
    feedback = Feedback(8, loss=[1 + np.log(2), 2, 1], reference_loss=[1, 2 + np.log(3), 1])
    close(DynamicLoading(smoothing=0).update(SHARES, feedback), np.array([1, 0.1, 0.2]) / 1.3)
    close(
        DynamicLoading(smoothing=0.3).update(SHARES, feedback),
        0.7 * np.array([1, 0.1, 0.2]) / 1.3 + 0.1,
    )


def test_odm_averages_rewards_and_explores_less_and_less() -> None:
    # k = 2, two measurements, α = 0.5: R ∝ 0.5·exp(ℓ₀) + exp(ℓ₁) = (0.5·4 + 2, 0.5·1 + 1) = (4,
    # 1.5). After 10 optimizer steps ε = min(1/2, √(ln 2 / 20)) = 0.1861648705529517.
    feedback = Feedback(10, loss=np.log([2, 1]), history=[np.log([4, 1])])
    explored = 0.1861648705529517
    close(
        OnlineDataMixing(alpha=0.5).update([0.9, 0.1], feedback),
        (1 - 2 * explored) * np.array([4, 1.5]) / 5.5 + explored,
    )
    # After one step ε would be 0.5887 and is cut to 1/k, so uniform.
    close(OnlineDataMixing().update([0.9, 0.1], Feedback(1, loss=[3, 1])), [0.5, 0.5])
    # Warm-up keeps what is there, and a thousand nats overflow nothing.
    close(OnlineDataMixing(warmup=11).update([0.9, 0.1], feedback), [0.9, 0.1])
    assert np.isfinite(
        OnlineDataMixing().update([0.9, 0.1], Feedback(10, loss=[1000, 0], history=[[0, 999]]))
    ).all()


def test_skill_it_sums_the_last_losses_along_the_graph() -> None:
    # The last two of three: (ln 2 + ln 3, 0) with A = I and η = 1 gives 6 : 1; the share before
    # does not matter.
    feedback = Feedback(10, loss=[np.log(3), 0], history=[[9, 9], [np.log(2), 0]])
    close(SkillIt(eta=1, window=2).update([0.1, 0.9], feedback), [6 / 7, 1 / 7])
    # A = [[1, 0], [1, 1]]: learning the second helps the first as well, so its exponent is ln 6 + 0
    # too.
    close(
        SkillIt(skills=[[1, 0], [1, 1]], eta=1, window=2).update([0.1, 0.9], feedback), [0.5, 0.5]
    )
    close(
        SkillIt(eta=0.5, window=2).update([0.1, 0.9], feedback),
        np.array([6**0.5, 1]) / (6**0.5 + 1),
    )
    with pytest.raises(ValueError, match="skills: expected 2 rows of 2 numbers"):
        SkillIt(skills=[[1.0]]).update([0.1, 0.9], feedback)


def test_doge_feeds_what_helps_the_others_and_pushes_nothing_down() -> None:
    # Gradients (3, 0), (4, 3), (0, −1): norms 3, 5, 1, mean 3; products with the others 12 + 0, 12
    # − 3 and 0 − 3, over 3: 4, 3 and −1 → 0.
    gradients = np.array([[3.0, 0.0], [4.0, 3.0], [0.0, -1.0]])
    feedback = Feedback(8, loss=[1, 1, 1], gradient_products=gradients @ gradients.T)
    ln2 = float(np.log(2))
    # η / μ = ln 2: 0.5·2⁴ : 0.3·2³ : 0.2 = 8 : 2.4 : 0.2
    close(DoGE(eta=ln2, mu=1).update(SHARES, feedback), np.array([8, 2.4, 0.2]) / 10.6)
    # Twice as long: 8, 6, −2 are cut to 5, 5 and 0; and the mean norm takes one of the two factors
    # away.
    longer = Feedback(8, loss=[1, 1, 1], gradient_products=4 * gradients @ gradients.T)
    close(
        DoGE(eta=0.1 * ln2, mu=0.1).update(SHARES, longer),
        np.array([0.5 * 32, 0.3 * 32, 0.2]) / 25.8,
    )
    close(
        DoGE().update(SHARES, Feedback(8, loss=[1, 1, 1], gradient_products=np.zeros((3, 3)))),
        SHARES,
    )
    assert (DoGE().eta, DoGE().mu) == (5e-4, 0.05)
    with pytest.raises(
        ValueError, match="step 8: gradient_products are missing; DoGE goes by them"
    ):
        DoGE().update(SHARES, Feedback(8, loss=[1, 1, 1]))
    for wrong, told in (
        (np.ones((2, 3)), r"expected 3 rows of 3 numbers, found an array of shape \(2, 3\)"),
        (np.full((3, 3), np.nan), "nan is"),
    ):
        with pytest.raises(ValueError, match=f"step 8: gradient products: {told}"):
            Feedback(8, loss=[1, 1, 1], gradient_products=wrong)


def test_a_part_of_the_domains_has_its_part_of_the_products() -> None:
    part = Feedback(8, loss=[1, 2, 3], gradient_products=np.arange(9.0).reshape(3, 3)).of([2, 0])
    assert part.gradient_products is not None and part.gradient_products.tolist() == [
        [8, 6],
        [2, 0],
    ]


def test_replay_tells_a_policy_the_products_that_were_recorded() -> None:
    gradients = np.array([[3.0, 0.0], [4.0, 3.0], [0.0, -1.0]])
    policy, losses = DoGE(eta=float(np.log(2)), mu=1), [[1, 1, 1], [1, 1, 1]]
    rows = replay(
        policy, SHARES, losses, None, gradient_products=[np.eye(3), gradients @ gradients.T]
    )
    close(rows[1], SHARES)  # none helps another
    close(rows[2], np.array([8, 2.4, 0.2]) / 10.6)
    with pytest.raises(ValueError, match="zip"):
        replay(policy, SHARES, losses, None, gradient_products=[np.eye(3)])


@pytest.mark.parametrize("kind", [DoReMi, DynamicLoading, OnlineDataMixing, SkillIt])
def test_each_runs_over_recorded_losses_and_needs_no_state(kind: Any) -> None:
    rng = np.random.default_rng(0)
    losses, reference = rng.uniform(0.5, 3, (6, 3)), [0.4, 0.4, 0.4]
    whole = replay(kind(), SHARES, losses, reference, initial_loss=[3, 3, 3])
    # Going on from the middle with the losses so far gives the same shares: what a checkpoint has
    # to keep is the log.
    history, shares = [[3, 3, 3], *losses[:3]], whole[3]
    for place in (3, 4, 5):
        shares = kind().update(
            shares, Feedback(place + 1, losses[place], history[-1], reference, history=history)
        )
        history.append(losses[place])
        np.testing.assert_array_equal(shares, whole[place + 1])


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (DoReMi, {"eta": 0}, "eta: 0 is not a finite number above 0"),
        (DoReMi, {"smoothing": 1.5}, "smoothing: 1.5 is not within 0 and 1"),
        (OnlineDataMixing, {"alpha": 1.0}, "alpha: 1.0 is not a number of at least 0 and below 1"),
        (DoGE, {"mu": 0}, "mu: 0 is not a finite number above 0"),
        (SkillIt, {"window": 0}, "window: 0 is not a whole number of at least 1"),
        (SkillIt, {"window": 2.5}, "window: 2.5 is not a whole number"),
        (
            SkillIt,
            {"skills": [[1, 0], [1]]},
            r"skills: \[\[1, 0\], \[1\]\] are not as many rows of finite numbers",
        ),
        (SkillIt, {"skills": "abc"}, "skills: 'abc' are not as many rows"),
        (SkillIt, {"skills": [[1, 0], [float("nan"), 1]]}, "skills: .*nan.* are not as many rows"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        kind(**settings)


def configured(**mixture: Any) -> Any:
    return semantics.policy(parse({"mixture": mixture}), ("law", "code"))


def test_a_rule_is_chosen_by_name_with_its_options() -> None:
    assert configured(policy="doremi") == DoReMi()
    assert configured(policy="doge", options={"mu": 0.01}) == DoGE(mu=0.01)
    needing = [("doge", 0.0, True), ("doge", 0.1, True), ("odm", 0.1, False)]
    assert all(
        mix.needs(configured(policy=name, min_share=floor), "gradients") is needs
        for name, floor, needs in needing
    )
    assert configured(policy="odm", options={"alpha": 0.5}) == OnlineDataMixing(alpha=0.5)
    assert configured(policy="versatune", sigma=2.0, min_share=0.1) == mix.VersaTune(
        sigma=2.0, min_share=0.1
    )
    for mixture, told in (
        (
            {"policy": "skill_it", "options": {"etaa": 1}},
            r"mixture\.options\.etaa: skill_it takes no such setting; did you mean 'eta'",
        ),
        ({"policy": "doremi", "options": {"eta": -1}}, r"mixture\.options: doremi: eta: -1 is not"),
        (
            {"policy": "skill_it", "options": {"skills": [[1]]}},
            r"mixture\.options\.skills: 1 rows for the 2 domains law, code",
        ),
        (
            {"policy": "versatune", "options": {"sigma": 1}},
            r"mixture\.options: policy=versatune takes its settings from the other keys",
        ),
    ):
        with pytest.raises(UserError, match=told):
            configured(**mixture)
    assert [
        semantics.needs_reference(parse({"mixture": {"policy": name}}))
        for name in ("doremi", "odm", "constant")
    ] == [True, False, False]


def test_a_floor_lies_under_a_rival_too() -> None:
    floored = configured(policy="exponential_loss", min_share=0.2)
    # exp(ln 9) : exp(0) is 9 : 1, so the second share is lifted from 0.1.
    close(floored.update([0.5, 0.5], Feedback(1, loss=[np.log(9), 0])), [0.8, 0.2])
    close(
        configured(policy="exponential_loss").update([0.5, 0.5], Feedback(1, loss=[np.log(9), 0])),
        [0.9, 0.1],
    )


def test_replay_tells_a_policy_the_steps_that_were_recorded() -> None:
    moves = replay(
        OnlineDataMixing(warmup=100), [0.9, 0.1], [[3, 1], [3, 1]], None, [3, 1], steps=[90, 105]
    )
    np.testing.assert_array_equal(moves[1], [0.9, 0.1])
    assert moves[2][1] > 0.1


PLUGIN = """
from dataclasses import dataclass
import numpy as np

@dataclass(frozen=True)
class Cautious:
    step: float = 0.1

    def update(self, shares, feedback):
        moved = np.asarray(shares) * (1 + self.step * (feedback.loss > feedback.loss.mean()))
        return moved / moved.sum()

    def guard_state(self, shares, feedback):
        return None

class Half:
    def update(self, shares, feedback):
        return shares
"""


def test_a_policy_of_ones_own_is_named_by_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_policies.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_policies", raising=False)  # another test's
    policy = configured(policy="my_policies:Cautious", options={"step": 1.0})
    close(policy.update([0.5, 0.5], Feedback(1, [3.0, 1.0])), [2 / 3, 1 / 3])
    for name, told in (
        (
            "my_policies:Careful",
            "mixture.policy: my_policies:Careful: .*no attribute 'Careful'.*is it on the Python "
            "path",
        ),
        ("no_such_module:X", "mixture.policy: no_such_module:X: No module named 'no_such_module'"),
        (
            "my_policies:Half",
            "mixture.policy: my_policies:Half is no policy: it has no guard_state",
        ),
        ("my_policies:PLUGIN", "no attribute"),
    ):
        with pytest.raises(UserError, match=told):
            configured(policy=name)
    with pytest.raises(UserError, match=r"mixture\.policy: 'versatunee' is not valid"):
        configured(policy="versatunee")
    sys.modules.pop("my_policies")
