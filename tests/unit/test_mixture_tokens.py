"""TokenSampler: shares of tokens, without variance, whatever the lengths."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from versatune_ray.mixture import DomainSampler, TokenSampler
from versatune_ray.mixture.tokens import fair_queue

REAL = next(
    (
        folder
        for above in Path(__file__).parents[3:5]
        if (folder := above / "shared" / "data" / "sft").is_dir()
    ),
    None,
)


def world(seed: int, k: int, spread: float) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    scale = 60 * np.exp(spread * rng.normal(size=k))
    return [
        np.clip(one * np.exp(spread * rng.normal(size=rng.integers(3, 90))), 1, 4096).astype(int)
        for one in scale
    ]


def stream(sampler: DomainSampler, schedule: Any) -> list[Any]:
    return [tuple(part.tolist() for part in sampler.next_batch(shares)) for shares in schedule]


def test_the_records_of_a_batch_by_hand() -> None:
    # Two domains with half of the tokens each; records of 4 tokens, and of 1. On the clock of all
    # tokens the long ones go from 0 to 8 and 8 to 16, the short ones end at 2, 4, 6, 8, …. Of five
    # records that end first, four are short and one is long: 8 tokens, at which all have begun.
    begins = np.array([0, 8, 0, 2, 4, 6, 8, 10.0])
    ends = np.array([8, 16, 2, 4, 6, 8, 10, 12.0])
    length = np.array([4, 4, 1, 1, 1, 1, 1, 1.0])
    places, end = fair_queue(begins, ends, length, 5)
    assert (places.tolist(), end) == ([0, 2, 3, 4, 5], 8.0)
    sampler = TokenSampler([[4] * 9, [1] * 40], 5, seed=0)
    for _ in range(4):
        domain, _ = sampler.next_batch([0.5, 0.5])
        assert sorted(domain.tolist()) == [0, 1, 1, 1, 1]
        assert sampler.deficits.tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(12))
def test_no_domain_is_further_from_its_share_of_the_tokens_than_one_longest_record(
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    k, batch = int(rng.choice([2, 3, 6, 30, 200])), int(rng.choice([2, 8, 64, 256]))
    lengths = world(seed, k, spread=float(rng.choice([0, 0.5, 1.2])))
    shares = rng.dirichlet(np.full(k, rng.choice([0.3, 1, 10])))
    sampler, longest = TokenSampler(lengths, batch, seed), max(one.max() for one in lengths)
    given = np.zeros(k)
    for _ in range(40):
        domain, index = sampler.next_batch(shares)
        each = [lengths[one][at] for one, at in zip(domain, index, strict=True)]
        given += np.bincount(domain, each, k)
        assert len(domain) == batch
        assert abs(shares * given.sum() - given).max() <= longest
        np.testing.assert_allclose(sampler.deficits, shares * given.sum() - given, atol=1e-6)


def test_a_batch_of_long_records_looks_far_enough_for_short_ones() -> None:
    """Where much more has begun than is short, records that begin late and end soon have to be
    among those to choose from.
    """
    rng = np.random.default_rng(5)
    shares = rng.dirichlet(np.full(100, 0.1))
    scale = 50 * np.exp(rng.normal(size=100))
    lengths = [
        np.clip(one * np.exp(1.5 * rng.normal(size=60)), 1, 4096).astype(int) for one in scale
    ]
    sampler, longest = TokenSampler(lengths, 512, 5), max(one.max() for one in lengths)
    for _ in range(30):
        sampler.next_batch(shares)
        assert abs(sampler.deficits).max() <= longest


def test_records_of_one_length_are_shared_as_samples_are() -> None:
    shares = np.array([0.5, 0.3, 0.2])
    tokens, samples = TokenSampler([[7] * 50] * 3, 10, 3), DomainSampler([50] * 3, 10, 3)
    for _ in range(20):
        (domain, index), (other, at) = tokens.next_batch(shares), samples.next_batch(shares)
        assert np.bincount(domain).tolist() == np.bincount(other).tolist() == [5, 3, 2]
        assert sorted(zip(domain, index, strict=True)) == sorted(zip(other, at, strict=True))


def test_an_interruption_anywhere_leaves_the_remaining_stream_as_it_was() -> None:
    lengths = world(5, 4, 1.0)
    schedule = np.random.default_rng(0).dirichlet(np.ones(4), 25)
    whole = stream(TokenSampler(lengths, 16, seed=1), schedule)
    running = TokenSampler(lengths, 16, seed=1)
    for step in range(25):
        resumed = TokenSampler(lengths, 16, seed=1)
        resumed.load_state_dict(json.loads(json.dumps(running.state_dict())))
        assert stream(resumed, schedule[step:]) == whole[step:]
        stream(running, schedule[step : step + 1])
    assert stream(TokenSampler(lengths, 16, seed=2), schedule) != whole


def test_a_run_goes_on_where_a_cap_leaves_few_records_and_shares_jump() -> None:
    """The last records of a cap are given whoever's they are, so that deficits grow."""
    ahead = 0.0
    for seed in (4, 9):
        rng, lengths = np.random.default_rng(seed), world(seed, 20, 1.2)
        running = TokenSampler(lengths, 32, 0, max_passes=1)
        while True:
            try:
                running.next_batch(rng.dirichlet(np.full(20, 0.3)))
            except ValueError:
                break
            ahead = max(ahead, float(-running.deficits.min()) / max(map(np.max, lengths)))
            resumed = TokenSampler(lengths, 32, 0, max_passes=1)
            resumed.load_state_dict(running.state_dict())
    assert ahead > 2, "else nothing was tried"


