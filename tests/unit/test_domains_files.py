"""Files as people have them: quotes that never close, other separators and encodings, folders of
the hub, values that nobody can read. Each is read, or named in one line.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from versatune_ray.domains import Input, expand, read_records
from versatune_ray.domains.readers import remarks
from versatune_ray.domains.tables import Unreadable
from versatune_ray.errors import UserError

KEY = "domains.law.train"
ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "dé"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path, key: str = KEY) -> list[tuple[int, Any]]:
    """Line or row, and the record or the problem."""
    return [
        (item.number, item.record or item.problem)
        for source in expand(str(path), key)
        for item in read_records(source)
    ]


def test_a_quote_that_never_closes_costs_the_record_where_it_was_opened(tmp_path: Path) -> None:
    content = (
        'q,a\n1,x\n2,"never closed\n3,"two\nlines"\n4,"say ""hi"""\n"5\n",x\n6,y"z\n7,"open\n8,w\n'
    )
    assert read(write(tmp_path / "a.csv", content)) == [
        (2, {"q": "1", "a": "x"}),
        (3, "quote opened in line 3 is never closed"),
        (4, {"q": "3", "a": "two\nlines"}),
        (6, {"q": "4", "a": 'say "hi"'}),
        (7, {"q": "5\n", "a": "x"}),
        (9, {"q": "6", "a": 'y"z'}),
        (10, "quote opened in line 10 is never closed"),
        (11, {"q": "8", "a": "w"}),
    ]


def test_a_quote_opened_within_a_record_of_several_lines_is_found(tmp_path: Path) -> None:
    found = read(write(tmp_path / "a.csv", 'q,a,b\n"1\n2",x,"open\n3,y,z\n'))
    assert found == [
        (3, "quote opened in line 3 is never closed"),
        (4, {"q": "3", "a": "y", "b": "z"}),
    ]


def test_text_behind_a_closing_quote_is_a_problem_of_its_line(tmp_path: Path) -> None:
    (bad, good) = read(write(tmp_path / "a.csv", 'q,a\n"Hello" she said,x\n1,y\n'))
    assert bad[0] == 2
    assert "text after a closing quotation mark" in bad[1]
    assert good == (3, {"q": "1", "a": "y"})


