"""Parts and cached files after a kill, a full disk or a cut of power: nothing blocks, nothing is
lost silently.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from versatune_ray.domains.records import Question
from versatune_ray.evaluation import harness, questions
from versatune_ray.runs import cache, parts
from versatune_ray.runs.parts import finished_ids, join_parts, read_parts, read_rows
from versatune_ray.settings import Evaluation


@pytest.mark.parametrize("kept", [0, 4, 40, 10_000])
def test_a_part_that_cannot_be_read_is_set_aside_and_its_rows_are_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: int
) -> None:
    for ids in ([1, 2], [3]):
        parts._write_part(pa.table({"id": ids}), tmp_path)
    part = next(file for file in tmp_path.iterdir() if 3 in _ids(file))
    content = part.read_bytes()
    part.write_bytes(b"\0" * 200 if kept > len(content) else content[:kept])
    assert finished_ids(tmp_path).tolist() == [1, 2]
    line = capsys.readouterr().out
    assert str(part) in line and line.count("\n") == 1 and "made again" in line
    assert not part.exists() and len(list(tmp_path.glob(".unreadable-*"))) == 1
    parts._write_part(pa.table({"id": [3]}), tmp_path)
    assert finished_ids(tmp_path).tolist() == [1, 2, 3]


def _ids(file: Path) -> list[int]:
    return pyarrow.parquet.read_table(file)["id"].to_pylist()  # type: ignore[no-any-return]


def test_a_part_without_ids_is_set_aside(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    assert finished_ids(tmp_path).tolist() == []
    assert not (tmp_path / "x.parquet").exists()


def test_a_part_that_may_not_be_read_stays(tmp_path: Path, monkeypatch: Any) -> None:
    parts._write_part(pa.table({"id": [1]}), tmp_path)

    def refuse(part: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(parts, "_finished", refuse)
    with pytest.raises(PermissionError):
        finished_ids(tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: Any) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("disk"), fsync(descriptor)))
    monkeypatch.setattr(
        Path, "replace", lambda path, target: (order.append("name"), replace(path, target))
    )
    cache.write_json(tmp_path / "x.json", 1)
    parts._write_part(pa.table({"id": [1]}), tmp_path)
    assert order == ["disk", "name", "disk"] * 2


def test_temporary_names_are_of_one_try(tmp_path: Path) -> None:
    names = {cache.temporary_name(tmp_path / "x.parquet").name for _ in range(100)}
    assert len(names) == 100 and all(name.startswith(".") for name in names)
    cache.write_json(tmp_path / "x.json", 1)
    with pytest.raises(TypeError):
        cache.write_json(tmp_path / "x.json", {(1, 2): 3})
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_failed_requests_are_asked_again_and_never_cached_as_answers(
    tmp_path: Path, monkeypatch: Any
) -> None:
    asked: list[list[int]] = []
    failing = {0, 2}

    class Rows(list[dict[str, Any]]):
        def map(self, change: Any) -> Rows:
            return Rows(map(change, self))

    def stage(*_: Any, **__: Any) -> Any:
        def answer(rows: Rows, batches: int) -> Rows:
            asked.append([row["id"] for row in rows])
            return Rows(
                {"id": row["id"], "__inference_error__": "out of memory"}
                if row["id"] in failing
                else {"id": row["id"], "answer": f"a{row['id']}"}
                for row in rows
            )

        return nullcontext(answer)

    def write(rows: Rows, folders: list[Path], schema: Any, written: Any) -> None:
        parts._write_part(pa.Table.from_pylist(rows, pa.schema(list(schema.items()))), folders[0])

    monkeypatch.setattr("ray.data.from_items", lambda rows, **_: Rows(rows))
    monkeypatch.setattr(questions, "vllm_stage", stage)
    monkeypatch.setattr(questions, "write_parts", write)
    monkeypatch.setattr(questions, "load_tokenizer", lambda *_: None)
    monkeypatch.setattr(questions, "encode_prompt", lambda *_: [1])
    monkeypatch.setattr(questions, "end_of_turn", lambda *_: None)
    settings = Evaluation()

    def ask() -> tuple[dict[str, list[str]], list[str], bool]:
        three = {"law": [Question(f"q{i}", f"a{i}") for i in range(3)]}
        return questions.ask(
            "m", "f", three, settings, None, tmp_path, gpu=False, trust_remote_code=False
        )

    assert ask() == ({"law": ["", "a1", ""]}, ["out of memory"] * 2, False)
    failing.discard(0)
    assert ask() == ({"law": ["a0", "a1", ""]}, ["out of memory"], False)
    failing.clear()
    assert ask() == ({"law": ["a0", "a1", "a2"]}, [], False)
    assert ask() == ({"law": ["a0", "a1", "a2"]}, [], True)
    assert asked == [[0, 1, 2], [0, 2], [2]]


ROWS = {"id": pa.int64(), "text": pa.string(), "failed": pa.bool_()}


def _part(folder: Path, *rows: tuple[int, str, bool]) -> None:
    named = [dict(zip(ROWS, row, strict=True)) for row in rows]
    parts._write_part(pa.Table.from_pylist(named, pa.schema(list(ROWS.items()))), folder)


def _content(folder: Path) -> list[tuple[int, str]]:
    rows = read_rows(folder, ROWS, ["id", "text"]).to_pylist()
    return [(row["id"], row["text"]) for row in rows]


def test_parts_become_one_file_that_says_the_same(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(parts, "_GROUP_ROWS", 3)
    _part(tmp_path, (6, "six", False), (5, "", True))
    _part(tmp_path, (1, "one", False), (0, "", True))
    _part(tmp_path, (0, "zero", False), (1, "one", False), (2, "two", False))
    before, finished = _content(tmp_path), finished_ids(tmp_path).tolist()
    assert finished == [0, 1, 2, 6]
    join_parts(tmp_path, ROWS, whole=False)  # they are few
    assert len(list(tmp_path.iterdir())) == 3
    join_parts(tmp_path, ROWS, whole=True)
    (joined,) = tmp_path.iterdir()
    assert _content(tmp_path) == before and finished_ids(tmp_path).tolist() == finished
    with pyarrow.parquet.ParquetFile(joined) as file:
        assert file.metadata.num_rows == 5 and file.num_row_groups == 2
    _part(tmp_path, (5, "five", False), (7, "seven", False))
    join_parts(tmp_path, ROWS, whole=True)
    assert [text for _, text in _content(tmp_path)] == [
        "zero",
        "one",
        "two",
        "five",
        "six",
        "seven",
    ]
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(parts, "_MANY", 1)
    _part(tmp_path, (8, "eight", False))
    join_parts(tmp_path, ROWS, whole=False)
    assert len(list(tmp_path.iterdir())) == 1 and len(_content(tmp_path)) == 7


@pytest.mark.parametrize("at", ["appear", "push", "unlink"])
def test_a_kill_while_parts_become_one_file_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: Any, at: str
) -> None:
    for number in range(4):
        _part(tmp_path, (number, str(number), False))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = _content(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(*((Path, at) if at == "unlink" else (parts, at)), killed)
        join_parts(tmp_path, ROWS, whole=True)
    assert _content(tmp_path) == before and finished_ids(tmp_path).tolist() == [0, 1, 2, 3]
    join_parts(tmp_path, ROWS, whole=True)
    assert _content(tmp_path) == before
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_a_reader_looks_again_when_the_parts_became_one_file_under_it(tmp_path: Path) -> None:
    _part(tmp_path, (0, "zero", False))
    _part(tmp_path, (1, "one", False))
    looks: list[int] = []

    def read(found: Any) -> list[int]:
        looks.append(len(found))
        if len(looks) == 1:  # it has listed two parts, and read one of them
            join_parts(tmp_path, ROWS, whole=True)
            return _ids(found[0]) if found[0].exists() else _ids(found[1])
        return [number for file in found for number in _ids(file)]

    with pytest.raises(FileNotFoundError):
        read_parts(tmp_path / "gone", lambda found: (_ for _ in ()).throw(FileNotFoundError("x")))
    assert sorted(read_parts(tmp_path, read)) == [0, 1] and looks == [2, 1]


def test_an_unreadable_part_does_not_stop_the_others_from_becoming_one(tmp_path: Path) -> None:
    for number in range(3):
        _part(tmp_path, (number, str(number), False))
    next(file for file in tmp_path.iterdir() if 1 in _ids(file)).write_bytes(b"PAR1")
    join_parts(tmp_path, ROWS, whole=True)
    assert finished_ids(tmp_path).tolist() == [0, 2] and len(list(tmp_path.glob("*.parquet"))) == 1


def test_a_disk_too_full_for_a_second_copy_keeps_the_parts(
    tmp_path: Path, monkeypatch: Any
) -> None:
    for number in range(3):
        _part(tmp_path, (number, str(number), False))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parts, "appear", full)
    join_parts(tmp_path, ROWS, whole=True)
    assert len(list(tmp_path.iterdir())) == 3 and len(_content(tmp_path)) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", None])
def test_a_torn_result_of_a_benchmark_is_measured_again(
    tmp_path: Path, content: str | None
) -> None:
    entry = tmp_path / "benchmark-result" / "key"
    entry.mkdir(parents=True)
    if content is not None:
        (entry / "result.json").write_text(content)
    assert harness._kept(entry) is None and not entry.exists()
    row = {"metric": "acc", "unit": "share", "value": 0.5, "standard_error": None, "n": 2}
    cache.write_json(entry / "result.json", row)
    assert harness._kept(entry) == row
