"""From files to stores in this process, without Ray: what is counted, what is left out, what each
source gives.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from versatune_ray.domains import (
    PLAIN_TEMPLATE,
    DomainData,
    Rules,
    TokenStore,
    expand,
    load_domains,
    tasks,
)
from versatune_ray.domains.encoding import Encoding, Item
from versatune_ray.domains.shards import Shard
from versatune_ray.domains.tokenizing import build_stores
from versatune_ray.errors import UserError
from versatune_ray.settings.loading import parse

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def lines(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def asked(start: int, count: int) -> Rows:
    return [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(start, start + count)]


def build(tmp_path: Path, tokenizer: str, law: Any, **data: Any) -> DomainData:
    other = lines(tmp_path / "other.jsonl", [{"text": f"t{n}"} for n in range(6)])
    tree = {"model": {"path": "unused"}, "data": data, "domains": {"law": law, "other": other}}
    config = parse(tree)
    paths = build_stores(config, config.domains, tokenizer, tmp_path / "cache", distributed=False)
    return load_domains(paths, config.data)["law"]


def text_of(tokenizer: str, store: TokenStore, index: int) -> str:
    return str(PreTrainedTokenizerFast.from_pretrained(tokenizer).decode(store.tokens(index)))


def test_shapes_unread_fields_and_what_is_left_out_are_counted(
    tmp_path: Path, tokenizer: str
) -> None:
    rows = [
        *(row | {"id": 1, "lang": "en"} for row in asked(0, 20)),
        *(row | {"lang": "de"} for row in asked(20, 5)),
        {"question": "q", "answer": "a", "lang": "en", "weight": 2.5, "\ud83d": 1},
        {"prompt": "q", "completion": "a", "label": False, "lang": "en"},
    ]
    law = {"train": lines(tmp_path / "law.jsonl", rows), "where": {"lang": "en"}}
    domain = build(tmp_path, tokenizer, law)
    assert domain.account == {
        "template_drops": {},
        "shapes": {"prompt/completion": 20, "question/answer": 1},
        "unused_fields": {"id": 20, "\\ud83d": 1},
        "left_out": {
            "another lang than domains.NAME.where asks for": 5,
            "label is false: an answer that is not wanted (to train on it, name the values of "
            "label under domains.NAME.where)": 1,
        },
    }
    counts = domain.counts
    assert (counts["read"], counts["bad"], counts["left_out"]) == (27, 0, 6)
    assert counts["train"] + counts["validation"] == 21
    assert sorted(domain.train.store.weights.tolist()) == [1.0] * 20 + [2.5]


def test_a_column_that_no_record_has_and_a_value_that_none_has_are_errors(
    tmp_path: Path, tokenizer: str
) -> None:
    train = lines(tmp_path / "law.jsonl", [{"q": "x", "completion": str(n)} for n in range(9)])
    fields = {"prompt": "q", "completion": "completion"}
    assert build(tmp_path, tokenizer, {"train": train, "fields": fields}).counts["read"] == 9
    with pytest.raises(UserError, match=r"domains\.law\.fields: no record has a column 'sys'"):
        build(tmp_path, tokenizer, {"train": train, "fields": fields | {"system": "sys"}})
    with pytest.raises(UserError, match="all 9 records are left out: 9 × another split than"):
        build(tmp_path, tokenizer, {"train": train, "fields": fields, "where": {"split": "train"}})


def test_every_token_of_a_text_is_learned_once(tmp_path: Path, tokenizer: str) -> None:
    texts = ["x" * 4 + "ab", "0123456789" * 3, "é" * 9]
    train = lines(tmp_path / "law.jsonl", [{"text": text} for text in texts])
    domain = build(tmp_path, tokenizer, train, max_length=12)
    store = domain.train.store
    # 1 + 6 + 1 tokens in one row; 1 + 30 + 1 in rows that share their borders: 12, 12, 10;
    # 1 + 18 + 1: 12, 9
    assert store.lengths.tolist() == [8, 12, 12, 10, 12, 9]
    assert [store.mask(index).tolist() for index in range(2)] == [
        [False] + [True] * 7,
        [False] + [True] * 11,
    ]
    assert store.response_tokens.sum() == 6 + 30 + 18 + 3  # and an EOS each
    assert store.response_bytes.sum() == 6 + 30 + 18
    assert text_of(tokenizer, store, 1) == "<s>01234567890"
    assert text_of(tokenizer, store, 2) == "012345678901"
    assert text_of(tokenizer, store, 3) == "123456789</s>"
    assert len(set(store.hashes.tolist())) == 6
    assert domain.account["shapes"] == {"text": 3}
    assert domain.counts["read"] == 6
    kept = build(tmp_path, tokenizer, train, max_length=12, too_long="keep")
    assert kept.train.store.lengths.tolist() == [8, 32, 20]
    assert kept.counts["over_long_kept"] == 2
    (tmp_path / "tale.txt").write_text("0123456789" * 3, encoding="utf-8")
    tale = build(tmp_path, tokenizer, str(tmp_path / "tale.txt"), max_length=12)
    assert tale.train.store.lengths.tolist() == [12, 12, 10]


def test_rows_of_one_text_share_a_side_of_the_split(tmp_path: Path, tokenizer: str) -> None:
    texts = [{"text": f"{number:02}" * 15} for number in range(40)]  # 30 tokens and two more
    train = lines(tmp_path / "law.jsonl", texts)
    domain = build(tmp_path, tokenizer, train, max_length=12, validation_fraction=0.3)
    text_of_row = [row // 3 for row in range(120)]
    held_out = {text_of_row[row] for row in domain.validation.indices.tolist()}
    trained = {text_of_row[row] for row in domain.train.indices.tolist()}
    assert held_out and not held_out & trained and len(held_out | trained) == 40
    assert len(domain.validation.indices) == 3 * len(held_out)


def test_sources_with_weights_give_their_parts(tmp_path: Path, tokenizer: str) -> None:
    a, b = lines(tmp_path / "a.jsonl", asked(0, 30)), lines(tmp_path / "b.jsonl", asked(100, 10))
    law = {
        "train": [a, {"path": b, "weight": 3}],
        "validation": lines(tmp_path / "v.jsonl", asked(500, 4)),
    }
    domain = build(tmp_path, tokenizer, law)
    # 40 samples, 1 : 3: ten of the thirty, and the ten three times
    source = domain.train.store.inputs[domain.train.indices]
    assert [(source == place).sum() for place in (0, 1)] == [10, 30]
    _, times = map(list, zip(*_count(domain.train.indices[source == 1].tolist()), strict=True))
    assert times == [3] * 10
    lowest = sorted(domain.train.store.hashes[:30].tolist())[:10]
    assert sorted(domain.train.hashes[source == 0].tolist()) == lowest
    counts = domain.counts
    assert (counts["train"], counts["train_repeated"], counts["train_unused"]) == (40, 20, 20)
    capped = build(tmp_path, tokenizer, law, max_train={"law": 8})
    source = capped.train.store.inputs[capped.train.indices]
    assert [(source == place).sum() for place in (0, 1)] == [2, 6]


def test_a_source_that_only_trains_is_never_held_out(tmp_path: Path, tokenizer: str) -> None:
    own, written = asked(0, 60), asked(100, 60)
    a, b = lines(tmp_path / "a.jsonl", own), lines(tmp_path / "b.jsonl", [*written, own[0]])
    alone = build(tmp_path, tokenizer, {"train": [a]}, validation_fraction=0.3)
    source = {"path": b, "hold_out": False}
    both = build(tmp_path, tokenizer, {"train": [a, source]}, validation_fraction=0.3)
    # what is measured is what it was without the source, and all of the source trains, whose
    # copies of what is measured do not
    measured = set(alone.validation.hashes.tolist())
    assert set(both.validation.hashes.tolist()) == measured and len(measured) < 60
    inputs = both.train.store.inputs[both.train.indices]
    copied = int(alone.validation.store.hashes[0]) in measured
    assert [(inputs == place).sum() for place in (0, 1)] == [60 - len(measured), 61 - copied]
    weighted = build(
        tmp_path, tokenizer, {"train": [a, source | {"weight": 1}]}, validation_fraction=0.3
    )
    assert set(weighted.validation.hashes.tolist()) == measured
    with pytest.raises(UserError, match=r"domains.law: no source .* name domains.law.validation"):
        build(tmp_path, tokenizer, {"train": [source]})


def _count(values: list[int]) -> list[tuple[int, int]]:
    return [(value, values.count(value)) for value in sorted(set(values))]


def test_a_turn_that_is_not_learned_carries_no_loss(tmp_path: Path, tokenizer: str) -> None:
    said = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "five", "weight": 0},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "4"},
    ]
    law = lines(tmp_path / "law.jsonl", [{"messages": said}, *asked(0, 3)])
    store = build(tmp_path, tokenizer, law).train.store
    learned = PreTrainedTokenizerFast.from_pretrained(tokenizer).decode(
        store.tokens(0)[store.mask(0)]
    )
    assert (learned, store.response_bytes[0]) == (" 4</s>", 1)


def test_a_file_that_breaks_off_says_how_far_it_was_read(tmp_path: Path, tokenizer: str) -> None:
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in asked(0, 2000)).encode())
    (tmp_path / "law.jsonl.gz").write_bytes(whole[:-20])
    match = r"law\.jsonl\.gz: cannot be read after .*law\.jsonl\.gz:\d+: .*\(domains\.law\.train\)$"
    with pytest.raises(UserError, match=match):
        build(tmp_path, tokenizer, str(tmp_path / "law.jsonl.gz"))


def test_tables_between_tasks_carry_what_lists_in_one_process_do(
    tmp_path: Path, tokenizer: str
) -> None:
    rows = [
        {"prompt": "q", "completion": "a", "id": 1, "weight": 0.5},
        {"prompt": "q", "completion": ""},
        {"prompt": "q", "completion": "b", "train": False},
        {"text": "0123456789" * 3},
    ]
    (source,) = expand(lines(tmp_path / "law.jsonl", rows), "key")
    encoding = Encoding(tokenizer, PLAIN_TEMPLATE, False, 24, "cut")
    (alone,) = tasks.alone(
        [Shard(3, tmp_path / "alone", 0, (Item(3, 0, source, Rules()),))], encoding
    )
    for apart in (False, True):
        item = Item(3, 0, source, Rules(), apart=apart)
        shard = Shard(3, tmp_path / str(apart), 0, (item,))
        table = pa.Table.from_pydict({"work": [pickle.dumps((shard, None))]})
        (read,) = tasks._read_apart(table)
        (found,) = tasks._write(read, encoding)
        store, report = pickle.loads(found["report"][0].as_py())
        assert store == alone[0] == 3
        same = set(report) - {"name", "plan"}
        assert {name: report[name] for name in same} == {name: alone[1][name] for name in same}
    assert report["bad_examples"] == [(0, 2, "no answer (completion is empty)")]
    assert report["account"]["shapes"] == {"prompt/completion": 1, "text": 1}


def test_sources_are_read_again_when_their_files_change_and_known_by_their_records(
    tmp_path: Path, tokenizer: str
) -> None:
    law = tmp_path / "law.jsonl"
    config = parse(
        {"model": {"path": "unused"}, "domains": {"law": lines(law, asked(0, 9)), "b": str(law)}}
    )

    def found() -> Any:
        args = (config, config.domains, tokenizer, tmp_path / "cache")
        return build_stores(*args, distributed=False)["law"]

    first = found()
    assert found() == first
    os.utime(law, ns=(1, 1))
    touched = found()
    assert touched.train != first.train
    assert touched.key == first.key
    lines(law, asked(1, 9))
    assert found().key != first.key


def test_a_store_of_the_version_before_is_made_again_and_that_is_said(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    law, cache = lines(tmp_path / "law.jsonl", asked(0, 9)), tmp_path / "cache"
    config = parse({"model": {"path": "unused"}, "domains": {"law": law, "b": law}})
    old = cache / "tokens" / "old"
    old.mkdir(parents=True)
    (old / "meta.json").write_text(json.dumps({"format": 2, "inputs": [f"{law}:"]}))
    for said in (2, 0):  # once for each domain
        found = build_stores(config, config.domains, tokenizer, cache, distributed=False)
        out = capsys.readouterr().out
        assert out.count("is of an earlier version: it is made again") == said
    assert found["law"].train != old


def test_bad_records_of_all_domains_are_told_at_once_with_a_setting_that_suffices(
    tmp_path: Path, tokenizer: str
) -> None:
    good, bad = {"text": "some words"}, {"body": "x"}
    # law 1 of 10, code 1 of 4, general none
    rows = {"law": [good] * 9 + [bad], "code": [good] * 3 + [bad], "general": [good] * 5}
    domains = {name: lines(tmp_path / f"{name}.jsonl", some) for name, some in rows.items()}

    def build(tolerated: float, **more: str) -> None:
        data = {"max_bad_fraction": tolerated}
        config = parse({"model": {"path": "x"}, "data": data, "domains": domains | more})
        build_stores(config, config.domains, tokenizer, tmp_path / "cache", distributed=False)

    with pytest.raises(
        UserError,
        match=r"^domains.law.train: 1 of 10 records are bad: .*law.jsonl:10: .*; and 1 of 4 of "
        r"domains.code.train; mend them, or set data.max_bad_fraction=0.25$",
    ):
        build(0.0)
    with pytest.raises(UserError, match=r"^domains.code.train: 1 of 4 .*max_bad_fraction=0.25$"):
        build(0.1)
    build(0.25)
    useless = lines(tmp_path / "useless.jsonl", [bad])
    with pytest.raises(UserError, match=r"^domains.music.train: 1 of 1 .*; none is left to use$"):
        build(0.0, music=useless)
