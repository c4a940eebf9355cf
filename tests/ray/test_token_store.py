"""Token stores built by Ray Data: order, cache, counts and the errors of bad sources."""

from __future__ import annotations

import csv
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import patience
from ray.data import DataContext
from tiny import byte_tokenizer, write_store
from transformers import PreTrainedTokenizerFast

from versatune_ray.domains import (
    DomainPaths,
    TokenStore,
    content_hash,
    load_domains,
    near_duplicates,
    ranges,
    to_example,
    tokenizing,
)
from versatune_ray.domains.tokenizing import build_stores
from versatune_ray.errors import UserError
from versatune_ray.settings import Config
from versatune_ray.settings.loading import parse

Rows = list[dict[str, Any]]


pytestmark = pytest.mark.usefixtures("ray_cluster", "by_ray")


@pytest.fixture
def by_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sources too are tokenised by Ray Data."""
    monkeypatch.setattr(tokenizing, "_FEW", 0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def rows(start: int, count: int) -> Rows:
    return [
        {"prompt": f"Question {number}?", "completion": f"Answer {number * number}."}
        for number in range(start, start + count)
    ]


def write_lines(path: Path, records: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    return str(path)


def configure(domains: dict[str, Any], **data: Any) -> Config:
    return parse({"model": {"path": "unused"}, "data": data, "domains": domains})


def build(config: Config, tokenizer: str, cache: Path) -> dict[str, DomainPaths]:
    return build_stores(config, config.domains, tokenizer, cache)


def text_of(tokenizer: str, store: TokenStore, index: int) -> str:
    return str(PreTrainedTokenizerFast.from_pretrained(tokenizer).decode(store.tokens(index)))


def test_domains_of_all_formats_become_stores_in_order_and_once(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # many shards, so that order has to be kept
    monkeypatch.setattr(ranges, "STEP", 10_000)
    everything = rows(0, 3000)
    folder = tmp_path / "law"
    folder.mkdir()
    write_lines(folder / "a.jsonl", everything[:1000])
    (folder / "b.json").write_text(json.dumps(everything[1000:1500]), encoding="utf-8")
    with (folder / "c.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(everything[1500:2000])
    pq.write_table(pa.Table.from_pylist(everything[2000:]), folder / "d.parquet")
    talk = [
        {
            "conversations": [
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": f"Hello {n}"},
            ]
        }
        for n in range(40)
    ]
    domains = {
        "law": str(folder),
        "chat": {
            "train": write_lines(tmp_path / "t.jsonl", talk[:30]),
            "validation": write_lines(tmp_path / "v.jsonl", talk[30:]),
        },
        "again": str(folder),
    }
    config = configure(domains)
    before = DataContext.get_current()
    paths = build(config, tokenizer, tmp_path / "cache")
    assert DataContext.get_current() is before
    assert before.execution_options.preserve_order is False

    law = TokenStore(paths["law"].train)
    assert law.hashes.tolist() == [content_hash(to_example(row)) for row in everything]
    for index, place in (
        (0, "a.jsonl:1"),
        (1000, "b.json#1"),
        (1999, "c.csv:501"),
        (2000, "d.parquet#1"),
        (2999, "d.parquet#1000"),
    ):
        assert law.location(index) == f"{folder}/{place}"
        assert (
            text_of(tokenizer, law, index)
            == f"<s>User: Question {index}?\nAssistant: Answer {index * index}.</s>"
        )
        answer = len(f" Answer {index * index}.") + 1
        assert law.mask(index).tolist() == [False] * (law.lengths[index] - answer) + [True] * answer
        assert (law.response_tokens[index], law.response_bytes[index]) == (answer, answer - 2)
    assert (law.meta["read"], law.meta["kept"], law.meta["bad"]) == (3000, 3000, {})

    chat = load_domains(paths, config.data)["chat"]
    assert (len(chat.train), len(chat.validation)) == (30, 10)
    assert text_of(tokenizer, chat.validation.store, 0) == "<s>User: Hi\nAssistant: Hello 30</s>"

    assert paths["again"] == paths["law"]
    stores = sorted(path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir())
    assert len(stores) == 3
    times = [path.stat().st_mtime_ns for path in stores]
    shutil.move(folder, tmp_path / "moved")
    again = {**domains, "law": str(tmp_path / "moved"), "again": str(tmp_path / "moved")}
    moved = build(configure(again), tokenizer, tmp_path / "cache")
    assert moved["chat"] == paths["chat"]
    assert moved["law"].train != paths["law"].train
    assert moved["law"].key == paths["law"].key  # the same records
    assert [path.stat().st_mtime_ns for path in stores] == times


def test_another_length_or_template_is_another_store(tmp_path: Path, tokenizer: str) -> None:
    long = {"prompt": "x" * 20, "completion": "y" * 40}
    lost = {"prompt": "x" * 80, "completion": "y"}
    domains = {
        "a": write_lines(tmp_path / "a.jsonl", [*rows(0, 3), long, lost]),
        "b": write_lines(tmp_path / "b.jsonl", rows(0, 3)),
    }
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", encoding="utf-8"
    )
    head = len("<User: \nAssistant: ")  # one character stands for the BOS

    def store(**data: Any) -> TokenStore:
        return TokenStore(
            build(
                configure(domains, max_length=60, max_bad_fraction=0.5, **data),
                tokenizer,
                tmp_path / "cache",
            )["a"].train
        )

    cut, keep, refuse = store(too_long="cut"), store(too_long="keep"), store(too_long="refuse")
    assert (cut.meta["kept"], cut.meta["cut"], cut.meta["bad"]) == (
        4,
        1,
        {"no answer token left within max_length": 1},
    )
    assert (cut.lengths[3], cut.response_bytes[3]) == (60, 60 - head - 20)
    assert (keep.meta["kept"], keep.meta["over_long_kept"], keep.meta["bad"]) == (5, 2, {})
    assert keep.lengths[3:].tolist() == [head + 20 + 40 + 1, head + 80 + 1 + 1]
    assert (refuse.meta["kept"], refuse.meta["bad"]) == (3, {"longer than max_length": 2})
    other = store(too_long="cut", chat_template=str(tmp_path / "t.jinja"))
    assert text_of(tokenizer, other, 0) == "<s>Question 0?</s>Answer 0.</s>"
    assert len({one.folder for one in (cut, keep, refuse, other)}) == 4


def test_a_store_is_the_same_byte_for_byte_in_this_process(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [{"prompt": "Why?", "completion": ""}, {"text": "0123456789" * 20}, {"body": 1}]
    spec = write_lines(tmp_path / "law.jsonl", [*rows(0, 300), *bad, *rows(300, 9)])
    config = configure({"law": spec, "code": spec}, max_bad_fraction=0.1, max_length=60)

    def files(cache: Path) -> dict[str, bytes]:
        folder = build(config, tokenizer, cache)["law"].train
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    expected = files(tmp_path / "ray")
    monkeypatch.setattr(tokenizing, "_FEW", 8 << 20)
    monkeypatch.setattr(tokenizing, "by_ray", None)
    assert files(tmp_path / "alone") == expected


def test_bad_records_stop_the_job_unless_tolerated_and_also_from_the_cache(
    tmp_path: Path, tokenizer: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    good = [json.dumps(row) for row in rows(0, 48)]
    bad.write_text(
        "\n".join([good[0], '{"prompt": ', *good[1:], '{"prompt": "Why?", "completion": ""}']),
        encoding="utf-8",
    )
    domains = {
        "law": {"train": str(bad)},
        "code": write_lines(tmp_path / "code.jsonl", rows(100, 5)),
    }
    expected = (
        rf"^domains\.law\.train: 2 of 50 records are bad: {bad}:2: broken JSON: .*; {bad}:50: no "
        rf"answer \(completion is empty\); "
        r"mend them, or set data\.max_bad_fraction=0\.04$"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=expected):
            build(configure(domains), tokenizer, tmp_path / "cache")
    with pytest.raises(UserError, match=expected):
        build(configure(domains, max_bad_fraction=0.03), tokenizer, tmp_path / "cache")
    config = configure(domains, max_bad_fraction=0.04)
    counts = load_domains(build(config, tokenizer, tmp_path / "cache"), config.data)["law"].counts
    assert (counts["read"], counts["bad"], counts["train"] + counts["validation"]) == (50, 2, 48)


def test_sources_with_nothing_to_use_are_named_with_their_key(
    tmp_path: Path, tokenizer: str
) -> None:
    good = write_lines(tmp_path / "good.jsonl", rows(0, 3))
    empty = write_lines(tmp_path / "empty.jsonl", [])
    useless = write_lines(tmp_path / "useless.jsonl", [{"body": "x"}])
    broken = tmp_path / "broken.parquet"
    broken.write_text("no parquet", encoding="utf-8")
    cases = [
        (empty, r"empty\.jsonl: no record in it \(domains\.law\.validation\)"),
        (
            useless,
            r"domains\.law\.validation: 1 of 1 records are bad: .*useless\.jsonl:1: unknown shape: "
            r"fields body.*none is left to use",
        ),
        (str(broken), r"^/.*broken\.parquet: cannot be read: .*\(domains\.law\.validation\)"),
        (
            str(tmp_path / "missing.jsonl"),
            r"^file not found: .*missing\.jsonl \(domains\.law\.validation\)",
        ),
    ]
    for spec, message in cases:
        config = configure(
            {"law": {"train": good, "validation": spec}, "code": good}, max_bad_fraction=1
        )
        with pytest.raises(UserError, match=message):
            build(config, tokenizer, tmp_path / "cache")
    left = [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.name.startswith(".")]
    assert left == []


def test_two_runs_at_once_build_a_store_once(tmp_path: Path, tokenizer: str) -> None:
    config = configure(
        {
            "a": write_lines(tmp_path / "a.jsonl", rows(0, 5)),
            "b": write_lines(tmp_path / "b.jsonl", rows(5, 5)),
        }
    )
    found: list[dict[str, DomainPaths]] = []
    threads = [
        threading.Thread(target=lambda: found.append(build(config, tokenizer, tmp_path / "cache")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(120))
    assert len(found) == 2
    assert found[0] == found[1]
    assert len([path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()]) == 2


def test_ray_finds_the_same_near_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = np.random.default_rng(0).integers(0, 100, (40, 50))
    rows = [(row.tolist(), 0) for row in np.concatenate([text, text[:7]])]
    stores = [TokenStore(write_store(tmp_path / name, rows)) for name in "ab"]
    expected = near_duplicates.similar(stores, [False, False], 0.8, distributed=False)
    assert sum(marks.sum() for marks in expected) == 40 + 7 + 7  # of 40 texts one of each stays
    monkeypatch.setattr(near_duplicates, "_FEW", 0)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 20)
    found = near_duplicates.similar(stores, [False, False], 0.8, distributed=True)
    assert [marks.tolist() for marks in found] == [marks.tolist() for marks in expected]
