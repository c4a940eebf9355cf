"""Who computes what: every item once, rows within their capacity, ranks about equally loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_store

from versatune_ray.domains import Records, TokenStore
from versatune_ray.training.batches import Layout, Samples
from versatune_ray.training.batching import (
    attention_cost,
    micro_batches,
    packed_rows,
    padded_rows,
    spread,
)


def test_the_longest_go_first_to_whoever_has_least() -> None:
    # 7 | 6 | then 5 to the second (11), 4 to the first (11), 3 to the first by place: 14 | 11.
    assert [items.tolist() for items in spread(np.array([3.0, 7.0, 5.0, 4.0, 6.0]), 2)] == [
        [0, 1, 3],
        [2, 4],
    ]


def test_as_many_items_as_ranks_leave_none_idle() -> None:
    assert sorted(items.tolist() for items in spread(np.array([1.0, 1.0, 9.0]), 3)) == [
        [0],
        [1],
        [2],
    ]


def test_padded_rows_hold_items_of_like_length() -> None:
    # Sorted: 2 2 3 | 8 8 | 30: three rows of 3 are 9 tokens; a row of 8 would make 32 of four.
    rows = padded_rows(np.array([8, 2, 30, 2, 8, 3]), 20)
    assert [row.tolist() for row in rows] == [[1, 3, 5], [0, 4], [2]]


def test_padding_is_weighed_against_one_more_pass() -> None:
    # Together 4 · 100 = 400 tokens; apart 3 · 10 + 100 = 130, and 64 for one more pass.
    # With 30 for 100: together 120; apart 30 + 30 and 64 more.
    assert [row.tolist() for row in padded_rows(np.array([100, 10, 10, 10]), 8192)] == [
        [1, 2, 3],
        [0],
    ]
    assert [row.tolist() for row in padded_rows(np.array([30, 10, 10, 10]), 8192)] == [[1, 2, 3, 0]]


def test_packed_rows_fill_evenly_or_do_not_fit() -> None:
    lengths = np.array([5, 5, 5, 5])
    assert [row.tolist() for row in packed_rows(lengths, 10, 2) or []] == [[0, 2], [1, 3]]
    assert packed_rows(lengths, 9, 2) is None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_item_is_computed_once_within_capacity(packed: bool, equal: bool, world: int) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 400, 64)
    plan = micro_batches(
        lengths, attention_cost(lengths, 10_000, 64), world, 500, packed=packed, equal=equal
    )
    assert len(plan) == world
    assert sorted(int(item) for rank in plan for rows in rank for item in rows) == list(range(64))
    for rows in (rows for rank in plan for rows in rank if len(rows)):
        used = lengths[rows].sum() if packed else lengths[rows].max() * len(rows)
        assert used <= 500
    if equal:
        assert len({len(rank) for rank in plan}) == 1


def test_ranks_get_about_the_same_work() -> None:
    lengths = np.random.default_rng(1).integers(10, 2000, 128)
    costs = attention_cost(lengths, 100_000, 4096)
    loads = [
        sum(costs[rows].sum() for rows in rank)
        for rank in micro_batches(lengths, costs, 8, 4096, packed=True, equal=True)
    ]
    assert max(loads) / min(loads) < 1.05


def test_attention_costs_what_the_formula_says() -> None:
    # 100 tokens at 1,000 parameters and width 20: 100 · (1 + 100 · 20 / 1000) = 300.
    np.testing.assert_allclose(attention_cost(np.array([100, 1]), 1000, 20), [300, 1.02])


def test_a_records_weight_multiplies_that_of_its_tokens(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "law", [([3, 4, 5], 1), ([6, 7, 8, 9], 2), ([3, 5], 1)])
    np.save(folder / "weights.npy", np.array([1, 0.5, 3], np.float32))
    store = TokenStore(folder)
    samples = Samples(
        [Records(store, np.arange(3))], np.zeros(3, np.int64), np.array([0, 1, 2], np.int64)
    )
    layout = Layout("sdpa", 1000, 8, 1, 0, equal=False, pinned=False)
    found = layout.collate(samples, np.array([0.25])).inputs["weights"]
    # two, two and one tokens carry loss
    assert found.tolist() == [0.25, 0.25, 0.125, 0.125, 0.75]
