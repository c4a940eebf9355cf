"""DomainSampler: which sample comes next, and that it never depends on anything else."""

import json

import numpy as np
import pytest

from versatune_ray.mixture import DomainSampler, fixed_subset, uniform

SIZES = [7, 100, 31, 1]


def moving_shares(steps, k, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(k), steps)


def stream(sampler, schedule):
    return [tuple(part.tolist() for part in sampler.next_batch(shares)) for shares in schedule]


def test_a_batch_is_a_pair_of_int64_vectors_of_valid_places():
    sampler = DomainSampler(SIZES, 16, seed=0)
    for shares in moving_shares(50, 4):
        domain, index = sampler.next_batch(shares)
        assert domain.shape == index.shape == (16,) and domain.dtype == index.dtype == np.int64
        assert ((index >= 0) & (index < np.array(SIZES)[domain])).all()


def test_the_same_seed_gives_the_same_stream_and_another_seed_another():
    schedule = moving_shares(30, 4)
    first = stream(DomainSampler(SIZES, 16, seed=5), schedule)
    assert first == stream(DomainSampler(SIZES, 16, seed=5), schedule)
    assert first != stream(DomainSampler(SIZES, 16, seed=6), schedule)


def test_an_interruption_anywhere_leaves_the_remaining_stream_as_it_was():
    schedule = moving_shares(40, 4)
    whole = stream(DomainSampler(SIZES, 16, seed=1), schedule)
    running = DomainSampler(SIZES, 16, seed=1)
    for step in range(40):
        saved = json.loads(json.dumps(running.state_dict()))
        resumed = DomainSampler(SIZES, 16, seed=1)
        resumed.load_state_dict(saved)
        assert stream(resumed, schedule[step:]) == whole[step:]
        stream(running, schedule[step : step + 1])


def test_a_used_sampler_can_be_set_back():
    schedule = moving_shares(20, 4)
    sampler = DomainSampler(SIZES, 16, seed=1)
    start = sampler.state_dict()
    first = stream(sampler, schedule)
    sampler.load_state_dict(start)
    assert stream(sampler, schedule) == first


def test_each_pass_is_a_new_permutation_of_the_domain():
    sampler = DomainSampler(SIZES, 16, seed=2)
    walks: list[list[int]] = [[] for _ in SIZES]
    for shares in moving_shares(200, 4):
        for domain, index in zip(*sampler.next_batch(shares), strict=True):
            walks[domain].append(int(index))
    for size, walk in zip(SIZES, walks, strict=True):
        passes = [walk[i : i + size] for i in range(0, len(walk) - size + 1, size)]
        assert len(passes) > 3
        assert all(sorted(one) == list(range(size)) for one in passes)
        if size > 5:
            assert len({tuple(one) for one in passes}) > 0.9 * len(passes)


def test_a_tiny_domain_can_repeat_within_one_batch():
    domain, index = DomainSampler([3, 5], 100, seed=0).next_batch([1, 0])
    assert not domain.any()
    assert all(sorted(index[i : i + 3]) == [0, 1, 2] for i in range(0, 99, 3))


def test_permutations_are_uniform():
    # 6 orders of 3 samples over 6,000 passes: 1,000 each, standard deviation 29
    _, index = DomainSampler([3], 18_000, seed=0).next_batch([1])
    orders, times = np.unique(index.reshape(-1, 3), axis=0, return_counts=True)
    assert len(orders) == 6 and abs(times - 1000).max() < 4 * 29


def test_domains_of_one_size_do_not_walk_alike():
    sampler = DomainSampler([50, 50], 100, seed=0)
    domain, index = sampler.next_batch([0.5, 0.5])
    assert index[domain == 0].tolist() != index[domain == 1].tolist()


def test_counts_and_passes_tell_how_often_a_domain_repeated():
    sampler = DomainSampler([10, 1000, 0], 40, seed=0)
    for _ in range(5):
        sampler.next_batch([0.25, 0.75, 0])
    assert sampler.counts.tolist() == [50, 150, 0]
    assert sampler.passes.tolist() == [5, 0.15, 0]
    assert sampler.step == 5
    np.testing.assert_allclose(sampler.deficits, 0, atol=1e-9)
    assert sampler.sizes.tolist() == [10, 1000, 0]
    with pytest.raises(ValueError, match="read-only"):
        sampler.sizes[0] = 3


@pytest.mark.parametrize("k", [2, 6, 200])
def test_drawn_counts_stay_within_one_sample_of_a_steady_request(k):
    rng = np.random.default_rng(k)
    shares = rng.dirichlet(np.ones(k))
    sampler, counts = DomainSampler(rng.integers(1, 50, k), 12, seed=0), np.zeros(k)
    for step in range(1, 201):
        counts += np.bincount(sampler.next_batch(shares)[0], minlength=k)
        assert abs(step * 12 * shares - counts).max() < 1
        assert counts.tolist() == sampler.counts.tolist()


