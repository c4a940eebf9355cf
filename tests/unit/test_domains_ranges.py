"""Ranges of a file hold together what the whole file holds, with the same numbers of lines, however
many they are.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import byte_tokenizer

from versatune_ray.domains import TokenStore, expand, read_records, sample
from versatune_ray.domains import ranges as module
from versatune_ray.domains.delimited import NotByLines
from versatune_ray.domains.labelled import labelled_sources, labelled_texts
from versatune_ray.domains.ranges import in_one_piece, ranges, read_range, step_for
from versatune_ray.domains.sample import some_records
from versatune_ray.domains.spec import Input
from versatune_ray.domains.tokenizing import build_stores
from versatune_ray.settings import Data, Domain
from versatune_ray.settings.loading import parse

JSONL = (
    '{"text": "a"}\n\n  \n{"text": "é ü"}\r\n{"text"\n[1]\n{"text": "' + "x" * 90 + '"}\n'
    '{"text": "\u2028"}\n{"text": "last"}'
).encode()
CSV = b'q,a\r\n1,"x, y"\r\n\r\n2,\xc3\xa9\n3\n4,\xff\n5,z\r6,lone\n7,"a ""b"""\n8,end'
TSV = b'q\ta\n1\t"x\n2\tb"\n3\n\n4\tlast\n'


def source(path: Path, content: bytes) -> Input:
    path.write_bytes(content)
    return expand(str(path), "key")[0]


def whole(one: Input) -> list[Any]:
    return [(item.number, item.record, item.problem) for item in read_records(one)]


