"""Sources: what a spec stands for, and that every broken record is reported where it stands."""

from __future__ import annotations

import gzip
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from versatune_ray.domains import expand, fingerprint, read_records, read_texts
from versatune_ray.domains.spec import Input
from versatune_ray.errors import UserError

KEY = "domains.law.train"
ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "dé"}]


def read(path: Path) -> list[tuple[str, dict | None, str | None]]:
    (source,) = expand(str(path), KEY)
    return [(item.location, item.record, item.problem) for item in read_records(source)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_same_records_come_from_every_format(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    files = {
        write(tmp_path / "a.jsonl", lines(ROWS)): (":1", ":2"),
        write(tmp_path / "b.jsonl.gz", gzip.compress(lines(ROWS).encode())): (":1", ":2"),
        write(tmp_path / "list.json", json.dumps(ROWS)): ("#1", "#2"),
        write(tmp_path / "object.json", json.dumps({"version": 1, "data": ROWS})): ("#1", "#2"),
        write(tmp_path / "really_lines.json", lines(ROWS)): ("#1", "#2"),
        write(tmp_path / "a.csv", "prompt,completion\na,b\nc,dé\n"): (":2", ":3"),
        write(tmp_path / "a.tsv", "prompt\tcompletion\na\tb\nc\tdé\n"): (":2", ":3"),
        tmp_path / "a.parquet": ("#1", "#2"),
    }
    for file, places in files.items():
        expected = [(f"{file}{place}", row, None) for place, row in zip(places, ROWS, strict=True)]
        assert read(file) == expected, file.name


def test_a_broken_line_is_a_problem_with_its_line_and_the_others_are_read(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n[1]\n{"a": "\xff"}\n  \n{"a": 2}'
    file = write(tmp_path / "a.jsonl", content)
    found = read(file)
    assert [location for location, _, _ in found] == [f"{file}:{line}" for line in (1, 3, 4, 5, 7)]
    assert [record for _, record, _ in found] == [{"a": 1}, None, None, None, {"a": 2}]
    problems = [problem for _, _, problem in found]
    assert "broken JSON" in problems[1]
    assert "must be an object" in problems[2]
    assert "a list" in problems[2]
    assert "invalid UTF-8 at byte 8" in problems[3]


def test_a_csv_row_of_another_width_or_encoding_is_a_problem_at_its_first_line(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "a.csv", b'q,a\n"two\nlines",x\nonly\n\n\xff,y\nlast,z\n')
    found = read(file)
    assert [(location.rpartition(":")[2], record) for location, record, _ in found] == [
        ("2", {"q": "two\nlines", "a": "x"}),
        ("4", None),
        ("6", None),
        ("7", {"q": "last", "a": "z"}),
    ]
    assert found[1][2] == "1 fields where the header has 2"
    assert found[2][2] == "invalid UTF-8; save the file as UTF-8"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"a": 1},\n {"a": }]', r"a\.json:2: broken JSON"),
        ("a.json", b'[\n"\xff"]', r"a\.json:2: invalid UTF-8"),
        ("a.json", '{"a": [], "b": []}', "holding a single list"),
        ("a.parquet", "no parquet", r"a\.parquet: cannot be read"),
        (
            "a.jsonl.gz",
            gzip.compress(b"{}\n" * 1000, mtime=0)[:-20],
            r"a\.jsonl\.gz: cannot be read",
        ),
    ],
)
def test_an_input_broken_as_a_whole_is_an_error(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / name, content))


def test_a_folder_stands_for_its_record_files_in_sorted_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jsonl", "a/z.csv", "a/.hidden.jsonl", "_old/c.jsonl", "README.md", "note.txt"):
        write(tmp_path / "data" / name, "")
    assert [(source.label, source.path) for source in expand("data", KEY)] == [
        ("data/a/z.csv", str(tmp_path / "data/a/z.csv")),
        ("data/b.jsonl", str(tmp_path / "data/b.jsonl")),
    ]
    assert [source.label for source in expand("data", KEY, texts=True)] == [
        "data/a/z.csv",
        "data/b.jsonl",
        "data/note.txt",
    ]
    assert [Path(source.path).name for source in expand("data/*.jsonl", KEY)] == ["b.jsonl"]


def test_uris_are_read_through_fsspec() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/law/b.jsonl", lines(ROWS).encode())
    fs.pipe("/law/a.jsonl", lines(ROWS[:1]).encode())
    try:
        inputs = expand("memory://law", KEY)
        assert [source.label for source in inputs] == [
            "memory:///law/a.jsonl",
            "memory:///law/b.jsonl",
        ]
        assert [item.record for source in inputs for item in read_records(source)] == [
            ROWS[0],
            *ROWS,
        ]
        with pytest.raises(
            UserError, match=r"file not found: memory://law/c\.jsonl \(domains\.law\.train\)"
        ):
            expand("memory://law/c.jsonl", KEY)
    finally:
        fs.rm("/law", recursive=True)