def test_a_domain_without_share_is_never_drawn():
    sampler = DomainSampler([5, 5, 5], 7, seed=0)
    for first in np.random.default_rng(0).random(300):
        domain, _ = sampler.next_batch([first, 0, 1 - first])
        assert 1 not in domain


def test_a_domain_that_lost_its_share_gets_at_most_what_it_was_still_owed():
    sampler = DomainSampler([50, 50, 50], 1, seed=0)
    # 0.4 : 0.3 : 0.3 → two batches leave every deficit under one sample; from then on domain 0 has
    # the share alone
    for _ in range(2):
        sampler.next_batch([0.4, 0.3, 0.3])
    before, owed = sampler.counts, sampler.deficits
    for _ in range(50):
        sampler.next_batch([1, 0, 0])
    assert ((sampler.counts - before)[1:] <= np.ceil(np.maximum(owed, 0))[1:]).all()


def test_contiguous_slices_have_the_mix_of_the_batch():
    rng = np.random.default_rng(0)
    sampler = DomainSampler([1000] * 6, 128, seed=0)
    for _ in range(100):
        shares = rng.dirichlet(np.ones(6))
        domain, _ = sampler.next_batch(shares)
        for ranks in (2, 4, 8):
            for part in np.split(domain, ranks):
                # a plain shuffle: up to 10
                assert (
                    abs(
                        np.bincount(part, minlength=6) - np.bincount(domain, minlength=6) / ranks
                    ).max()
                    < 4
                )


def test_the_order_within_a_batch_has_no_fixed_pattern():
    sampler = DomainSampler([1000, 1000], 64, seed=0)
    orders = {tuple(sampler.next_batch(uniform(2))[0]) for _ in range(20)}
    assert len(orders) == 20
    # strided slices are not all of one domain either
    domain, _ = sampler.next_batch(uniform(2))
    assert 4 <= domain[::2].sum() <= 28


def test_a_cap_on_passes_hands_the_request_on():
    sampler = DomainSampler([10, 100, 1000], 10, seed=0, max_passes=2)
    # 4 of 10 samples a batch: domain 0 is full at 20 after five batches; its part then goes 1 : 2
    # to the others
    for _ in range(20):
        sampler.next_batch([0.4, 0.2, 0.4])
    assert sampler.counts[0] == 20
    # 5·2 + 15·10/3 = 60 and 5·4 + 15·20/3 = 120
    assert sampler.counts.tolist() == [20, 60, 120]


def test_a_cap_on_passes_ends_the_stream_and_leaves_the_sampler_usable():
    sampler = DomainSampler([3, 7, 100], 4, seed=0, names=["law", "code", "rest"], max_passes=1.5)
    for _ in range(3):
        sampler.next_batch([0.5, 0.5, 0])
    before = sampler.state_dict()
    with pytest.raises(ValueError, match=r"reached 1\.5 passes"):
        # floor(4.5) + floor(10.5) = 14 samples at most, 12 are gone
        sampler.next_batch([0.5, 0.5, 0])
    assert sampler.state_dict() == before
    assert (sampler.passes <= 1.5).all()
    sampler.next_batch([0.3, 0.3, 0.4])
    # 40 samples of the first over 20 batches are 2 in the first of them, and nobody has the rest
    spread = DomainSampler([10, 100], 10, seed=0, max_passes=4, steps=20)
    with pytest.raises(
        ValueError, match=r"4\.0 passes, or its part of them by step 1 of 20; raise"
    ):
        spread.next_batch([1, 0])


@pytest.mark.parametrize("seed", range(8))
def test_a_cap_holds_whatever_the_shares_do(seed):
    rng = np.random.default_rng(seed)
    sampler = DomainSampler(rng.integers(1, 8, 20), 2, seed=0, max_passes=3)
    while True:
        try:
            domain, _ = sampler.next_batch(rng.dirichlet(np.full(20, 0.5)))
        except ValueError:
            break
        assert domain.size == 2
        assert (sampler.counts <= 3 * sampler.sizes).all()
    # it ends where no batch is left
    assert sampler.counts.sum() == 3 * sampler.sizes.sum() // 2 * 2


def test_an_empty_domain_may_have_no_share():
    sampler = DomainSampler([5, 0], 4, seed=0, names=["law", "code"])
    sampler.next_batch([1, 0])
    with pytest.raises(ValueError, match=r"'code' has no samples but a share of 0\.5"):
        sampler.next_batch([0.5, 0.5])


