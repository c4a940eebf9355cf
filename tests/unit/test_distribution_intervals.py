"""Intervals of a detected distribution: Wilson's for probabilities, wider where repeats differ, and
how many sequences they need.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from versatune_ray.detection.distribution import (
    PUBLISHED,
    Estimate,
    estimate,
    half_width,
    published_for,
    samples_needed,
)

Array = NDArray[np.float64]

SIX = ["law", "medicine", "finance", "science", "code", "general"]
TRUTH = np.array([0.02, 0.08, 0.2, 0.3, 0.4])
# A judge that spreads its answers: Dirichlet(1, …, 6, …, 1), the 6 on the true domain; on average
# it gives 0.6 there and 0.1 elsewhere.
CONCENTRATION = 1 + 5 * np.eye(5)
SEEN = {"certain": TRUTH, "unsure": TRUTH @ CONCENTRATION / 10}


def judged(rng: np.random.Generator, kind: str, n: int) -> Array:
    domains = rng.choice(5, size=n, p=TRUTH)
    if kind == "certain":
        return np.eye(5)[domains]
    weights = rng.standard_gamma(CONCENTRATION[domains])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def in_turn(n: int, repeats: int = 5) -> NDArray[np.int64]:
    return np.arange(n, dtype=np.int64) % repeats


def inside(interval: Array, truth: Array) -> NDArray[np.bool_]:
    return np.asarray((interval[:, 0] <= truth) & (truth <= interval[:, 1]))


def test_the_share_is_the_mean_probability_and_repeats_are_means_of_their_own() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.5, 0.5]])
    found = estimate(probabilities, np.array([0, 0, 1, 1]), repeats=2)
    np.testing.assert_allclose(found.share, [0.5, 0.5])
    np.testing.assert_allclose(found.repeats, [[0.75, 0.25], [0.25, 0.75]])


def test_certain_answers_get_wilsons_interval() -> None:
    # One of ten, z² = 3.8415: centre (0.1 + 0.19207) / 1.38415 = 0.21101; half-width 1.95996 ·
    # √(0.009 + 0.0096037) / 1.38415 = 0.19314.
    found = estimate(np.eye(2)[[0] + 9 * [1]], np.zeros(10, dtype=np.int64), 1)
    np.testing.assert_allclose(found.ci95, [[0.01788, 0.40415], [0.59585, 0.98212]], atol=1e-5)


def test_answers_that_vary_a_quarter_as_much_count_four_times() -> None:
    # Of 0.25 and 0.75 the variance is 1/16, of 0 and 1 it is 1/4: eight of these say what 32 of
    # those do. Wilson for 16 of 32: centre 0.5; half-width 1.95996 · √(1/128 + 3.84146 / 4096) / (1
    # + 3.84146 / 32) = 0.16369.
    half = np.tile([[0.25, 0.75], [0.75, 0.25]], (4, 1))
    np.testing.assert_allclose(
        estimate(half, in_turn(8, 1), 1).ci95[0], [0.5 - 0.16369, 0.5 + 0.16369], atol=1e-5
    )


def test_a_domain_never_seen_may_still_have_a_share() -> None:
    # Wilson for none of 100: [0, z² / (100 + z²)].
    found = estimate(np.eye(2)[np.zeros(100, dtype=np.int64)], in_turn(100), 5)
    np.testing.assert_allclose(found.ci95, [[1 - 0.036994, 1], [0, 0.036994]], atol=1e-6)


@pytest.mark.parametrize("n", [400, 2000])
@pytest.mark.parametrize("kind", ["certain", "unsure"])
def test_intervals_cover_the_true_share_in_95_percent_of_detections(kind: str, n: int) -> None:
    rng, runs = np.random.default_rng(0), 1500
    covered = sum(
        inside(estimate(judged(rng, kind, n), in_turn(n), 5).ci95, SEEN[kind]) for _ in range(runs)
    )
    assert (np.abs(covered / runs - 0.95) < 0.02).all(), covered / runs


@pytest.mark.parametrize("kind", ["certain", "unsure"])
def test_intervals_cover_as_well_when_a_detection_stops_at_a_tolerance(kind: str) -> None:
    rng, runs, tolerance, cap, covered, reached = (
        np.random.default_rng(0),
        1500,
        0.03,
        5000,
        np.zeros(5),
        0,
    )
    for _ in range(runs):
        drawn = judged(rng, kind, 200)
        while (
            half_width(found := estimate(drawn, in_turn(len(drawn)), 5)) > tolerance
            and len(drawn) < cap
        ):
            wanted = min(
                cap, max(len(drawn) + 1, round(1.05 * samples_needed(found, drawn, tolerance)))
            )
            drawn = np.vstack([drawn, judged(rng, kind, wanted - len(drawn))])
        covered += inside(found.ci95, SEEN[kind])
        reached += 200 < len(drawn) < cap
    # the rest: repeats that seem to differ by chance, in 1 of 1,000 rounds, go to the cap
    assert reached > 0.99 * runs
    assert (np.abs(covered / runs - 0.95) < 0.02).all(), covered / runs


def test_the_widest_interval_gives_the_half_width() -> None:
    found = Estimate(
        np.array([0.3, 0.7]), np.array([[0.2, 0.5], [0.6, 0.8]]), np.empty((0, 2)), 1.0
    )
    assert half_width(found) == pytest.approx(0.15)


def test_with_the_sequences_needed_the_tolerance_is_just_reached() -> None:
    # Pilot: 36 of 100, and 64. The same parts of n answers must have a Wilson half-width of 0.05 at
    # n, and more at n − 1.
    pilot = np.eye(2)[36 * [0] + 64 * [1]]
    n = samples_needed(estimate(pilot, in_turn(100, 1), 1), pilot, 0.05)
    z = 1.959964

    def wilson(m: int) -> float:
        return z / (m + z**2) * float(np.sqrt(m * 0.36 * 0.64 + z**2 / 4))

    assert wilson(n) <= 0.05 < wilson(n - 1)


def test_sequences_needed_count_how_little_answers_vary() -> None:
    certain, unsure = np.tile(np.eye(2), (50, 1)), np.tile([[0.25, 0.75], [0.75, 0.25]], (50, 1))
    many, few = (
        samples_needed(estimate(rows, in_turn(100, 1), 1), rows, 0.01) for rows in (certain, unsure)
    )
    # At p = ½ Wilson's half-width is z / 2√(n + z²): n = 0.25 · z² / 0.01² − z² = 9,603.6 − 3.8. A
    # quarter of the variance needs a quarter.
    assert many == 9600
    assert few == 2400


def test_no_more_sequences_are_needed_where_the_tolerance_is_reached() -> None:
    rows = np.tile(np.eye(2), (50, 1))
    assert samples_needed(estimate(rows, in_turn(100, 1), 1), rows, 0.2) == 100
    with pytest.raises(ValueError, match="tolerance: 0 is not above 0"):
        samples_needed(estimate(rows, in_turn(100, 1), 1), rows, 0)


def test_repeats_that_differ_are_noticed_and_widen_the_intervals_until_they_cover() -> None:
    rng, runs, n, covered, noticed, wider = (
        np.random.default_rng(0),
        1000,
        10_000,
        np.zeros(5),
        0,
        0,
    )
    for _ in range(runs):
        # each repeat has shares of its own, scattered around the true ones
        own = rng.dirichlet(200 * TRUTH, size=5)
        rows = np.vstack(
            [np.repeat(np.eye(5), counts, axis=0) for counts in rng.multinomial(n // 5, own)]
        )
        repeat = np.repeat(np.arange(5), n // 5)
        found = estimate(rows, repeat, 5)
        covered += inside(found.ci95, TRUTH)
        noticed += found.differ < 0.001
        wider += half_width(found) > 1.5 * 1.96 * np.sqrt(0.24 / n)
    assert noticed > 0.99 * runs
    assert wider > 0.95 * runs  # than independent sequences make the interval of a share of 0.4
    assert (np.abs(covered / runs - 0.95) < 0.025).all(), covered / runs


def test_the_interval_of_differing_repeats_is_students() -> None:
    rows = np.vstack([np.eye(2)[part * [0] + (1000 - part) * [1]] for part in (450, 500, 550)])
    found = estimate(rows, np.repeat(np.arange(3), 1000), 3)
    # Means 0.45, 0.5, 0.55 have a standard deviation of 0.05; the 97.5 % point of t with 2 degrees
    # of freedom is 4.302653. Half-width: 4.302653 · 0.05 / √3.
    np.testing.assert_allclose(found.ci95[0], [0.5 - 0.124207, 0.5 + 0.124207], atol=1e-6)
    # a tenth of the width: 100 times as many
    assert samples_needed(found, rows, 0.0124207) == pytest.approx(100 * 3000, rel=1e-4)


def test_differing_repeats_never_narrow_an_interval() -> None:
    # Domain 2 is spread over the repeats more evenly than chance would, the other two are not.
    rows = np.vstack(
        [np.eye(3)[part * [0] + (900 - part) * [1] + 100 * [2]] for part in (350, 450, 550)]
    )
    found = estimate(rows, np.repeat(np.arange(3), 1000), 3)
    assert found.differ < 0.001
    np.testing.assert_allclose(found.ci95[2], estimate(rows, in_turn(3000, 1), 1).ci95[2])


def test_differ_of_certain_answers_is_pearsons_test_of_a_table() -> None:
    # Rows 30:70 and 50:50, expected 40:60 in each: χ² = 2 · (100/40 + 100/60) = 8.3333, times (n −
    # 1)/n = 8.2917; p = erfc(√(χ²/2)).
    rows = np.eye(2)[30 * [0] + 70 * [1] + 50 * [0] + 50 * [1]]
    found = estimate(rows, np.repeat([0, 1], 100), 2)
    assert found.differ == pytest.approx(0.003982, abs=1e-5)


@pytest.mark.parametrize("kind", ["certain", "unsure"])
def test_without_an_effect_differ_is_uniform(kind: str) -> None:
    rng, runs = np.random.default_rng(0), 2000
    values = np.sort(
        [estimate(judged(rng, kind, 400), in_turn(400), 5).differ for _ in range(runs)]
    )
    # Kolmogorov's distance stays under 1.63 / √runs in 99 % of samples from a uniform distribution.
    assert np.abs(values - (np.arange(runs) + 0.5) / runs).max() < 1.63 / np.sqrt(runs)


def test_one_repeat_or_answers_that_never_vary_differ_from_nothing() -> None:
    assert estimate(np.tile(np.eye(2), (5, 1)), np.zeros(10, dtype=np.int64), 3).differ == 1
    assert estimate(np.tile([0.3, 0.7], (10, 1)), in_turn(10), 5).differ == 1


def test_answers_that_never_vary_count_as_certain_ones_would() -> None:
    # Wilson for 0.5 of 4: half-width 1.95996 · √(1/16 + 3.84146/64) / (1 + 3.84146/4) = 0.34996.
    found = estimate(np.full((4, 2), 0.5), in_turn(4, 1), 1)
    np.testing.assert_allclose(found.ci95, np.tile([0.15004, 0.84996], (2, 1)), atol=1e-5)


def test_a_repeat_without_a_judged_sequence_is_unknown_not_zero() -> None:
    found = estimate(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]), repeats=2)
    assert np.isnan(found.repeats[1]).all()


def test_one_sequence_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least two"):
        estimate(np.array([[1.0, 0.0]]), np.array([0]), 1)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("meta-llama/Llama-2-13b-hf", "llama-2-13b"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("/models/Llama-3-8B/", "llama-3-8b"),
        ("Qwen/Qwen1.5-7B", "qwen1.5-7b"),
        ("Qwen2.5-14B", "qwen2.5-14b"),
    ],
)
def test_a_base_model_is_known_by_the_last_part_of_its_path(model: str, name: str) -> None:
    found = published_for(model, SIX[::-1])
    assert found is not None
    assert found[0] == name
    np.testing.assert_allclose(found[1], np.array(PUBLISHED[name][::-1]) / sum(PUBLISHED[name]))


@pytest.mark.parametrize(
    "model",
    [
        "meta-llama/Llama-2-7b-chat-hf",
        "meta-llama/Meta-Llama-3-8B-Instruct",
        "meta-llama/Llama-3.1-8B",
        "Qwen/Qwen2.5-7B-Instruct",
        "Qwen/Qwen2.5-Coder-7B",
        "Qwen/Qwen2.5-72B",
        "llama-2-7b/checkpoint-500",
    ],
)
def test_another_variant_or_size_is_not_known(model: str) -> None:
    assert published_for(model, SIX) is None


def test_the_papers_other_is_general_and_other_domains_have_no_published_shares() -> None:
    general, other = published_for("qwen2-7b", SIX), published_for("qwen2-7b", [*SIX[:5], "other"])
    assert general is not None
    assert other is not None
    np.testing.assert_array_equal(general[1], other[1])
    assert published_for("qwen2-7b", [*SIX[:5], "art"]) is None
    assert published_for("qwen2-7b", [*SIX, "other"]) is None
    assert published_for("qwen2-7b", SIX[:5]) is None