@pytest.mark.parametrize(
    "spec", ["law.jsonl", "data/law.parquet", "./law", "/nowhere/law", "*.jsonl"]
)
def test_a_missing_file_is_named_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^file not found: .*\(domains\.law\.train\)$"):
        expand(spec, KEY)


def test_other_specs_that_name_nothing_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nor is it a Hugging Face dataset id"):
        expand("law", KEY)
    with pytest.raises(UserError, match="cannot be opened"):
        expand("nosuch://law/a.jsonl", KEY)
    with pytest.raises(UserError, match="unknown format"):
        expand(str(write(tmp_path / "a.docx", "")), KEY)
    with pytest.raises(UserError, match="no file ending in"):
        expand(str(tmp_path), KEY)


class Hub:
    """Stands in for the hub's client: one known dataset."""

    def dataset_info(self, name: str, timeout: float) -> Hub:
        if name == "org/offline":
            raise ConnectionError("no network")
        self.sha = {"org/law": "c0ffee"}[name]
        return self


def test_a_dataset_id_carries_config_split_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert expand("org/law", KEY) == [Input("org/law", "org/law", "hub", None, "train", "c0ffee")]
    (source,) = expand("org/law:en@test[:10]", KEY)
    assert (source.path, source.config, source.split) == ("org/law", "en", "test[:10]")
    assert expand("org/offline", KEY)[0].revision is None


def test_records_of_a_dataset_come_through_the_datasets_library(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", lines(ROWS))
    source = Input(str(tmp_path), "org/law", "hub")
    assert [(item.location, item.record) for item in read_records(source)] == [
        ("org/law#1", ROWS[0]),
        ("org/law#2", ROWS[1]),
    ]
    with pytest.raises(
        UserError, match="org/law: no such file, and as a Hugging Face dataset it cannot be loaded"
    ):
        list(read_records(Input(str(tmp_path), "org/law", "hub", split="nosuch")))


@pytest.mark.parametrize("by", ["files", "content"])
def test_a_fingerprint_follows_what_is_read_and_in_which_order(tmp_path: Path, by: Any) -> None:
    first = expand(str(write(tmp_path / "a.jsonl", lines(ROWS))), KEY)
    other = expand(str(write(tmp_path / "c.jsonl", lines(ROWS[:1]))), KEY)
    lists = [first, other, first + other, other + first]
    assert len({fingerprint(one, by) for one in lists}) == 4
    assert fingerprint(first, by) == fingerprint(first, by)
    before = fingerprint(first, by)
    write(tmp_path / "a.jsonl", lines(ROWS[::-1]))
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    assert fingerprint(first, by) != before
    hub = [Input("org/law", "org/law", "hub", None, "train", revision) for revision in ("1", "2")]
    assert fingerprint(hub[:1], by) != fingerprint(hub[1:], by)


def test_only_content_is_the_same_in_another_place(tmp_path: Path) -> None:
    first = expand(str(write(tmp_path / "a.jsonl", lines(ROWS))), KEY)
    moved = expand(str(write(tmp_path / "other/b.jsonl", lines(ROWS))), KEY)
    for source in (*first, *moved):
        os.utime(source.path, ns=(1, 1))
    assert fingerprint(first, "content") == fingerprint(moved, "content")
    assert fingerprint(first) != fingerprint(moved)


def test_a_fingerprint_of_files_reads_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = expand(str(write(tmp_path / "a.jsonl", lines(ROWS))), KEY)
    monkeypatch.setattr(import_module("versatune_ray.domains.fingerprint"), "open_file", None)
    assert len(fingerprint(found)) == 64
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be read: "):
        fingerprint(found)


def test_texts_come_from_plain_files_and_text_fields(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "One text.\n\nStill the same.\n")
    write(tmp_path / "b.jsonl", lines([{"text": "Another."}]))
    assert list(read_texts([str(tmp_path)])) == [
        (str(tmp_path / "a.txt"), "One text.\n\nStill the same.\n"),
        (f"{tmp_path / 'b.jsonl'}:1", "Another."),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl:2: no `text` field"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n', r"a\.jsonl:2: broken JSON"),
        ("a.txt", " \n", r"a\.txt: the file is empty"),
        ("a.txt", b"\xff", r"a\.txt: cannot be read"),
    ],
)
def test_a_missing_text_is_an_error_where_it_stands(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        list(read_texts([str(write(tmp_path / name, content))]))