def in_ranges(one: Input, step: int) -> list[Any]:
    found, before = [], 0
    for part in ranges(one, Path(one.path).stat().st_size, step):
        found += [
            (item.number + before, item.record, item.problem) for item in read_range(one, part)
        ]
        before += part.lines
    return found


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", JSONL),
        ("a.ndjson", JSONL + b"\n"),
        ("a.jsonl", b"\xef\xbb\xbf" + JSONL),
        ("a.csv", CSV),
        ("a.csv", b"\xef\xbb\xbf" + CSV + b"\n"),
        ("a.csv", CSV.replace(b",", b";")),
        ("a.tsv", TSV),
    ],
)
def test_lines_are_those_of_the_whole_file(tmp_path: Path, name: str, content: bytes) -> None:
    one = source(tmp_path / name, content)
    assert in_one_piece(one) is None
    expected = whole(one)
    assert len(expected) > 3
    for step in (*range(1, min(40, len(content))), len(content) // 2, len(content) - 1):
        assert in_ranges(one, step) == expected, step


def test_rows_of_parquet_are_those_of_the_whole_file(tmp_path: Path) -> None:
    rows = [{"q": f"q{n}", "a": "x" * n} for n in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    (one,) = expand(str(tmp_path / "a.parquet"), "key")
    assert [record for _, record, _ in whole(one)] == rows
    for step in (50, 300, 1000):
        assert in_ranges(one, step) == whole(one)


@pytest.mark.parametrize("broken", ['5,"two\nlines"\n', '5,"never closed\n', '5,"x"y\n'])
def test_fields_with_line_breaks_are_never_taken_for_records(tmp_path: Path, broken: str) -> None:
    rows = [f"{n},{'x' * n}\n" for n in range(30)]
    content = "".join(["q,a\n", *rows[:20], broken, *rows[20:]]).encode()
    one = source(tmp_path / "a.csv", content)
    assert in_one_piece(one) == "has line breaks within fields"  # as far as one looks
    for step in range(20, len(content), 7):
        with pytest.raises(NotByLines):
            in_ranges(one, step)


def test_what_is_read_in_one_piece(tmp_path: Path) -> None:
    text = b'{"text": "x"}\n' * 9
    assert ranges(source(tmp_path / "a.jsonl", text), len(text), len(text)) == []
    for name in ("a.jsonl.gz", "a.json", "a.txt"):
        assert ranges(Input(str(tmp_path / name), name, "jsonl"), 10**9, 100) == []
    assert in_one_piece(source(tmp_path / "a.jsonl", b"\n [" + text)) == "begins like a list"
    assert in_one_piece(source(tmp_path / "a.jsonl", text.decode().encode("utf-16"))) is not None
    assert in_one_piece(source(tmp_path / "a.jsonl", b"\n" * 9)) == "begins with nothing"
    assert (step_for(0), step_for(1 << 40)) == (8 << 20, 1 << 30)
    assert step_for(1 << 45) == 4 << 30


def store(tmp_path: Path, spec: str, cache: str) -> TokenStore:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer")
    data = {"max_bad_fraction": 0.9}
    config = parse({"model": {"path": "x"}, "data": data, "domains": {"law": spec, "b": spec}})
    args = (config, config.domains, tokenizer, tmp_path / cache)
    return TokenStore(build_stores(*args, distributed=False)["law"].train)


def test_a_store_does_not_depend_on_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokenizer").mkdir()
    folder = tmp_path / "law"
    folder.mkdir()
    rows = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(900)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(text[:9000] + "{broken\n" + text[9000:])
    written = io.StringIO()
    writer = csv.DictWriter(written, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows([*rows, {"prompt": "two\nlines", "completion": "far down"}, *rows[:9]])
    (folder / "b.csv").write_text(written.getvalue(), newline="")
    pq.write_table(pa.Table.from_pylist(rows), folder / "c.parquet", row_group_size=50)
    expected = store(tmp_path, str(folder), "one")
    monkeypatch.setattr(module, "STEP", 1000)
    monkeypatch.setattr(module, "_HEAD", 2000)
    capsys.readouterr()
    found = store(tmp_path, str(folder), "many")
    said = capsys.readouterr().out
    assert said.count("b.csv: has line breaks within fields, so it is read in one piece") == 1
    assert len(found.meta["shards"]) > len(expected.meta["shards"]) == 1
    assert found.meta | {"shards": expected.meta["shards"]} == expected.meta
    for n in range(0, len(expected), 37):
        assert found.tokens(n).tolist() == expected.tokens(n).tolist()
        assert found.mask(n).tolist() == expected.mask(n).tolist()
    assert found.meta["bad_examples"][0][1] == expected.meta["bad_examples"][0][1] > 100
    places = range(len(expected))
    assert [found.location(n) for n in places] == [expected.location(n) for n in places]


def test_of_large_sources_some_records_are_read_from_all_over_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"q{n}", "completion": "x" * 50} for n in range(5000)]
    for name, some in (("a", rows[:4000]), ("b", rows[4000:])):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (tmp_path / f"{name}.jsonl").write_text(text)
    inputs = expand(str(tmp_path), "key")
    domain = parse(
        {"model": {"path": "x"}, "domains": dict.fromkeys(("law", "b"), str(tmp_path))}
    ).domains["law"]
    everything = labelled_texts({"law": domain}, Data(), 20)["law"]
    assert [item.record for item in some_records(inputs)] == rows
    monkeypatch.setattr(sample, "_WHOLE", 100)
    monkeypatch.setattr(sample, "_LINES", 2000)
    found = [item.record for item in some_records(inputs)]
    assert sorted(found, key=str) == sorted(rows, key=str)  # each once, if one reads on
    first = [int(row["prompt"][1:]) // 1000 for row in found[:1000] if row]
    assert set(first) == {0, 1, 2, 3, 4}
    assert [item.record for item in some_records(inputs)] == found
    few = labelled_texts({"law": domain}, Data(), 20)["law"]
    assert len(few) == 20
    assert set(few) != set(everything)
    assert few == labelled_texts({"law": domain}, Data(), 20)["law"]
    assert len(labelled_texts({"law": domain}, Data(), 10_000)["law"]) > 150  # a twentieth


def test_a_judge_is_measured_on_no_source_that_only_trains() -> None:
    own = {"path": "own.jsonl"}
    written = {"path": "written.jsonl", "hold_out": False}
    assert labelled_sources(Domain(train=[own, written])) == ("train", ["own.jsonl"])
    assert labelled_sources(Domain(train=[written])) == ("labelled", [])
    both = Domain(train=[own], validation=["held.jsonl"])
    assert labelled_sources(both) == ("validation", ["held.jsonl"])