def test_each_pass_is_a_permutation_though_the_next_one_is_looked_into() -> None:
    lengths = world(2, 3, 0.8)
    sampler = TokenSampler(lengths, 1, seed=2)
    order = [int(sampler.next_batch([0, 1, 0])[1][0]) for _ in range(3 * len(lengths[1]))]
    size = len(lengths[1])
    passes = [order[at : at + size] for at in (0, size, 2 * size)]
    assert all(sorted(one) == list(range(size)) for one in passes) and passes[0] != passes[1]


@pytest.mark.parametrize("seed", range(6))
def test_a_cap_holds_and_ends_the_stream(seed: int) -> None:
    rng, lengths = np.random.default_rng(seed), world(seed, 8, 0.7)
    sampler = TokenSampler(lengths, 4, seed=0, max_passes=2)
    while True:
        try:
            sampler.next_batch(rng.dirichlet(np.full(8, 0.5)))
        except ValueError as error:
            assert "reached 2.0 passes" in str(error)
            break
        assert (sampler.counts <= 2 * sampler.sizes).all()
    assert sampler.counts.sum() > 1.8 * sampler.sizes.sum()


def test_a_cap_is_spread_over_the_planned_batches() -> None:
    # as for samples: four passes over 10 records are 40, 2 in each of 20 batches
    sampler = TokenSampler([[5] * 10, [5] * 1000], 10, seed=0, max_passes=4, steps=20)
    for step in range(1, 21):
        sampler.next_batch([0.5, 0.5])
        assert sampler.counts.tolist() == [2 * step, 8 * step]


def test_states_of_another_unit_or_of_other_lengths_are_refused() -> None:
    tokens = TokenSampler([[1, 2], [3]], 2, 0)
    for other in (TokenSampler([[1, 3], [3]], 2, 0), DomainSampler([2, 1], 2, 0)):
        for one, two in ((tokens, other), (other, tokens)):
            with pytest.raises(ValueError, match="unit"):
                one.load_state_dict(two.state_dict())


def test_a_domain_goes_by_the_order_that_it_is_given() -> None:
    for sampler in (
        DomainSampler([3, 4], 7, 0, walks=[[2, 0, 1], None]),
        TokenSampler([[1] * 3, [1] * 4], 7, 0, walks=[[2, 0, 1], None]),
    ):
        seen: list[int] = []
        for _ in range(6):
            _, index = sampler.next_batch([1, 0])
            seen += index.tolist()
            assert sampler.counts.sum() == len(seen)
        assert seen == [2, 0, 1] * 14
        with pytest.raises(ValueError, match=r"walks is .* there and None here"):
            DomainSampler([3, 4], 7, 0).load_state_dict(
                DomainSampler([3, 4], 7, 0, walks=[[2, 0, 1], None]).state_dict()
            )
    with pytest.raises(ValueError, match="walks: that of 'law' is no order of its 3 samples"):
        DomainSampler([3, 4], 7, 0, ["law", "code"], walks=[[0, 0, 1], None])


@pytest.mark.skipif(REAL is None, reason="needs the real records")
@pytest.mark.parametrize("batch", [16, 128])
def test_real_answers_are_shared_within_one_of_them(batch: int) -> None:
    assert REAL is not None
    lengths = []  # about four characters a token
    for file in sorted(REAL.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            some = islice(lines, 3000)
            lengths.append([1 + len(str(json.loads(line).get("output"))) // 4 for line in some])
    longest = max(map(max, lengths))
    sampler = TokenSampler(lengths, batch, seed=0)
    given, asked = np.zeros(len(lengths)), np.zeros(len(lengths))
    rng = np.random.default_rng(0)
    for step in range(200):
        if step % 40 == 0:
            shares = rng.dirichlet(np.full(len(lengths), 2.0))
        domain, index = sampler.next_batch(shares)
        tokens = [lengths[one][at] for one, at in zip(domain, index, strict=True)]
        given += np.bincount(domain, tokens, len(lengths))
        asked += shares * sum(tokens)
        assert abs(asked - given).max() <= longest
