"""The judge's measured quality, and the distribution corrected by it."""

from __future__ import annotations

import numpy as np
import pytest

from versatune_ray.detection.calibration import corrected, measure

TRUTH = np.array([0.05, 0.15, 0.3, 0.5])
CONFUSION = np.array([[0.7, 0.1, 0.1, 0.1], [0.05, 0.8, 0.1, 0.05], [0.1, 0.2, 0.6, 0.1], [0.02, 0.03, 0.05, 0.9]])


def answers(rng: np.random.Generator, domains: np.ndarray) -> np.ndarray:
    """A soft judge whose mean answer about domain i is row i of ``CONFUSION``."""
    return np.array([rng.dirichlet(4 * CONFUSION[domain]) for domain in domains])


def test_quality_by_hand() -> None:
    probabilities = np.array([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9]])
    quality = measure(probabilities, np.array([0, 0, 1, 1]), 2)
    np.testing.assert_allclose(quality.confusion, [[0.6, 0.4], [0.3, 0.7]])
    assert quality.log_loss == pytest.approx(-(np.log(0.8) + np.log(0.4) + np.log(0.5) + np.log(0.9)) / 4)
    assert quality.accuracy == 0.5  # the tie goes to the first domain
    assert quality.records.tolist() == [2, 2]


def test_a_domain_with_one_text_measures_nothing() -> None:
    with pytest.raises(ValueError, match="domain 1 has 1 labelled texts"):
        measure(np.full((3, 2), 0.5), np.array([0, 0, 1]), 2)


def test_without_noise_the_mixture_comes_back_exactly() -> None:
    quality = measure(np.repeat(CONFUSION, 2, axis=0), np.repeat(np.arange(4), 2), 4)
    share = corrected(np.tile(TRUTH @ CONFUSION, (5, 1)), quality, draws=2).share
    np.testing.assert_allclose(share, TRUTH, atol=1e-6)


def test_corrected_intervals_cover_the_mixture_in_95_percent_of_detections() -> None:
    rng, covered, runs = np.random.default_rng(0), np.zeros(4), 400
    labels = np.repeat(np.arange(4), 100)
    for run in range(runs):
        quality = measure(answers(rng, labels), labels, 4)
        found = corrected(answers(rng, rng.choice(4, size=1000, p=TRUTH)), quality, draws=300, seed=run)
        covered += (found.ci95[:, 0] <= TRUTH) & (found.ci95[:, 1] >= TRUTH)
    assert (np.abs(covered / runs - 0.95) <= 0.025).all(), covered / runs


def test_the_correction_undoes_a_bias_that_the_raw_share_has() -> None:
    rng, labels = np.random.default_rng(1), np.repeat(np.arange(4), 500)
    judged = answers(rng, rng.choice(4, size=5000, p=TRUTH))
    raw = np.abs(judged.mean(axis=0) - TRUTH).sum() / 2
    better = np.abs(corrected(judged, measure(answers(rng, labels), labels, 4), draws=2).share - TRUTH).sum() / 2
    assert raw > 0.08 and better < 0.03


def test_domains_that_the_judge_answers_alike_about_cannot_be_corrected() -> None:
    alike = CONFUSION[[0, 1, 1, 3]]
    with pytest.raises(ValueError, match="domains 1 and 2"):
        corrected(np.tile(TRUTH @ alike, (5, 1)), measure(np.repeat(alike, 2, axis=0), np.repeat(np.arange(4), 2), 4))
