"""Whole samples for fractional requests: how far a count can be from what was requested."""

import numpy as np
import pytest

from versatune_ray.mixture.apportion import apportion

KINDS = ["one-hot", "tiny Dirichlet", "Dirichlet", "subsets", "permuted classes"]


def deviation(schedule, batch_size):
    """Largest and smallest cumulative request minus cumulative count over a schedule of shares [t,
    k].
    """
    requested = np.cumsum(batch_size * schedule, axis=0)
    given = np.zeros(schedule.shape[1])
    worst, best = 0.0, 0.0
    for request, so_far in zip(batch_size * schedule, requested, strict=True):
        now = apportion(so_far - given, request, batch_size)
        assert now.min() >= 0 and now.sum() == batch_size
        given += now
        worst, best = max(worst, (so_far - given).max()), min(best, (so_far - given).min())
    return worst, best


def random_shares(rng, k):
    """A few classes of equal domains, of very unequal weight: what greedy rules find hardest."""
    classes = rng.integers(0, rng.integers(1, 6), k)
    weights = (10.0 ** rng.uniform(-3, 0, 6))[classes]
    return weights / weights.sum()


def test_whole_requests_are_given_as_they_are():
    assert apportion(np.array([2.0, 5.0, 1.0]), np.array([2.0, 5.0, 1.0]), 8).tolist() == [2, 5, 1]


def test_a_left_over_sample_goes_where_it_is_due_soonest():
    # owed 0.5 each: at 1.5 and 2.5 a batch both are due in the next one, at 0.1 only in five; of
    # equals, the earlier
    assert apportion(np.array([1.5, 2.5]), np.array([1.5, 2.5]), 4).tolist() == [2, 2]
    assert apportion(np.array([0.5, 0.5]), np.array([0.1, 0.9]), 1).tolist() == [0, 1]
    # both due in the next batch: the larger fraction
    assert apportion(np.array([1.25, 1.75]), np.array([1.25, 1.75]), 3).tolist() == [1, 2]


def test_when_more_is_due_than_fits_the_largest_deficits_are_served():
    # three domains are owed a whole sample, two were served ahead: 1.2 + 1.6 + 1.1 − 0.95 − 0.95 =
    # 2 samples to give
    assert apportion(
        np.array([1.2, 1.6, 1.1, -0.95, -0.95]), np.array([0.5, 0.5, 1, 0, 0]), 2
    ).tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize("batch_size", [1, 3, 16, 128])
def test_steady_shares_keep_every_count_within_one_sample(batch_size):
    rng = np.random.default_rng(batch_size)
    for _ in range(25):
        k = int(rng.integers(1, 201))
        shares = random_shares(rng, k) if rng.integers(2) else rng.dirichlet(np.full(k, 0.3))
        worst, best = deviation(np.tile(shares, (200, 1)), batch_size)
        assert worst < 1 and best > -1


def test_steady_shares_that_defeat_largest_remainders_keep_within_one_sample():
    shares = np.array([50.0] * 6 + [1.0] * 32) / 332

    def largest_remainders() -> float:
        deficit, worst = np.zeros(38), 0.0
        for _ in range(300):
            deficit += shares
            deficit[deficit.argmax()] -= 1
            worst = max(worst, deficit.max())
        return worst

    assert largest_remainders() > 1.5
    assert deviation(np.tile(shares, (300, 1)), 1)[0] < 1


@pytest.mark.parametrize("batch_size", [1, 8, 128])
def test_gently_moving_shares_keep_every_count_within_one_sample(batch_size):
    rng = np.random.default_rng(batch_size)
    for _ in range(12):
        k = int(rng.integers(2, 201))
        start = random_shares(rng, k)
        drifting = start * np.exp(np.cumsum(0.01 * rng.standard_normal((150, k)), axis=0))
        # as VersaTune moves them: a factor of up to 1 + σ every 20 steps
        stepping = start * np.repeat(np.cumprod(1 + rng.random((8, k)), axis=0), 20, axis=0)[:150]
        for weights in (drifting, stepping):
            worst, best = deviation(weights / weights.sum(axis=1, keepdims=True), batch_size)
            assert worst < 1 and best > -1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [2, 6, 50, 200])
def test_shares_that_jump_at_random_keep_every_count_within_two_samples(k, kind):
    rng = np.random.default_rng(k)
    for batch_size in (1, 5, 32, 128):
        steps = 200
        if kind == "one-hot":
            schedule = np.eye(k)[rng.integers(k, size=steps)]
        elif kind == "tiny Dirichlet":
            schedule = rng.dirichlet(np.full(k, 0.01), steps)
        elif kind == "Dirichlet":
            schedule = rng.dirichlet(np.ones(k), steps)
        elif kind == "subsets":
            chosen = rng.random((steps, k)) < rng.random((steps, 1))
            chosen[np.arange(steps), rng.integers(k, size=steps)] = True
            schedule = chosen / chosen.sum(axis=1, keepdims=True)
        else:
            base = random_shares(rng, k)
            schedule = np.stack([rng.permutation(base) for _ in range(steps)])
        worst, best = deviation(schedule, batch_size)
        assert worst < 2 and best > -1


def test_any_shares_keep_within_one_sample_while_each_domain_is_asked_for_one_per_batch():
    rng = np.random.default_rng(0)
    for k in (2, 6, 50):
        schedule = 1 / 64 + (1 - k / 64) * rng.dirichlet(np.full(k, 0.05), 300)
        worst, best = deviation(schedule, 64)
        assert worst < 1 and best > -1


@pytest.mark.parametrize("k", [6, 200])
def test_shares_that_read_the_counts_stay_under_the_known_bound(k):
    # The cup game: always request the domains that were not served yet. No rule can hold it under
    # 1/2 + … + 1/k; H_k bounds ours here.
    given, requested, waiting = np.zeros(k), np.zeros(k), np.arange(k)
    worst = 0.0
    for _ in range(k - 1):
        request = np.zeros(k)
        request[waiting] = 1 / waiting.size
        requested += request
        now = apportion(requested - given, request, 1)
        given += now
        worst = max(worst, (requested - given).max())
        waiting = np.setdiff1d(waiting, np.flatnonzero(now))
    assert worst < np.sum(1 / np.arange(1, k + 1))
    assert (requested - given).min() > -1


def test_a_domain_that_is_owed_nothing_is_given_nothing():
    rng = np.random.default_rng(3)
    for _ in range(300):
        k = int(rng.integers(2, 30))
        deficit = rng.uniform(-1, 1, k)
        request = rng.dirichlet(np.full(k, 0.1)) * 7
        deficit += request
        deficit[0] += 7 - deficit.sum()
        if deficit[0] <= -1:
            continue
        given = apportion(deficit, request, 7)
        assert (given[deficit <= 0] == 0).all()
        assert (given < deficit + 1).all()
