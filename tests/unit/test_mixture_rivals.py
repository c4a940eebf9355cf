"""The mixers of others since 2024, against numbers worked out by hand from their formulas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from versatune_ray.errors import UserError
from versatune_ray.mixture import (
    MSFT,
    Aioli,
    Budget,
    Constrained,
    DynamixSFT,
    Feedback,
    Ideal,
    PiKE,
    RandB,
    Velocitune,
    chameleon,
    replay,
)
from versatune_ray.mixture.rules import exponentiated
from versatune_ray.settings import semantics
from versatune_ray.settings.loading import load

E = float(np.e)


def budget(sizes: list[float], rows: int = 1, steps: int = 100, batch: int = 8) -> Budget:
    return Budget(steps, batch, np.array(sizes), np.zeros((rows, len(sizes))))


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert abs(found.sum() - 1) < 1e-12


def test_dynamix_remembers_rewards_around_the_proportional_mixture() -> None:
    # Relative falls ‖g‖²/ℓ: (2/1, 1/2) = (2, 0.5), scaled to (1, 0). Q = 0.5·0 + 0.5·(1, 0) = (0.5,
    # 0); p⁰ = (1/4, 3/4); β = 2 gives e·1/4 : 3/4; then 0.7 of that and 0.3/2 each.
    told = Feedback(
        50, [1, 2], gradient_products=[[2, 0], [0, 1]], history=[[1, 2]], budget=budget([10, 30], 2)
    )
    first = np.array([E / 4, 3 / 4]) / (E / 4 + 3 / 4)
    close(DynamixSFT(alpha=0.5, beta=2).update([0.5, 0.5], told), 0.7 * first + 0.15)
    # A measurement before, of falls (1/2, 3/1): reward (0, 1), Q = (0, 0.5), which is halved to
    # 0.25 before 0.5·(1, 0) comes: Q = (0.5, 0.25).
    later = Feedback(
        100,
        [1, 2],
        gradient_products=[[2, 0], [0, 1]],
        gradient_history=[[[1, 0], [0, 3]]],
        history=[[9, 9], [2, 1]],
        budget=budget([10, 30], 3),
    )
    both = np.array([E / 4, np.sqrt(E) * 3 / 4])
    close(DynamixSFT(alpha=0.5, beta=2).update([0.5, 0.5], later), 0.7 * both / both.sum() + 0.15)
    assert (DynamixSFT().gamma, DynamixSFT().alpha, DynamixSFT().beta) == (0.3, 0.95, 4.0)


def test_velocitune_feeds_what_has_most_of_its_way_left() -> None:
    # From 3 to a target of 1: at 2 half is left; from 2 to 1: at 1.5, half; the third is through.
    told = Feedback(9, [2, 1.5, 0.5], reference_loss=[1, 1, 1], history=[[3, 2, 4], [9, 9, 9]])
    weights = np.array([0.5 * np.sqrt(E), 0.3 * np.sqrt(E), 0.2])
    close(Velocitune().update([0.5, 0.3, 0.2], told), weights / weights.sum())
    # what got worse counts as all of the way; what began below its target as none
    worse = Feedback(9, [4, 0.9], reference_loss=[1, 1], history=[[3, 0.8]])
    close(Velocitune().update([0.5, 0.5], worse), np.array([E, 1]) / (E + 1))


def test_pike_weighs_signal_against_noise() -> None:
    # ζ₁‖g‖² − ζ₂σ²/(2·8): 1 − 0.25·32/16 = 0.5, and 0.5 − 0.25·0 = 0.5, and 0 − 0.25·64/16 = −1;
    # over the mean of 1, 0.5 and 0: 1, 1 and −2.
    told = Feedback(
        9,
        [1, 1, 1],
        gradient_products=np.diag([1, 0.5, 0]),
        gradient_variances=[32, 0, 64],
        budget=budget([1, 1, 1]),
    )
    weights = np.array([0.5 * E, 0.3 * E, 0.2 * E**-2])
    close(PiKE(1, 0.25).update([0.5, 0.3, 0.2], told), weights / weights.sum())
    silent = replace(told, gradient_products=np.zeros((3, 3)))
    close(PiKE().update([0.5, 0.3, 0.2], silent), [0.5, 0.3, 0.2])


def test_a_share_that_vanished_stays_away_whatever_its_exponent() -> None:
    close(exponentiated(np.array([0.0, 0.75, 0.25]), np.array([1e4, 2.0, 2.0])), [0, 0.75, 0.25])
    close(exponentiated(np.array([0.5, 0.5]), np.array([0.0, 1e4])), [0, 1])


def test_rnb_goes_by_what_helps_the_wanted_mixture() -> None:
    # G·(1/2, 1/2) = (3, 4)/… : rows sum to 6 and 8, halved 3 and 4, of length 5: 0.6 and 0.8.
    told = Feedback(9, [1, 1], gradient_products=[[5, 1], [1, 7]])
    weights = np.exp([5 * 0.6, 5 * 0.8])
    close(RandB(strength=5).update([0.9, 0.1], told), weights / weights.sum())
    # all wanted of the first: its column (5, 1), of length √26
    weights = np.exp(np.array([5, 1]) / np.sqrt(26))
    close(RandB(wanted=[1, 0]).update([0.9, 0.1], told), weights / weights.sum())


def test_ideal_resizes_by_a_held_out_gradient_for_two_rounds() -> None:
    # β = 0.15·(1, −0.5): 0.4·1.15 : 0.6·0.925 = 0.46 : 0.555
    told = Feedback(9, [1, 1], held_out_products=[2, -1], history=[[1, 1]])
    close(Ideal().update([0.4, 0.6], told), np.array([0.46, 0.555]) / 1.015)
    third = Feedback(9, [1, 1], held_out_products=[2, -1], history=np.ones((3, 2)))
    close(Ideal().update([0.4, 0.6], third), [0.4, 0.6])


def test_msft_lets_a_domain_go_at_its_minimum_for_good() -> None:
    rows = [[3, 3, 3], [2, 2, 2], [2.5, 1.5, 1.9]]
    close(MSFT().update([0.5, 0.3, 0.2], Feedback(9, rows[2], history=rows[:2])), [0, 0.6, 0.4])
    # the first is out although it would have a new minimum; then the third leaves as well
    told = Feedback(9, [1, 1.4, 2], history=rows)
    close(MSFT().update([0, 0.6, 0.4], told), [0, 1, 0])
    # the last one stays whatever it does
    close(MSFT().update([0, 1, 0], Feedback(9, [1, 9, 9], history=[*rows, [1, 1.4, 2]])), [0, 1, 0])
    # a loss that stayed is none that rose
    close(MSFT().update([0.5, 0.5], Feedback(9, [2, 1], history=[[3, 3], [2, 2]])), [0.5, 0.5])
    # two measurements of patience: a single rise is no end
    close(
        MSFT(patience=2).update([0.5, 0.3, 0.2], Feedback(9, rows[2], history=rows[:2])),
        [0.5, 0.3, 0.2],
    )


# What a share of 1 of each domain (columns) lowers each loss by (rows) in an interval.
SLOPES = np.array([[0.4, 0.1], [-0.2, 0.3]])


def probed(policy: Any, updates: int) -> Any:
    """Shares of a policy in a world where losses fall by SLOPES · shares, from uniform."""
    shares, rows = [np.array([0.5, 0.5])], [np.array([5.0, 5.0])]
    for _ in range(updates):
        rows.append(rows[-1] - SLOPES @ shares[-1])
        shares.append(policy.update(shares[-1], Feedback(9, rows[-1], history=rows[:-1])))
    return np.array(shares)


def test_aioli_finds_the_slopes_and_goes_by_their_sum() -> None:
    found = probed(Aioli(eta=0.5, smoothing=0.5, steady=2), 7)
    # Two probes, of 0.75 and 0.25. The slopes shifted up by 0.2 are (0.6, 0.3) and (0, 0.5), of sum
    # 1.4, and of 3/7 and 4/7 by columns; so two intervals with exp(0.5·(3/7, 4/7)) from uniform; in
    # the second round, the same factors once more.
    np.testing.assert_allclose(found[1:3], [[0.75, 0.25], [0.25, 0.75]])
    once, twice = np.exp([3 / 14, 4 / 14]), np.exp([6 / 14, 8 / 14])
    for row in found[3:5]:
        close(row, once / once.sum())
    np.testing.assert_allclose(found[5:7], found[1:3])
    close(found[7], twice / twice.sum())


def test_constrained_expansion_raises_the_target_as_far_as_the_others_allow() -> None:
    # Maximise 0.4·p + 0.1·(1 − p) subject to 0.2·p − 0.3·(1 − p) ≤ bound·ℓ. Bound 0: p = 0.6.
    found = probed(Constrained(targets=[0], steady=1), 3)
    np.testing.assert_allclose(found[3], [0.6, 0.4], atol=1e-7)
    # A bound of a tenth of the loss is no limit; max_share is.
    np.testing.assert_allclose(
        probed(Constrained(targets=[0], bound=0.1, max_share=0.8), 3)[3], [0.8, 0.2], atol=1e-7
    )
    # no mixture keeps a bound: the second loss rises whatever is trained on; the best misses least
    policy = Constrained(targets=[0])
    np.testing.assert_allclose(
        policy._answer(np.array([0.5, 0.5]), np.array([[1, 0], [-0.3, -0.1]]), np.ones(2)),
        [0, 1],
        atol=1e-7,
    )


def test_chameleon_prefers_what_is_alone() -> None:
    # Four embeddings around (7, 7), two on each axis, of squares 20 and 60. With λ·k = 40 leverages
    # are 20/(2·20 + 40) = 1/4 and 60/(2·60 + 40) = 3/8, that is 0.2 and 0.3 of their sum.
    a, b = np.sqrt(20), np.sqrt(60)
    weights = np.exp(np.array([0.2, 0.2, 0.3, 0.3]) / 0.2)
    around = np.array([[a, 0], [-a, 0], [0, b], [0, -b]]) + 7
    close(chameleon(around), weights / weights.sum())
    # two are as far from their mean as each other; and none is alone where none differs
    close(chameleon([[1, 2], [9, 5]]), [0.5, 0.5])
    close(chameleon(np.ones((3, 2))), [1 / 3, 1 / 3, 1 / 3])
    with pytest.raises(ValueError, match="a row of finite numbers for each domain"):
        chameleon([[1, np.nan]])


def test_chameleon_is_a_start_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "embeddings.json"
    file.write_text(json.dumps({"law": [1, 0], "code": [0, 1]}))
    config = load([], ["mixture.start=chameleon", f"mixture.embeddings={file}"])
    close(semantics.starting_shares(config, ["law", "code"], None, [1, 9]), [0.5, 0.5])
    with pytest.raises(UserError, match=r"mixture\.embeddings: .*no embedding of each of law, sql"):
        semantics.starting_shares(config, ["law", "sql"], None, [1, 9])
    with pytest.raises(UserError, match=r"mixture\.embeddings: missing"):
        load([], ["mixture.start=chameleon"])


@pytest.mark.parametrize("policy", [DynamixSFT(), PiKE(), RandB(), Ideal(), MSFT(), Aioli()])
def test_each_is_replayed_as_it_decided(policy: Any) -> None:
    rng = np.random.default_rng(0)
    losses = rng.uniform(1, 3, (6, 3))
    roots = rng.normal(size=(5, 3, 4))
    products = roots @ roots.transpose(0, 2, 1)
    variances, held_out = rng.uniform(1, 2, (5, 3)), rng.normal(size=(5, 3))
    drawn, sizes = np.cumsum(rng.integers(1, 9, (6, 3)), axis=0), np.array([20.0, 30, 40])
    shares = np.array([0.2, 0.3, 0.5])
    found = replay(
        policy,
        shares,
        losses[1:],
        None,
        losses[0],
        steps=range(10, 60, 10),
        gradient_products=products,
        budget=Budget(100, 8, sizes, drawn[1:]),
        gradient_variances=variances,
        held_out_products=held_out,
    )
    for row in range(5):
        before = np.vstack([np.zeros((1, 3)), drawn[1 : row + 2]])
        shares = policy.update(
            shares,
            Feedback(
                10 * row + 10,
                losses[row + 1],
                losses[row],
                history=losses[: row + 1],
                gradient_products=products[row],
                gradient_history=products[:row],
                gradient_variances=variances[row],
                held_out_products=held_out[row],
                budget=Budget(100, 8, sizes, before),
            ),
        )
        np.testing.assert_array_equal(found[row + 1], shares)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (DynamixSFT, {"gamma": 2}, "gamma: 2 is not within 0 and 1"),
        (PiKE, {"zeta1": 0}, "zeta1: 0 is not a finite number above 0"),
        (RandB, {"wanted": [0.2]}, "shares sum to 0.2"),
        (Ideal, {"rounds": 0}, "rounds: 0 is not a whole number of at least 1"),
        (MSFT, {"patience": 0.5}, "patience: 0.5 is not a whole number"),
        (Aioli, {"smoothing": 1}, "smoothing: 1 is not a number of at least 0 and below 1"),
        (Constrained, {"bound": -1}, "bound: -1 is not a finite number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**given)
