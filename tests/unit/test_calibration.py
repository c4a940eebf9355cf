"""How good a judge is on texts of known domain, and the shares corrected for its confusions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from versatune_ray.detection.calibration import JudgeQuality, _means, corrected, measure

Array = NDArray[np.float64]
Judge = Callable[[np.random.Generator, Array, NDArray[np.int64]], Array]

TRUTH = np.array([0.02, 0.08, 0.2, 0.3, 0.4])
CONFUSION = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]])


def in_order(*counts: int) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(counts)), counts)


def noiseless(confusion: Array) -> JudgeQuality:
    """A judge that says the same of every record of a domain."""
    truth = in_order(*len(confusion) * [50])
    return measure(confusion[truth], truth, len(confusion))


def certain(rng: np.random.Generator, confusion: Array, domains: NDArray[np.int64]) -> Array:
    """A judge that names one domain, the wrong one as often as ``confusion`` says."""
    said = (rng.random((domains.size, 1)) > confusion[domains].cumsum(axis=1)[:, :-1]).sum(axis=1)
    return np.asarray(np.eye(len(confusion))[said])


def unsure(rng: np.random.Generator, confusion: Array, domains: NDArray[np.int64]) -> Array:
    """A judge that spreads its probability: Dirichlet(3 · row of ``confusion``)."""
    weights = rng.standard_gamma(3 * confusion[domains])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def right_in(accuracy: float, k: int) -> Array:
    return np.asarray(
        np.full((k, k), (1 - accuracy) / (k - 1))
        + (accuracy - (1 - accuracy) / (k - 1)) * np.eye(k)
    )


def test_a_judge_is_measured_as_by_hand() -> None:
    answers = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.1, 0.9]])
    found = measure(answers, np.array([0, 0, 1, 1, 1]), 2)
    np.testing.assert_allclose(found.confusion, [[0.65, 0.35], [0.2, 0.8]])
    np.testing.assert_array_equal(found.records, [2, 3])
    assert found.accuracy == pytest.approx(0.8)
    np.testing.assert_allclose(found.recall, [0.5, 1])
    # 0.9 · 0.4 · 0.8 · 0.7 · 0.9 = 0.18144; −ln of it 1.70683, over 5.
    assert found.log_loss == pytest.approx(0.341366, abs=1e-6)


def test_a_judge_that_knows_nothing_loses_the_logarithm_of_k() -> None:
    assert measure(np.full((6, 3), 1 / 3), in_order(2, 2, 2), 3).log_loss == pytest.approx(
        np.log(3)
    )


def test_a_certain_mistake_costs_much_but_not_infinitely_much() -> None:
    found = measure(np.eye(2)[[0, 1, 1, 1]], in_order(2, 2), 2)
    assert found.log_loss == pytest.approx(12 * np.log(10) / 4)


def test_the_order_of_records_does_not_matter() -> None:
    rng, truth = np.random.default_rng(0), in_order(3, 5, 4)
    answers, order = rng.dirichlet(np.ones(3), size=12), rng.permutation(12)
    one, other = measure(answers, truth, 3), measure(answers[order], truth[order], 3)
    np.testing.assert_allclose(other.confusion, one.confusion)
    np.testing.assert_allclose(
        [other.accuracy, other.log_loss, *other.recall], [one.accuracy, one.log_loss, *one.recall]
    )


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ([0, 0, 1], "domain 1 has 1 records"),
        ([1, 1, 1], "domain 0 has 0 records"),
        ([0, 0, 2], "valid are 0 to 1"),
        ([-1, 0, 0], "valid are 0 to 1"),
        ([0, 0, 1, 1], r"truth of shape \(4,\)"),
    ],
)
def test_records_that_cannot_measure_a_judge_are_refused(truth: list[int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        measure(np.full((3, 2), 0.5), np.array(truth), 2)


def test_without_noise_the_shares_come_back_exactly() -> None:
    # 1,000 sequences, 500 : 300 : 200, each judged like the average one of its domain: q = (0.44,
    # 0.36, 0.2).
    rows = CONFUSION[in_order(500, 300, 200)]
    np.testing.assert_allclose(rows.mean(axis=0), [0.44, 0.36, 0.2])
    np.testing.assert_allclose(
        corrected(rows, noiseless(CONFUSION)).share, [0.5, 0.3, 0.2], atol=1e-12
    )


def test_answers_that_no_shares_explain_get_the_nearest_shares() -> None:
    # All on domain 0, which the judge never is of anything: unconstrained 4/3 and −1/3.
    np.testing.assert_allclose(
        corrected(np.eye(2)[in_order(9, 0)], noiseless(right_in(0.8, 2))).share, [1, 0], atol=1e-12
    )


@pytest.mark.parametrize(
    "q", [(0.85, 0.05, 0.1), (0.0, 0.9, 0.1), (0.05, 0.05, 0.9), (0.3, 0.1, 0.6)]
)
def test_the_nearest_shares_are_those_that_a_search_of_the_simplex_finds(
    q: tuple[float, float, float],
) -> None:
    grid = (
        np.array(
            [
                (a, b, 400 - a - b)
                for a, b in itertools.product(range(401), repeat=2)
                if a + b <= 400
            ]
        )
        / 400
    )
    best = grid[((grid @ CONFUSION - q) ** 2).sum(axis=1).argmin()]
    found = corrected(np.tile(q, (2, 1)), noiseless(CONFUSION)).share
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert found.min() >= 0
    np.testing.assert_allclose(found, best, atol=1 / 400)


@pytest.mark.parametrize(
    ("judge", "accuracy", "n"),
    [
        (certain, 0.95, 400),
        (unsure, 0.8, 400),
        *(
            pytest.param(*case, marks=pytest.mark.slow)  # 600 intervals each
            for case in (
                (certain, 0.8, 400),
                (certain, 0.8, 2000),
                (certain, 0.95, 2000),
                (unsure, 0.8, 2000),
            )
        ),
    ],
)
def test_intervals_of_corrected_shares_cover_the_truth_in_95_percent_of_detections(
    judge: Judge, accuracy: float, n: int
) -> None:
    covered = coverage(judge, right_in(accuracy, 5), TRUTH, n, runs=600)
    assert (np.abs(covered - 0.95) < 0.025).all(), covered


def test_many_sequences_do_not_make_up_for_confusions_too_rare_for_the_records() -> None:
    # Each wrong domain gets 0.8 % of the answers, so that 45 % of such confusions are in none of
    # 100 records, yet those of the largest domain are 0.5 % of all sequences. Intervals that take a
    # confusion never seen for impossible cover only about 75 %.
    covered = coverage(
        certain, right_in(0.96, 6), np.array([0.06, 0.09, 0.07, 0.06, 0.08, 0.64]), 20_000, runs=200
    )
    assert (covered > 0.925).all(), covered


def coverage(judge: Judge, confusion: Array, shares: Array, n: int, runs: int) -> Array:
    """Part of simulated detections, each with 100 records per domain, whose intervals hold the true
    shares, [k].
    """
    rng, k = np.random.default_rng(0), len(shares)
    truth, covered = in_order(*k * [100]), np.zeros(k)
    for seed in range(runs):
        quality = measure(judge(rng, confusion, truth), truth, k)
        interval = corrected(
            judge(rng, confusion, rng.choice(k, size=n, p=shares)), quality, draws=400, seed=seed
        ).ci95
        covered += (interval[:, 0] <= shares) & (shares <= interval[:, 1])
    return np.asarray(covered / runs)


def test_the_interval_holds_the_share_and_stays_within_0_and_1() -> None:
    rng = np.random.default_rng(0)
    for seed in range(50):
        truth = in_order(4, 4, 4)
        quality = measure(unsure(rng, right_in(0.6, 3), truth), truth, 3)
        found = corrected(
            unsure(rng, right_in(0.6, 3), in_order(20, 1, 0)), quality, draws=50, seed=seed
        )
        assert (found.ci95 >= 0).all()
        assert (found.ci95 <= 1).all()
        assert (found.ci95[:, 0] <= found.share).all()
        assert (found.share <= found.ci95[:, 1]).all()


def test_domains_that_look_alike_to_the_judge_get_intervals_that_say_so() -> None:
    # Rows 0 and 1 are drawn from the same distribution: only the share of domain 2 can be told.
    rng, truth = np.random.default_rng(0), in_order(100, 100, 100)
    alike = np.array([[0.5, 0.4, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]])
    widths = []
    for seed in range(20):
        quality = measure(unsure(rng, alike, truth), truth, 3)
        interval = corrected(unsure(rng, alike, in_order(600, 600, 800)), quality, seed=seed).ci95
        widths.append(interval[:, 1] - interval[:, 0])
    assert (np.median(widths, axis=0)[:2] > 0.8).all()


def test_a_judge_that_cannot_tell_two_domains_apart_is_refused_and_they_are_named() -> None:
    same = np.array([[0.7, 0.2, 0.1], [0.1, 0.45, 0.45], [0.1, 0.45, 0.45]])
    with pytest.raises(ValueError, match=r"domains 1 and 2 differ by 0 \(total variation\)"):
        corrected(same[in_order(5, 5, 5)], noiseless(same))


def test_a_row_that_is_a_mixture_of_others_is_refused_too() -> None:
    mixed = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]])
    # Total variation 0.3 from row 2 to either of the others, 0.6 between these.
    with pytest.raises(ValueError, match=r"differ by 0\.3 \(total variation\)"):
        corrected(mixed[in_order(5, 5, 5)], noiseless(mixed))


def test_the_same_seed_gives_the_same_interval() -> None:
    rows, quality = np.eye(3)[in_order(20, 30, 50)], noiseless(CONFUSION)
    one, same, other = (corrected(rows, quality, seed=seed).ci95 for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize("shape", [(10, 2), (1, 3), (3,)])
def test_answers_over_other_domains_or_too_few_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"is not \[n, 3\] with n of at least 2"):
        corrected(np.full(shape, 1 / 3), noiseless(CONFUSION))


@pytest.mark.parametrize("m", [50, 20_000])
def test_drawn_means_scatter_as_means_do(m: int) -> None:
    # Domain 0 in a tenth of the rows: variance 0.09 / m of the mean. Pseudo-records of the two
    # domains add 0.25 · (0.9² + 0.1²) / m².
    rng = np.random.default_rng(0)
    drawn = _means(rng.permutation(np.eye(2)[in_order(m // 10, m - m // 10)]), 20_000, rng)
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    assert abs(drawn[:, 0].mean() - 0.1) < 4 * np.sqrt(0.09 / m / 20_000)
    # √(2 / 1,024) = 4 % is the scatter of a variance from 1,024 groups of rows.
    assert drawn[:, 0].var() == pytest.approx(0.09 / m + 0.205 / m**2, rel=0.1)


def test_drawn_means_of_rare_answers_are_skewed_as_such_means_are() -> None:
    # 5 of 50: third moment 2 · 0.1 · 0.9 · (0.9 − 0.1) / m², and 2 · 0.25 · (0.9³ − 0.1³) / m³ from
    # the pseudo-records.
    drawn = _means(np.eye(2)[in_order(5, 45)], 20_000, np.random.default_rng(0))
    assert ((drawn[:, 0] - 0.1) ** 3).mean() == pytest.approx(
        0.144 / 50**2 + 0.364 / 50**3, rel=0.2
    )
