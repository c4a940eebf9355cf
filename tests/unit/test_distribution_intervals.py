"""Intervals of detected shares: by hand, and by simulation with known shares."""

from __future__ import annotations

import numpy as np
import pytest

from versatune_ray.detection.distribution import estimate, half_width, published_for, samples_needed

TRUTH = np.array([0.02, 0.08, 0.2, 0.3, 0.4])
SIX = ["law", "medicine", "finance", "science", "code", "general"]


def draws(rng: np.random.Generator, n: int, soft: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of ``n`` sequences and their expectation: certain answers, or ones blurred by a Dirichlet."""
    hard = np.eye(len(TRUTH))[rng.choice(len(TRUTH), size=n, p=TRUTH)]
    if not soft:
        return hard, TRUTH
    return 0.8 * hard + 0.2 * rng.dirichlet(np.full(len(TRUTH), 0.5), size=n), 0.8 * TRUTH + 0.2 / len(TRUTH)


def test_the_share_is_the_mean_probability_and_repeats_are_means_of_their_own() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.5, 0.5]])
    found = estimate(probabilities, np.array([0, 0, 1, 1]), repeats=2)
    np.testing.assert_allclose(found.share, [0.5, 0.5])
    np.testing.assert_allclose(found.repeats, [[0.75, 0.25], [0.25, 0.75]])


def test_certain_answers_have_wilsons_interval() -> None:
    probabilities = np.eye(2)[[0] * 10 + [1] * 90]
    low, high = estimate(probabilities, np.zeros(100, dtype=np.int64), 1).ci95[0]
    # Wilson's interval of 10 in 100 is 5.523 % to 17.437 %; here p(1 - p) is the sample variance, 100/99 as large.
    n = 99.0
    z2 = 1.959964**2
    expected = [(0.1 + z2 / 2 / n + sign * np.sqrt(z2 * (0.09 / n + z2 / 4 / n**2))) / (1 + z2 / n) for sign in (-1, 1)]
    np.testing.assert_allclose([low, high], expected, rtol=1e-9)
    np.testing.assert_allclose([low, high], [0.05523, 0.17437], atol=6e-4)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("n", [400, 2000])
def test_intervals_cover_the_true_share_in_95_percent_of_detections(n: int, soft: bool) -> None:
    rng, covered, runs = np.random.default_rng(n + soft), np.zeros(len(TRUTH)), 2000
    for _ in range(runs):
        probabilities, expected = draws(rng, n, soft)
        interval = estimate(probabilities, np.arange(n) % 5, 5).ci95
        covered += (interval[:, 0] <= expected) & (expected <= interval[:, 1])
    assert (np.abs(covered / runs - 0.95) <= 0.02).all(), covered / runs


def test_intervals_still_cover_when_the_tolerance_decides_where_to_stop() -> None:
    rng, covered, runs, tolerance, cap = np.random.default_rng(5), np.zeros(len(TRUTH)), 1500, 0.03, 2000
    sizes = []
    for _ in range(runs):
        probabilities, expected = draws(rng, cap, soft=True)
        n = 400
        while True:  # the job's rounds
            found = estimate(probabilities[:n], np.arange(n) % 5, 5)
            if half_width(found) <= tolerance or n == cap:
                break
            n = min(cap, max(n + 1, round(1.05 * samples_needed(found, probabilities[:n], tolerance))))
        sizes.append(n)
        covered += (found.ci95[:, 0] <= expected) & (expected <= found.ci95[:, 1])
    assert (np.abs(covered / runs - 0.95) <= 0.02).all(), covered / runs
    assert 400 < np.mean(sizes) < cap  # it did stop in between


def test_the_forecast_of_sequences_is_what_the_tolerance_takes() -> None:
    probabilities, _ = draws(np.random.default_rng(6), 400, soft=False)
    found = estimate(probabilities, np.zeros(400, dtype=np.int64), 1)
    needed = samples_needed(found, probabilities, 0.01)
    # Half-width z·sqrt(p(1 - p)/n) of the widest share, near p = 0.4.
    widest = max(found.share * (1 - found.share))
    assert needed == pytest.approx(1.959964**2 * widest / 0.01**2, rel=0.02)
    assert samples_needed(found, probabilities, 0.5) == 400


def test_repeats_that_differ_beyond_chance_are_told_and_widen_the_interval() -> None:
    rng = np.random.default_rng(7)
    probabilities = np.concatenate([np.eye(2)[rng.choice(2, size=200, p=[p, 1 - p])] for p in (0.2, 0.35, 0.5, 0.65, 0.8)])
    planted = estimate(probabilities, np.repeat(np.arange(5), 200), 5)
    mixed = estimate(rng.permutation(probabilities), np.repeat(np.arange(5), 200), 5)
    assert planted.differ < 1e-6 and mixed.differ > 0.001
    # Means 0.2 … 0.8 have standard deviation 0.237, so the t interval with 4 degrees of freedom is ± 2.776 · 0.237 / sqrt(5).
    assert half_width(planted) == pytest.approx(0.294, abs=0.04)
    assert half_width(mixed) < 0.04


def test_repeats_that_agree_are_called_different_as_often_as_chance_says() -> None:
    rng = np.random.default_rng(8)
    found = [estimate(draws(rng, 500, soft=True)[0], np.arange(500) % 5, 5).differ for _ in range(1000)]
    for level in (0.05, 0.5):  # a share of 0.05 in 1,000 has a standard error of 0.007
        assert np.mean(np.array(found) < level) == pytest.approx(level, abs=0.05 * (1 + level))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("/models/Qwen2-7B/", "qwen2-7b"),
        ("Qwen/Qwen2.5-7B-Instruct", None),
        ("Qwen/Qwen2.5-72B", None),
    ],
)
def test_published_models_are_recognised(model: str, name: str | None) -> None:
    found = published_for(model, SIX)
    assert (found and found[0]) == name
    if found is not None:
        assert found[1].sum() == pytest.approx(1)


def test_a_published_distribution_needs_the_papers_domains_in_any_order() -> None:
    assert published_for("qwen2-7b", ["law", "code"]) is None
    found = published_for("qwen2-7b", ["other", *SIX[:5]])
    assert found is not None and found[1][0] == pytest.approx(24.80 / 99.94)
