"""Records that say nearly what another says: one of them stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import byte_tokenizer, write_records, write_store

from versatune_ray.domains import DomainData, TokenStore, load_domains, near_duplicates
from versatune_ray.domains.near_duplicates import _candidates, _signed, similar
from versatune_ray.domains.tokenizing import build_stores
from versatune_ray.errors import UserError
from versatune_ray.settings.loading import parse


def jaccard(one: list[int], other: list[int]) -> float:
    first, second = (
        {tuple(row[place : place + 5]) for place in range(len(row) - 4)} for row in (one, other)
    )
    return len(first & second) / len(first | second)


def versions(count: int, seed: int) -> list[list[int]]:
    """Texts of 200 tokens, and for each one with 1 to 30 of its tokens changed."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        text = rng.integers(0, 1000, 200)
        other = text.copy()
        other[rng.choice(200, number % 30 + 1, replace=False)] = 1000
        found += [text.tolist(), other.tolist()]
    return found


def test_what_is_left_out_are_those_that_are_as_similar_by_their_own_runs(tmp_path: Path) -> None:
    texts = versions(90, 0)
    store = TokenStore(write_store(tmp_path / "s", [(text, 0) for text in texts]))
    (marks,) = similar([store], [False], 0.8, distributed=False)
    # only a text and its own version are alike: 195 runs of which each change takes up to five
    expected = np.array(
        [jaccard(*pair) >= 0.8 for pair in zip(texts[::2], texts[1::2], strict=True)]
    )
    assert 10 < expected.sum() < 40
    found = marks.reshape(-1, 2)
    assert not found[:, 0].any(), "the lower hash stays"  # write_store's hashes ascend
    # what is found is as similar; at 0.8 bands miss 1 in 50 or so, above it ever fewer
    assert not (found[:, 1] & ~expected).any()
    assert (found[:, 1] & expected).sum() >= expected.sum() - 2


def test_two_records_share_a_band_as_often_as_the_theory_says(tmp_path: Path) -> None:
    rng, texts = np.random.default_rng(1), []
    for _ in range(300):  # one run of 25 tokens changed: 195 − 29 of 195 + 29 runs are of both
        text = rng.integers(0, 10**6, 199)
        other = text.copy()
        other[80:105] += 10**6
        texts += [text.tolist(), other.tolist()]
    store = TokenStore(write_store(tmp_path / "s", [(text, 0) for text in texts]))
    bands, rows = near_duplicates._layout(0.8)
    pairs = {
        tuple(sorted(pair)) for pair in _candidates(_signed(store.folder, 0, 600, 0.8)).tolist()
    }
    s = jaccard(texts[0], texts[1])
    assert s == (195 - 29) / (195 + 29)
    expected = 1 - (1 - s**rows) ** bands
    found = sum((2 * n, 2 * n + 1) in pairs for n in range(300)) / 300
    assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 300) + 0.01
    assert len(pairs) <= 300, "texts that share no run are no candidates"


def test_groups_keep_one_and_held_out_records_all(tmp_path: Path) -> None:
    text = list(range(60))
    near = [[*text[:-1], 99], [*text[:-1], 98], text]
    train = TokenStore(write_store(tmp_path / "a", [(row, 0) for row in [*near, [1, 2], [1, 2]]]))
    other = TokenStore(write_store(tmp_path / "b", [(text, 0), (list(range(100, 160)), 0)]))
    # records too short for a run resemble none; of four that resemble each other the lowest stays
    first, second = similar([train, other], [False, False], 0.8, distributed=False)
    assert first.tolist()[3:] == [False, False] and not second[1]
    assert first[:3].sum() + second[0] == 3
    hashes = [*train.hashes[:3], other.hashes[0]]
    assert [*first[:3], second[0]][int(np.argmin(hashes))] == 0
    first, second = similar([train, other], [False, True], 0.8, distributed=False)
    assert first.tolist() == [True, True, True, False, False] and not second.any()


def test_a_setting_leaves_them_out_of_all_domains_and_counts_them(tmp_path: Path) -> None:
    said = "the court finds for the plaintiff because the contract was broken in every part "
    law = [{"text": f"{said}{n}"} for n in range(8)] + [{"text": f"{n} " * 30} for n in range(9)]
    code = [{"text": f"{said}9"}, *({"text": f"x = {n} ** {n}; " * 5} for n in range(10, 18))]
    domains = {
        "law": write_records(tmp_path / "law.jsonl", law),
        "code": write_records(tmp_path / "code.jsonl", code),
    }
    tokenizer = byte_tokenizer(tmp_path)

    def load(**data: Any) -> dict[str, DomainData]:
        config = parse({"model": {"path": "x"}, "data": data, "domains": domains})
        args = (config, config.domains, tokenizer, tmp_path / "cache")
        return load_domains(build_stores(*args, distributed=False), config.data)

    before, after = load(), load(near_duplicates=0.8)
    assert [one.counts["similar_removed"] for one in before.values()] == [0, 0]
    # nine say the same but for a digit, of 80 tokens; one of them stays
    assert sum(one.counts["similar_removed"] for one in after.values()) == 8
    for name, one in after.items():
        assert len(one.train) + len(one.validation) == (
            len(before[name].train) + len(before[name].validation) - one.counts["similar_removed"]
        )
    files = [*(tmp_path / "cache" / "near-duplicates").rglob("*.npy")]
    made = [file.stat().st_mtime_ns for file in files]
    load(near_duplicates=0.8)
    assert len(files) == 2 and [file.stat().st_mtime_ns for file in files] == made
    with pytest.raises(Exception, match="near_duplicates"):
        load(near_duplicates=1.5)


def test_a_domain_or_a_weighted_source_of_which_nothing_is_left_names_the_key(
    tmp_path: Path,
) -> None:
    said = "the court finds for the plaintiff because the contract was broken in every part "
    same = write_records(tmp_path / "same.jsonl", [{"text": f"{said}{n}"} for n in range(8)])
    other = write_records(tmp_path / "other.jsonl", [{"text": f"{n} " * 30} for n in range(9)])
    lines = [{"text": f"x = {n} ** {n}; " * 5} for n in range(10, 18)]
    code = write_records(tmp_path / "code.jsonl", lines)
    asked = write_records(tmp_path / "asked.jsonl", [{"text": f"{said}9"}])
    tokenizer = byte_tokenizer(tmp_path)

    def load(train: Any) -> None:
        domains = {"law": {"train": train, "validation": [asked]}, "code": code}
        data = {"near_duplicates": 0.8}
        config = parse({"model": {"path": "x"}, "data": data, "domains": domains})
        args = (config, config.domains, tokenizer, tmp_path / "cache")
        load_domains(build_stores(*args, distributed=False), config.data)

    why = "data.near_duplicates leaves out 8: raise it, or set it to null"
    with pytest.raises(UserError, match=f"'law' has 0 usable records .* and 1 held out; {why}"):
        load([same])
    sources = [{"path": same, "weight": 1}, {"path": other, "weight": 1}]
    with pytest.raises(UserError, match=rf"law\.train: source 1 of 2 has no record .*; {why}"):
        load(sources)
