"""What is held out: the split accounts for every record, and never trains on what it measures."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from token_stores import INPUTS, QUARTER, batch, store

from versatune_ray.domains import (
    DomainPaths,
    DomainStores,
    TokenStore,
    TokenStoreWriter,
    load_domains,
    split,
)
from versatune_ray.errors import UserError
from versatune_ray.settings import Data


def adds_up(counts: dict[str, int]) -> bool:
    parts = (
        "bad",
        "train",
        "left_out",
        "train_unused",
        "validation",
        "duplicates_removed",
        "contaminated_removed",
        "similar_removed",
        "validation_duplicates",
        "validation_unused",
    )
    return counts["read"] + counts["train_repeated"] == sum(counts[part] for part in parts)


def test_the_hash_decides_what_is_held_out(tmp_path: Path) -> None:
    hashes = [3 * QUARTER, QUARTER - 1, QUARTER, 0, 2 * QUARTER]
    law = split(
        {"law": DomainStores(store(tmp_path / "s", hashes), None)}, Data(validation_fraction=0.25)
    )["law"]
    assert law.train.indices.tolist() == [0, 2, 4]
    assert law.validation.indices.tolist() == [1, 3]
    backwards = split(
        {"law": DomainStores(store(tmp_path / "t", hashes[::-1]), None)},
        Data(validation_fraction=0.25),
    )["law"]
    assert sorted(backwards.validation.hashes.tolist()) == sorted(law.validation.hashes.tolist())


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    high = 2 * QUARTER
    domains = {
        # held out: 1, 1 (a copy), 2, 3; the cap of two leaves 1 and 2
        "law": DomainStores(store(tmp_path / "law", [high, 1, 2, 1, 3, high + 1], bad=2), None),
        # given: high + 1 twice and 9; training has a copy of 9, and of 3, which law holds out
        # without measuring it
        "code": DomainStores(
            store(tmp_path / "code", [9, 3, 12, 12]),
            store(tmp_path / "code_v", [high + 1, 9, high + 1], bad=1),
        ),
    }
    data = split(domains, Data(validation_fraction=0.25, max_validation=2))
    assert data["law"].counts == {
        "read": 8, "bad": 2, "left_out": 0, "train": 1, "train_repeated": 0, "train_unused": 0,
        "validation": 2, "near_duplicates_removed": 0,
        "contaminated_removed": 0, "similar_removed": 0,
        "duplicates_removed": 1, "validation_duplicates": 1,
        "validation_unused": 1, "cut": 0, "over_long_kept": 0,
    }  # fmt: skip
    assert data["code"].counts == {
        "read": 8, "bad": 1, "left_out": 0, "train": 2, "train_repeated": 0, "train_unused": 0,
        "validation": 2, "near_duplicates_removed": 0,
        "contaminated_removed": 0, "similar_removed": 0,
        "duplicates_removed": 2, "validation_duplicates": 1,
        "validation_unused": 0, "cut": 0, "over_long_kept": 0,
    }  # fmt: skip
    assert all(adds_up(domain.counts) for domain in data.values())
    assert data["law"].validation.hashes.tolist() == [1, 2]
    assert data["law"].train.hashes.tolist() == [high]
    assert data["code"].validation.hashes.tolist() == [high + 1, 9]
    assert data["code"].train.hashes.tolist() == [12, 12]
    capped = split(domains, Data(validation_fraction=0.25, max_validation=2, max_train={"code": 1}))
    assert (capped["code"].counts["train"], capped["code"].counts["train_unused"]) == (1, 1)
    assert capped["law"].counts == data["law"].counts and adds_up(capped["code"].counts)


def test_what_decides_a_domains_split_is_its_own_cap_and_no_other() -> None:
    free, one = Data(max_validation=2), Data(max_validation=2, max_train={"code": 1})
    assert (
        one.split("law")
        == free.split("law")
        == {"validation_fraction": 0.05, "max_validation": 2, "max_train": None}
    )
    assert (
        one.split("code") == Data(max_validation=2, max_train=1).split("code") != free.split("code")
    )


def test_the_account_holds_for_random_domains_and_nothing_measured_is_trained_on(
    tmp_path: Path,
) -> None:
    random = np.random.default_rng(0)
    domains = {}
    for number in range(4):
        hashes = [(int(value) << 55) + 1 for value in random.integers(0, 2**9, 80)]
        given = [(int(value) << 55) + 1 for value in random.integers(0, 2**9, 20)]
        held_out = store(tmp_path / f"v{number}", given) if number % 2 else None
        domains[str(number)] = DomainStores(
            store(tmp_path / f"s{number}", hashes, bad=number), held_out
        )
    data = split(domains, Data(validation_fraction=0.2, max_validation=10))
    measured = {value for domain in data.values() for value in domain.validation.hashes.tolist()}
    for domain in data.values():
        assert adds_up(domain.counts)
        assert not measured & set(domain.train.hashes.tolist())
        assert len(set(domain.validation.hashes.tolist())) == len(domain.validation) == 10


def test_tiny_domains_keep_one_record_on_each_side_or_say_so(tmp_path: Path) -> None:
    none_low = split(
        {"law": DomainStores(store(tmp_path / "a", [30 + QUARTER, 20 + QUARTER]), None)},
        Data(validation_fraction=0.25),
    )["law"]
    assert (none_low.train.indices.tolist(), none_low.validation.indices.tolist()) == ([0], [1])
    all_low = split(
        {"law": DomainStores(store(tmp_path / "b", [3, 2, 3]), None)},
        Data(validation_fraction=0.25),
    )["law"]
    assert (all_low.train.indices.tolist(), all_low.validation.indices.tolist()) == ([0, 2], [1])
    with pytest.raises(UserError, match="domain 'law' has only 1 usable records that differ"):
        split({"law": DomainStores(store(tmp_path / "c", [3, 3]), None)}, Data())
    with pytest.raises(UserError, match="domain 'law': all 2 training records are held out"):
        split(
            {"law": DomainStores(store(tmp_path / "d", [3, 4]), store(tmp_path / "e", [4, 3]))},
            Data(),
        )


def test_workers_open_the_same_split_from_paths(tmp_path: Path) -> None:
    store(tmp_path / "s", [1, QUARTER, 2 * QUARTER])
    store(tmp_path / "v", [8])
    paths = {
        "law": DomainPaths(tmp_path / "s", None),
        "code": DomainPaths(tmp_path / "s", tmp_path / "v"),
    }
    data = load_domains(paths, Data(validation_fraction=0.25))
    assert {name: (len(domain.train), len(domain.validation)) for name, domain in data.items()} == {
        "law": (2, 1),
        "code": (2, 1),
    }


def test_a_split_of_many_records_is_made_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, place = import_module("versatune_ray.domains.loading"), tmp_path / "cache" / "tokens"
    store(place / "s", [1, QUARTER, 2 * QUARTER, 2 * QUARTER])
    store(place / "v", [8], bad=1)
    paths = {
        "law": DomainPaths(place / "s", None),
        "code": DomainPaths(place / "s", place / "v"),
    }
    expected = load_domains(paths, Data(validation_fraction=0.25))
    assert not (tmp_path / "cache" / "splits").exists()
    monkeypatch.setattr(module, "_MANY", 0)
    load_domains(paths, Data(validation_fraction=0.25))
    other = load_domains(paths, Data(validation_fraction=0.25, max_train=1))
    assert len(other["code"].train) == 1
    monkeypatch.setattr(module, "split", None)
    found = load_domains(paths, Data(validation_fraction=0.25))
    for name, domain in expected.items():
        assert found[name].train.indices.tolist() == domain.train.indices.tolist()
        assert found[name].validation.hashes.tolist() == domain.validation.hashes.tolist()
        assert (found[name].counts, found[name].account) == (domain.counts, domain.account)
        assert found[name].train.indices.dtype == np.uint32
        for column in ("lengths", "response_tokens", "response_bytes", "weights"):
            values = getattr(found[name].train, column)
            assert values.tolist() == getattr(domain.train, column).tolist()
            assert not values.flags.owndata, "mapped, and not taken from the store by every rank"


def test_records_that_ask_the_same_are_on_one_side(tmp_path: Path) -> None:
    low, high = 1, 2 * QUARTER
    # eleven answers to one question are an instruction, two are duplicates
    hashes = [low, high, low + 1, *(high + 1 + n for n in range(10)), low + 2, high + 50]
    asked = [7, 7, *[8] * 11, 9, 10]
    with TokenStoreWriter(tmp_path / "s", INPUTS) as writer:
        rows = batch([[number, 7, 7] for number in range(len(hashes))], hashes)
        writer.append(rows._replace(prompts=np.array(asked, np.uint64)))
    found = split(
        {"law": DomainStores(TokenStore(tmp_path / "s"), None)}, Data(validation_fraction=0.25)
    )["law"]
    held_out = set(found.validation.indices.tolist())
    # of the two that ask 7 one decides; of those that ask 8 each decides for itself
    assert held_out in ({0, 1, 2, 13}, {2, 13}) and adds_up(found.counts)
    assert set(found.train.indices.tolist()) == set(range(15)) - held_out


def test_what_is_measured_is_not_asked_in_training(tmp_path: Path) -> None:
    def asking(folder: str, hashes: list[int], prompts: list[int]) -> TokenStore:
        with TokenStoreWriter(tmp_path / folder, INPUTS) as writer:
            rows = batch([[number, 7, 7] for number in range(len(hashes))], hashes)
            writer.append(rows._replace(prompts=np.array(prompts, np.uint64)))
        return TokenStore(tmp_path / folder)

    train = asking("train", [1, 2, 3, 4], [10, 11, 12, 13])
    domains = {"law": DomainStores(train, asking("validation", [5, 4], [11, 13]))}
    found = split(domains, Data())["law"]
    # 4 is a copy; 2 asks what 5 asks, and answers otherwise
    assert found.train.hashes.tolist() == [1, 3] and adds_up(found.counts)
    assert (found.counts["duplicates_removed"], found.counts["near_duplicates_removed"]) == (2, 1)


@pytest.mark.parametrize("seed", range(3))
def test_the_share_held_out_stays_what_was_asked_for_where_many_ask_the_same(
    seed: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**63, 6000, dtype=np.uint64) * np.uint64(2)
    with TokenStoreWriter(tmp_path / "s", INPUTS) as writer:
        rows = batch([[1, 7, 7]] * 6000, hashes.tolist())
        writer.append(rows._replace(prompts=random.integers(0, 1500, 6000).astype(np.uint64)))
    found = split(
        {"law": DomainStores(TokenStore(tmp_path / "s"), None)},
        Data(validation_fraction=0.2, max_validation=6000),
    )["law"]
    # 1500 groups of about four: the share of records has a standard error of about 0.012
    assert 0.2 - 0.05 < len(found.validation) / 6000 < 0.2 + 0.05