def test_in_tsv_a_quotation_mark_is_text_unless_the_file_quotes(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.tsv", 'q\ta\n1\t"Hello" she said\n2\t"open\n3\t5" tube\n4\t"all"\n')
    answers = [record["a"] for _, record in read(plain)]
    assert answers == ['"Hello" she said', '"open', '5" tube', '"all"']
    quoting = write(tmp_path / "b.tsv", 'q\ta\n1\t"a\tb"\n2\t"two\nlines"\n3\t"say ""hi"""\n')
    assert [record["a"] for _, record in read(quoting)] == ["a\tb", "two\nlines", 'say "hi"']
    assert "quotation marks around fields" in remarks(expand(str(quoting), KEY))[0]
    assert remarks(expand(str(plain), KEY)) == []


@pytest.mark.parametrize(
    ("name", "separator", "word"),
    [("a.csv", ";", "semicolons"), ("a.csv", "\t", "tabs"), ("a.tsv", ",", "commas")],
)
def test_another_separator_is_used_and_told(
    tmp_path: Path, name: str, separator: str, word: str
) -> None:
    file = write(tmp_path / name, f"prompt{separator}completion\na{separator}b\n")
    assert read(file) == [(2, ROWS[0])]
    assert remarks(expand(str(file), KEY)) == [
        f"{file}: read with {word} between fields, which is what its header has"
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", LINES), ("a.json", json.dumps(ROWS)), ("a.csv", "prompt,completion\na,b\nc,dé\n")],
)
def test_a_byte_order_mark_says_the_encoding(
    tmp_path: Path, name: str, content: str, encoding: str
) -> None:
    found = read(write(tmp_path / name, content.encode(encoding)))
    assert [record for _, record in found] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "Frage,Erklärung\na,b\n".encode("latin-1"), r"a\.csv:1: the header is not UTF-8"),
        ("a.jsonl", LINES.encode("utf-16-le"), r"a\.jsonl: not UTF-8 \(perhaps UTF-16\)"),
        ("a.csv", b"\xff\xfeabc", r"a\.csv: begins like UTF-16 and is none"),
        ("a.csv", 'q,"a\n1,2\n', r"a\.csv:1: quote opened in line 1 is never closed"),
        ("a.csv", "q,a,q\n1,2,3\n", r"a\.csv:1: two columns are named 'q'"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        ("a.parquet", "version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        ("a.jsonl.zst", "version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        ("a.jsonl", "\n<!DOCTYPE html><p>", "a web page"),
        ("a.csv", gzip.compress(b"q,a\n", mtime=0), r"compressed by gzip; end its name in \.gz"),
        ("a.json", '{"train": [], "test": []}', "holding a single list"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_named_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / name, content))


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


@pytest.mark.parametrize(
    ("suffix", "squeeze"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)],
)
def test_all_compressions_are_read_and_what_was_cut_off_is_told(
    tmp_path: Path, suffix: str, squeeze: Callable[[bytes], bytes]
) -> None:
    whole = LINES.encode()
    parts = write(tmp_path / f"a.jsonl.{suffix}", squeeze(whole[:30]) + squeeze(whole[30:]))
    assert [record for _, record in read(parts)] == ROWS
    many = squeeze("".join(json.dumps({"n": n * n}) + "\n" for n in range(20_000)).encode())
    for kept in (len(many) // 2, len(many) - 3):
        for name in (f"cut.jsonl.{suffix}", f"cut.txt.{suffix}"):
            with pytest.raises(UserError, match=f"{name}: cannot be read"):
                read(write(tmp_path / name, many[:kept]))


def test_json_is_read_in_whichever_way_it_is_laid_out(tmp_path: Path) -> None:
    pretty = json.dumps(ROWS, indent=1)
    assert read(write(tmp_path / "a.jsonl", pretty)) == [(2, ROWS[0]), (6, ROWS[1])]
    talk = {"messages": [{"role": "user", "content": "a"}], "tags": ["x"]}
    for one in (talk, ROWS[0] | {"tags": ["x", "y"]}, {"q": "a", "a": "b"}):
        assert read(write(tmp_path / "one.json", json.dumps(one, indent=2))) == [(1, one)]
    ((_, broken),) = read(write(tmp_path / "b.jsonl", '{"a": 1},\n'))
    assert "lines are not separated by commas" in broken


def test_a_field_that_stands_there_twice_makes_a_bad_record(tmp_path: Path) -> None:
    content = '{"a": 1, "b": {"c": 1, "c": 2}}\n{"a": 1}\n'
    twice = "the field 'c' stands there twice"
    assert read(write(tmp_path / "a.jsonl", content)) == [(1, twice), (2, {"a": 1})]
    listed = "[" + ",".join(content.splitlines()) + "]"
    assert read(write(tmp_path / "a.json", listed)) == [(1, twice), (2, {"a": 1})]


def test_values_that_cannot_be_read_harm_only_records_that_need_them(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["a", "c"],
            "when": pa.array([0, 9_000_000_000_000_000_000], pa.timestamp("us")),
            "note": pa.array([b"ok", b"\xff"]).view(pa.string()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (_, first), (_, second) = read(tmp_path / "a.parquet")
    assert (first["prompt"], first["note"], second["prompt"]) == ("a", "ok", "c")
    assert isinstance(second["when"], Unreadable)
    assert second["note"] == Unreadable("invalid UTF-8")


def arrow(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def test_a_folder_of_save_to_disk_is_read_by_its_own_list(tmp_path: Path) -> None:
    for split, rows in (("train", ROWS), ("test", ROWS[:1])):
        folder = tmp_path / "saved" / split
        arrow(folder / "data-0.arrow", rows)
        arrow(folder / "cache-1.arrow", rows)
        state = {"_data_files": [{"filename": "data-0.arrow"}]}
        write(folder / "state.json", json.dumps(state))
        write(folder / "dataset_info.json", "{}")
    assert [record for _, record in read(tmp_path / "saved" / "train")] == ROWS
    write(tmp_path / "saved" / "dataset_dict.json", '{"splits": ["train", "test"]}')
    (source,) = expand(str(tmp_path / "saved"), KEY)
    assert source.path.endswith("saved/train/data-0.arrow")
    assert source.note.endswith("takes its train split and leaves test/data-0.arrow")
    with pa.ipc.new_file(str(tmp_path / "feather.arrow"), pa.schema([("a", pa.int64())])) as writer:
        writer.write_table(pa.table({"a": [1]}))
    assert read(tmp_path / "feather.arrow") == [(1, {"a": 1})]


def test_of_a_clone_of_the_hub_each_key_takes_its_split(tmp_path: Path) -> None:
    for name in (
        "data/train-0.jsonl",
        "data/train-1.jsonl",
        "data/validation-0.jsonl",
        "test.jsonl",
    ):
        write(tmp_path / name, LINES)
    write(tmp_path / "dataset_infos.json", "{}")

    def names(key: str) -> list[str]:
        return [Path(source.path).name for source in expand(str(tmp_path), key)]

    assert names(KEY) == ["train-0.jsonl", "train-1.jsonl"]
    assert names("domains.law.validation") == ["validation-0.jsonl"]
    assert names("domains.law.questions") == ["test.jsonl"]
    note = expand(str(tmp_path), KEY)[0].note
    assert note == (
        f"{tmp_path}: takes its train split and leaves data/validation-0.jsonl, test.jsonl"
    )
    only = write(tmp_path / "other" / "test.jsonl", LINES).parent  # nothing to tell it from
    assert [Path(source.path).name for source in expand(str(only), KEY)] == ["test.jsonl"]


def test_links_are_followed_once_and_those_to_nothing_told(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "part" / "b.jsonl", LINES)
    law = write(tmp_path / "law" / "a.jsonl", LINES).parent
    (law / "part").symlink_to(tmp_path / "disk" / "part")
    (law / "loop").symlink_to(law)
    assert [Path(source.path).name for source in expand(str(law), KEY)] == ["a.jsonl", "b.jsonl"]
    (law / "c.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"c\.jsonl: a link to nothing"):
        expand(str(law), KEY)


def test_text_files_count_where_a_folder_holds_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "books" / "a.txt", "A tale.")
    assert read(tmp_path / "books") == [(1, {"text": "A tale."})]
    write(tmp_path / "books" / "b.jsonl", LINES)
    assert [Path(one.path).name for one in expand(str(tmp_path / "books"), KEY)] == ["b.jsonl"]


class Hub:
    def dataset_info(self, name: str, timeout: float, revision: str = "main") -> Hub:
        self.sha = f"commit of {revision}"
        return self


def test_a_revision_comes_after_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    (source,) = expand("org/law:en@train@refs/pr/1", KEY)
    assert (source.config, source.split, source.revision) == ("en", "train", "commit of refs/pr/1")


def test_a_slice_of_a_split_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "data" / "train.jsonl", LINES)
    source = Input(str(tmp_path / "data"), "org/law", "hub", split="train[:50%]")
    assert [item.record for item in read_records(source)] == ROWS[:1]


def test_what_a_folder_holds_beside_its_records_is_named(tmp_path: Path) -> None:
    names = ("doc.txt", "b.zip", "c.jsonl.lz4", "_d.jsonl", "README.md", ".DS_Store", "_SUCCESS")
    for name in names:
        write(tmp_path / "some" / name, "x")
    write(tmp_path / "some" / "a.jsonl", LINES)
    inputs = expand(str(tmp_path / "some"), KEY)
    assert [Path(one.path).name for one in inputs] == ["a.jsonl"]
    assert remarks(inputs) == [
        f"{tmp_path}/some: leaves _d.jsonl, b.zip, c.jsonl.lz4 and 1 more",
    ]


def test_a_pipe_among_the_files_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", LINES)
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl: a pipe, socket or device and no file"):
        expand(str(tmp_path), KEY)