def test_invalid_shares_are_refused_by_name():
    sampler = DomainSampler([5, 5], 4, seed=0, names=["law", "code"])
    with pytest.raises(ValueError, match="share of 'code' is nan"):
        sampler.next_batch([1, np.nan])
    with pytest.raises(ValueError, match="1 values for 2 domains"):
        sampler.next_batch([1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sizes": []}, "sizes"),
        ({"sizes": [0, 0]}, "sizes"),
        ({"sizes": [1, -1]}, "sizes"),
        ({"sizes": [1.5]}, "sizes"),
        ({"sizes": 3}, "sizes"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"names": ["law"]}, "names"),
        ({"max_passes": 0}, "max_passes"),
        ({"max_passes": float("nan")}, "max_passes"),
    ],
)
def test_invalid_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        DomainSampler(**{"sizes": [5, 5], "batch_size": 4, "seed": 0} | arguments)


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("sizes", DomainSampler([7, 5], 4, 0)),
        ("batch_size", DomainSampler([5, 5], 8, 0)),
        ("seed", DomainSampler([5, 5], 4, 1)),
    ],
)
def test_the_state_of_another_sampler_is_refused(key, other):
    with pytest.raises(ValueError, match=f"sampler state: {key} is"):
        DomainSampler([5, 5], 4, seed=0).load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="max_passes"):
        DomainSampler([5, 5], 4, seed=0, max_passes=3).load_state_dict(
            DomainSampler([5, 5], 4, seed=0).state_dict()
        )


@pytest.mark.parametrize(
    "damage",
    [
        {"counts": [1, 2]},
        {"counts": [5, -1]},
        {"counts": [4]},
        {"deficits": [0.0]},
        {"deficits": [0.5, 0.5]},
        {"deficits": [0.0, float("nan")]},
        {"step": 2},
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage):
    sampler = DomainSampler([5, 5], 4, seed=0)
    sampler.next_batch([0.5, 0.5])
    before = sampler.state_dict()
    with pytest.raises(ValueError, match="damaged"):
        sampler.load_state_dict({**before, **damage})
    incomplete = {key: value for key, value in before.items() if key != "counts"}
    with pytest.raises(ValueError, match="counts missing"):
        sampler.load_state_dict(incomplete)
    assert sampler.state_dict() == before


def test_the_state_is_small_and_does_not_grow():
    sampler = DomainSampler([100_000, 50_000], 64, seed=0)
    for _ in range(20):
        sampler.next_batch([0.5, 0.5])
    assert len(json.dumps(sampler.state_dict())) < 300


def test_a_cap_is_spread_over_the_planned_batches():
    # four passes over 10 samples are 40, 2 in each of 20 batches, where a share of one half would
    # take 5; the other domain gets the rest
    sampler = DomainSampler([10, 1000], 10, seed=0, max_passes=4, steps=20)
    for step in range(1, 21):
        sampler.next_batch([0.5, 0.5])
        assert sampler.counts.tolist() == [2 * step, 8 * step]
    # what was not asked for at first may be had later: a share of 0.1 takes 1 a batch for ten
    # batches, then 5 until 20 are caught up
    sampler = DomainSampler([10, 1000], 10, seed=0, max_passes=4, steps=20)
    for _ in range(10):
        sampler.next_batch([0.1, 0.9])
    taken = []
    for _ in range(5):
        before = sampler.counts[0]
        sampler.next_batch([0.5, 0.5])
        taken.append(int(sampler.counts[0] - before))
    # 22, 24, 26, 28, 30 are allowed by then, of which 10 were taken
    assert taken == [5, 5, 5, 3, 2]
    with pytest.raises(ValueError, match="steps: 0 is below 1"):
        DomainSampler([5], 1, seed=0, max_passes=1, steps=0)


def test_chosen_samples_are_always_the_same_and_nested() -> None:
    few, more = fixed_subset(1000, 30, seed=3, domain=2), fixed_subset(1000, 300, seed=3, domain=2)
    assert len(set(few.tolist())) == 30 and set(few.tolist()) < set(more.tolist())
    np.testing.assert_array_equal(few, fixed_subset(1000, 30, seed=3, domain=2))
    np.testing.assert_array_equal(fixed_subset(7, 7, seed=3, domain=2), np.arange(7))
    assert (
        set(few.tolist())
        != set(fixed_subset(1000, 30, seed=4, domain=2).tolist())
        != set(fixed_subset(1000, 30, seed=4, domain=1).tolist())
    )
    # At random: of 1,000 numbers, the mean of 300 lies within four standard errors of 499.5, which
    # are 4 · 288.7 · √(0.7 / 300) = 55.8.
    assert abs(more.mean() - 499.5) < 55.8
    with pytest.raises(ValueError, match="count: 8 is not within 0 and 7"):
        fixed_subset(7, 8, seed=3, domain=2)
