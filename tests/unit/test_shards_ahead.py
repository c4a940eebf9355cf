"""Stores larger than a disk: samples come from a few shards at a time, which are brought before
they are drawn from and dropped after; held-out records need no shard.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from tiny import byte_tokenizer, write_records

from versatune_ray.domains import CopiedRecords, Records, TokenStore, load_domains, ranges
from versatune_ray.domains.tokenizing import build_stores
from versatune_ray.errors import UserError
from versatune_ray.mixture import DomainSampler, ShardOrder, TokenSampler
from versatune_ray.settings import location
from versatune_ray.settings.loading import parse
from versatune_ray.settings.semantics import check
from versatune_ray.training.ahead import ShardsAhead

SHARDS = np.repeat([0, 1, 3, 4, 7], [4, 1, 5, 2, 3])  # of 15 samples; shards 2, 5, 6 have none


def stream(number: int) -> np.random.Philox:
    return np.random.Philox(key=1, counter=np.array([0, 0, 0, number], dtype=np.uint64))


def test_a_pass_takes_shards_in_groups_and_every_sample_once() -> None:
    order = ShardOrder(SHARDS, 2)
    seen = set()
    for number in range(20):
        permutation = order.permutation(stream(number))
        assert sorted(permutation) == list(range(15))
        walked = SHARDS[permutation]
        # five shards, two at a time: two groups of two and one of one, none of which comes back
        offset, groups = 0, []
        while offset < 15:
            now, soon = order.near(stream(number), offset)
            size = int(np.isin(SHARDS, now).sum())
            assert set(walked[offset : offset + size]) == set(now.tolist())
            groups.append(frozenset(now.tolist()))
            offset += size
            assert offset == 15 or set(soon) == set(order.near(stream(number), offset)[0])
        assert [len(group) for group in groups] == [2, 2, 1] and soon.size == 0
        seen.add((*groups,))
    assert len(seen) > 10, "each pass has groups of its own"
    # samples of a group are mixed: the first of a pass are not all of one shard
    firsts = [set(SHARDS[ShardOrder(SHARDS, 5).permutation(stream(n))[:4]]) for n in range(20)]
    assert max(map(len, firsts)) >= 3


@pytest.mark.parametrize("tokens", [False, True])
def test_a_sampler_goes_on_with_its_shards_exactly(tokens: bool) -> None:
    def begin(at_once: int) -> DomainSampler:
        walks = [ShardOrder(SHARDS, at_once), None]
        if tokens:
            lengths = [np.arange(15) % 4 + 1, np.full(30, 2)]
            return TokenSampler(lengths, 4, 0, ["law", "code"], walks=walks)
        return DomainSampler([15, 30], 4, 0, ["law", "code"], walks=walks)

    sampler, shares = begin(2), [0.6, 0.4]
    drawn = []
    for step in range(20):
        near = sampler.shards_near(0)
        assert near is not None and sampler.shards_near(1) is None
        domain, index = sampler.next_batch(shares)
        assert set(SHARDS[index[domain == 0]]) <= set(near)
        drawn.append((domain, index))
        if step == 6:
            state = sampler.state_dict()
    again = begin(2)
    again.load_state_dict(state)
    for domain, index in drawn[7:]:
        found = again.next_batch(shares)
        np.testing.assert_array_equal(found[0], domain)
        np.testing.assert_array_equal(found[1], index)
    with pytest.raises(ValueError, match=r"walks is .* the stream would not continue"):
        begin(3).load_state_dict(state)
    with pytest.raises(ValueError, match="walks: 15 shards for 14 samples of 'law'"):
        DomainSampler([14], 4, 0, ["law"], walks=[ShardOrder(SHARDS, 2)])


def test_shards_come_before_they_are_drawn_from_and_go_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "STEP", 1000)
    rows = [{"prompt": f"q{n}?", "completion": f"answer {n}"} for n in range(400)]
    law = write_records(tmp_path / "law.jsonl", rows)
    (tmp_path / "remote").mkdir()

    def domain(cache: Path) -> tuple[Records, Records]:
        data = {"shards_at_once": 2, "validation_fraction": 0.2}
        config = parse({"model": {"path": "x"}, "data": data, "domains": {"law": law, "b": law}})
        paths = build_stores(
            config, config.domains, byte_tokenizer(tmp_path), cache, distributed=False
        )
        found = load_domains({"law": paths["law"]}, config.data)["law"]
        return found.train, found.validation

    def here(store: TokenStore) -> set[str]:
        return {file.name[:5] for file in store.folder.glob("*.tokens.npy")}

    def mirror(machine: str) -> Path:
        monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / machine))
        return location.root(location.resolve(f"file://{tmp_path / 'remote'}"))

    same = domain(tmp_path / "local")[0].store
    domain(mirror("a"))
    records, held_out = domain(mirror("b"))
    store = records.store
    assert len(store.meta["shards"]) > 9 and store.is_fetched and not here(store)

    assert isinstance(held_out, CopiedRecords) and len(held_out) > 40
    for place in range(len(held_out)):
        tokens, mask = held_out[place]
        np.testing.assert_array_equal(tokens, same.tokens(int(held_out.indices[place])))
        np.testing.assert_array_equal(mask, same.mask(int(held_out.indices[place])))
    assert not here(store), "what measures brings no shard"
    assert isinstance(pickle.loads(pickle.dumps(held_out)), CopiedRecords)

    sampler = DomainSampler([len(records)], 8, 0, walks=[ShardOrder(records.shards, 2)])
    ahead, seen = ShardsAhead([records]), set()
    for _ in range(2 * len(records) // 8):
        ahead.follow(sampler)
        ahead._thread.submit(int).result()  # all that was asked for has come
        there = here(store)
        _, index = sampler.next_batch([1.0])
        assert {f"{shard:05}" for shard in records.shards[index]} <= there
        assert len(there) <= 6, "those that are drawn from, the next and the last"
        for place in index:
            np.testing.assert_array_equal(
                records[int(place)][0], same.tokens(int(records.indices[place]))
            )
        seen |= there
    assert len(seen) == len(set(records.shards))
    ahead.follow(DomainSampler([len(records)], 8, 0))  # an order over all shards brings none


def test_shards_of_a_local_store_are_never_dropped(tmp_path: Path) -> None:
    law = write_records(tmp_path / "law.jsonl", [{"text": f"text {n}"} for n in range(40)])
    config = parse({"model": {"path": "x"}, "domains": {"law": law, "b": law}})
    args = (config, config.domains, byte_tokenizer(tmp_path), tmp_path / "cache")
    store = TokenStore(build_stores(*args, distributed=False)["law"].train)
    before = sorted(store.folder.iterdir())
    expected = store.tokens(3).copy()
    store.drop(0)
    assert sorted(store.folder.iterdir()) == before and not store.is_fetched
    np.testing.assert_array_equal(store.tokens(3), expected)
    np.testing.assert_array_equal(store.copy(3)[0], expected)


def test_records_drawn_from_all_shards_at_each_step_are_refused(tmp_path: Path) -> None:
    tree = {
        "model": {"path": "x"},
        "domains": {"law": "a.jsonl", "code": "b.jsonl"},
        "data": {"shards_at_once": 2},
        "training": {"keep": {"kl": 0.1}},
    }
    with pytest.raises(UserError, match=r"training.keep.kl: .* leave out data.shards_at_once"):
        check(parse(tree), ["law", "code"])
