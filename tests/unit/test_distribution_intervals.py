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
    # 40 of 100, z² = 3.84146: centre (0.4 + 0.0192073) / 1.0384146 = 0.403699; half-width
    # 1.959964 · √(0.0024 + 0.000096037) / 1.0384146 = 0.094300.
    found = estimate(np.eye(2)[40 * [0] + 60 * [1]], np.zeros(100, dtype=np.int64), 1)
    np.testing.assert_allclose(found.ci95, [[0.309400, 0.497999], [0.502001, 0.690600]], atol=2e-6)


def test_the_end_towards_0_of_few_answers_is_clopper_and_pearsons() -> None:
    # One of ten. Below: p with P(X ≥ 1) = 1 − (1 − p)^10 = 0.05, so 1 − 0.95^0.1 = 0.0051162. Above
    # Wilson's: (0.1 + 0.19207 + 1.95996 · √(0.009 + 0.0096037)) / 1.38415 = 0.40415. The other
    # domain has nine of ten: the mirror image.
    found = estimate(np.eye(2)[[0] + 9 * [1]], np.zeros(10, dtype=np.int64), 1)
    np.testing.assert_allclose(found.ci95, [[0.00512, 0.40415], [0.59585, 0.99488]], atol=1e-5)


def test_a_sharp_judge_that_saw_none_of_a_domain_knows_no_more_than_yes_or_no_would() -> None:
    # 0.02 for domain 0, 200 times: no variance but for four of 0.03 and four of 0.01. Yes or no
    # would say none of 200: at most z² / (200 + z²) = 0.0188453; each would be worth the 0.98 that
    # the judge gives its choice, in place of the 0.02 there.
    rows = np.tile([0.02, 0.98], (200, 1)) + np.outer(
        4 * [0.01] + 4 * [-0.01] + 192 * [0.0], [1, -1]
    )
    found = estimate(rows, in_turn(200, 1), 1)
    assert found.ci95[0, 1] == pytest.approx(0.02 + 0.96 * 0.0188453, abs=1e-6)
    assert found.ci95[1, 0] == pytest.approx(1 - found.ci95[0, 1])
    assert 0.0195 < found.ci95[0, 0] < 0.02  # downwards its own variance counts


def test_a_judge_that_spreads_its_answers_gets_no_wider_interval() -> None:
    # p of domain 0 is 0.1 or 0.3, of mean 0.2 and variance 0.01: m = 400 · 0.16 / 0.01 = 6,400, and
    # Wilson's for that many. None of 400 at 0.6 − 0.2 each would be 0.4 · 0.0095 only.
    rows = np.tile([[0.1, 0.6, 0.3], [0.3, 0.6, 0.1]], (200, 1))
    found, z2 = estimate(rows, in_turn(400, 1), 1), 1.959964**2
    half = np.sqrt(z2 * (0.16 / 6400 + z2 / (4 * 6400**2))) / (1 + z2 / 6400)
    centre = (0.2 + z2 / (2 * 6400)) / (1 + z2 / 6400)
    np.testing.assert_allclose(found.ci95[0], [centre - half, centre + half], rtol=1e-9)


@pytest.mark.parametrize(("n", "rare"), [(2000, 0.0005), (2000, 0.001), (400, 0.005)])
def test_intervals_of_rare_domains_cover(n: int, rare: float) -> None:
    # a judge that gives its choice 0.99 ± 0.008, and the others the rest
    rng, runs, covered = np.random.default_rng(0), 600, 0
    truth = np.array([rare, 0.4 - rare, 0.6])
    seen = 0.985 * rare + 0.005  # in the mean: 0.99 to itself, 0.005 to each other one
    for _ in range(runs):
        domains = rng.choice(3, size=n, p=truth)
        rest = rng.uniform(0.002, 0.018, n)
        rows = np.repeat(rest[:, None] / 2, 3, axis=1)
        rows[np.arange(n), domains] = 1 - rest
        found = estimate(rows, in_turn(n), 5)
        covered += bool(inside(found.ci95[:1], np.array([seen]))[0])
    assert covered / runs > 0.93


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


@pytest.mark.parametrize("kind", ["certain", pytest.param("unsure", marks=pytest.mark.slow)])
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
        500,
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
    # 20 of 40: half-width 1.959964 · √(1/160 + 3.84146/6400) / (1 + 3.84146/40) = 0.148005.
    found = estimate(np.full((40, 2), 0.5), in_turn(40, 1), 1)
    np.testing.assert_allclose(found.ci95, np.tile([0.351995, 0.648005], (2, 1)), atol=2e-6)


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
