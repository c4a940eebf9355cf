"""Inputs → located records: one item per record, whether it can be read or not."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import fsspec

from versatune_ray.domains import delimited, tables
from versatune_ray.domains.spec import Input, expand, reason_of
from versatune_ray.domains.tables import Unreadable
from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch

__all__ = ["Located", "Unreadable", "read_records", "read_texts", "remarks"]

Row = tuple[int, dict[str, Any] | None, str | None]  # number, and a record or a problem
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# what lies under the name of records and holds none: first bytes, what it is, the way out
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer and not the file; run git lfs pull"),
    (b"<!doctype html", "a web page and no data; download the file itself"),
    (b"<html", "a web page and no data; download the file itself"),
    (b"\x1f\x8b", "compressed by gzip; end its name in .gz"),
    (b"BZh", "compressed by bzip2; end its name in .bz2"),
    (b"\xfd7zXZ", "compressed by xz; end its name in .xz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; end its name in .zst"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"PAR1", "a Parquet file; end its name in .parquet"),
)


class Located(NamedTuple):
    """A record and where it stands. Exactly one of ``record`` and ``problem`` is set."""

    number: int
    location: str
    record: dict[str, Any] | None
    problem: str | None


def read_records(source: Input) -> Iterator[Located]:
    """Stream the records of one input, one item per record; empty lines are skipped. A ``.txt``
    file is one record with a ``text``.

    A record that is broken (bad JSON, invalid UTF-8, no object) comes with ``problem`` instead of
    ``record``.

    Raises:
        UserError: the input as a whole cannot be read, so that the number of lost records is
            unknown; with the line or row up to which it could.
    """
    number = 0
    try:
        for number, record, problem in _rows(source):
            yield Located(number, source.location(number), record, problem)
    except UserError:
        raise
    # libraries of four formats and five compressions, whose errors share no base class
    except Exception as error:
        after = f" after {source.location(number)}" if number else ""
        if source.format == "hub":
            raise UserError(
                f"{source.label}: no such file, and as a Hugging Face dataset it cannot be "
                f"loaded{after}: {reason_of(error)}"
            ) from error
        raise UserError(f"{source.label}: cannot be read{after}: {reason_of(error)}") from error


def read_texts(specs: Sequence[str], key: str = "base.corpora") -> Iterator[tuple[str, str]]:
    """Yield ``(location, text)``: a ``.txt`` file is one text, a record gives its ``text`` field.

    Raises:
        UserError: with file and line, where a text is missing, empty or broken.
    """
    for source in (source for spec in specs for source in expand(spec, key, texts=True)):
        try:
            for item in read_records(source):
                value = item.record.get("text") if item.record else None
                if not isinstance(value, str) or not value.strip():
                    problem = item.problem or "no `text` field with text in it"
                    if source.format == "txt":
                        raise UserError(f"{source.label}: the file is empty")
                    raise UserError(f"{item.location}: {problem}")
                yield source.label if source.format == "txt" else item.location, value
        except UserError as error:
            raise UserError(f"{error} ({key})") from error


def remarks(inputs: Sequence[Input]) -> list[str]:
    """What a person should know of how the inputs are read: left-out files, guessed separators."""
    said = [source.note for source in inputs if source.note]
    for source in inputs:
        if source.format in ("csv", "tsv"):
            try:
                with _open(source) as file:
                    remark = delimited.remark(_lines_of_text(file, source), source.format)
            # the reading itself tells what is wrong
            except Exception:
                continue
            said += [f"{source.label}: {remark}"] if remark else []
    return said


def _rows(source: Input) -> Iterator[Row]:
    if source.format == "hub":
        yield from tables.read_hub(source)
        return
    readers: dict[str, Callable[[Any, Input], Iterator[Row]]] = {
        "jsonl": _read_lines,
        "json": _read_json,
        "csv": _read_delimited,
        "tsv": _read_delimited,
        "parquet": tables.read_parquet,
        "arrow": tables.read_arrow,
        "txt": _read_text,
    }
    with _open(source) as file:
        yield from readers[source.format](file, source)


def _open(source: Input) -> Any:
    """The decompressed bytes. A context manager, whose file can seek where it is not compressed.

    Raises:
        UserError: it is another kind of file than its name says.
    """
    path = fetch(source.path)
    with fsspec.open(path, "rb") as file:
        head = file.read(64)
    compressed = path.lower().endswith((".gz", ".bz2", ".xz", ".zst"))
    for start, what in _FOREIGN:
        binary = not start.isascii() or start in (b"BZh", b"PK\x03\x04", b"PAR1")
        if (compressed or source.format in ("parquet", "arrow")) and binary:
            continue
        if head.lstrip().lower().startswith(start.lower()):
            raise UserError(f"{source.label}: this is {what}")
    if path.lower().endswith(".zst"):
        return _zstd(path)
    return fsspec.open(path, "rb", compression="infer")


def _zstd(path: str) -> Any:
    """zstandard reads it, or pyarrow where that is missing."""
    try:
        import zstandard
    except ImportError:
        import pyarrow as pa

        return io.BufferedReader(pa.CompressedInputStream(fsspec.open(path, "rb").open(), "zstd"))
    raw = fsspec.open(path, "rb").open()
    reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
    return io.BufferedReader(reader)


def _decoded(file: IO[bytes], source: Input) -> IO[bytes]:
    """The same in UTF-8 without a byte-order mark; what Windows calls Unicode is UTF-16.

    Raises:
        UserError: it begins like UTF-16 and is none.
    """
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(_Raw(file))
    head = buffered.peek(4)[:4]
    if head.startswith(_UTF_16):
        try:
            return io.BytesIO(buffered.read().decode("utf-16").encode())
        except UnicodeError:
            raise UserError(
                f"{source.label}: begins like UTF-16 and is none; save it as UTF-8"
            ) from None
    if len(head) > 1 and b"\0" in head[:2]:
        raise UserError(f"{source.label}: not UTF-8 (perhaps UTF-16); save it as UTF-8")
    if head.startswith(_BOM):
        buffered.read(3)
    return buffered


class _Raw(io.RawIOBase):
    """Files of fsspec and of compression libraries, as Python's own."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _lines_of_text(file: IO[bytes], source: Input) -> io.TextIOWrapper:
    # surrogateescape carries invalid bytes up to their record instead of ending the file at the
    # first one.
    return io.TextIOWrapper(
        _decoded(file, source), encoding="utf-8", errors="surrogateescape", newline=""
    )


def _read_delimited(file: IO[bytes], source: Input) -> Iterator[Row]:
    yield from delimited.read(_lines_of_text(file, source), source)


def _read_text(file: IO[bytes], source: Input) -> Iterator[Row]:
    try:
        text = _decoded(file, source).read().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source.label}: cannot be read: invalid UTF-8 at byte {error.start + 1}; save it as "
            f"UTF-8"
        ) from None
    yield 1, {"text": text}, None


def _read_lines(file: IO[bytes], source: Input) -> Iterator[Row]:
    lines = iter(enumerate(_decoded(file, source), 1))
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith(b"["):  # perhaps a list under the name of lines
            content = b"\n" * (number - 1) + line + b"".join(rest for _, rest in lines)
            elements = _elements(content)
            if elements is not None:
                yield from ((at, *_record(value)) for at, value in elements)
                return
            for at, each in enumerate(content.split(b"\n"), 1):
                if each.strip():
                    yield at, *_parse(each)
            return
        yield number, *_parse(line)
        break
    for number, line in lines:
        if line.strip():
            yield number, *_parse(line)


def _elements(content: bytes) -> list[tuple[int, Any]] | None:
    """Elements of a JSON list of objects with the lines where they begin; None if it is no such
    list.
    """
    try:
        text = content.decode()
        place, found, line, counted = text.index("[") + 1, [], 1, 0
        while True:
            place = _skip(text, place)
            if text[place] == "]" and not text[place + 1 :].strip():
                return found
            line, counted = line + text.count("\n", counted, place), place
            value, place = _JSON.raw_decode(text, place)
            if not isinstance(value, dict):
                return None
            found.append((line, value))
            place = _skip(text, place)
            if text[place] == ",":
                place += 1
            elif text[place] != "]":
                return None
    except (ValueError, IndexError, RecursionError):
        return None


def _skip(text: str, place: int) -> int:
    while text[place].isspace():
        place += 1
    return place


class _Twice(ValueError):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"the field {twice!r} stands there twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        value = _JSON.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        comma = line.rstrip().endswith(b"},") and error.msg == "Extra data"
        hint = "; lines are not separated by commas" if comma else ""
        return None, f"broken JSON: {error.msg} at column {error.colno}{hint}"
    except _Twice as error:
        return None, str(error)
    # numbers of thousands of digits, thousands of nested lists
    except (ValueError, RecursionError) as error:
        return None, f"broken JSON: {reason_of(error)}"
    return _record(value)


def _record(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    if isinstance(value, dict):
        return value, None
    return None, f"a record must be an object with fields, found {_json_type(value)}"


# an object with one of these is a record, whatever lists it holds
_OF_RECORDS = {
    *("messages", "conversations", "conversation", "instruction", "prompt", "question"),
    *("problem", "query", "text", "chosen"),
}


def _read_json(file: IO[bytes], source: Input) -> Iterator[Row]:
    """A list of records, an object holding one list, or one record. One object per line is common
    under this suffix, so it counts too.
    """
    content = _decoded(file, source).read()
    lines = content.split(b"\n")
    rows: Any
    first, _ = _parse(lines[0])
    if first is not None and any(line.strip() for line in lines[1:]):
        for number, line in enumerate((line for line in lines if line.strip()), 1):
            yield number, *_parse(line)
        return
    try:
        rows = _JSON.decode(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        position = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source.label}:{position}: invalid UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{source.label}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}"
        ) from error
    except _Twice:
        rows = json.loads(content)  # which of them has it is told below
        yield from _with_twice(rows, content)
        return
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source.label}: broken JSON: {reason_of(error)}") from error
    for number, value in enumerate(_list_in(rows, source), 1):
        yield number, *_record(value)


def _list_in(rows: Any, source: Input) -> list[Any]:
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list)]
        if not _OF_RECORDS.isdisjoint(rows) or not lists:
            return [rows]
        rows = lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list):
        raise UserError(
            f"{source.label}: expected a list of records, or one object holding a single list of "
            f"them"
        )
    return rows


def _with_twice(rows: Any, content: bytes) -> Iterator[Row]:
    """Records of a list of which some have a field twice: those are bad, the others are not."""
    text = content.decode()
    if not isinstance(rows, list):
        yield 1, None, "a field stands there twice"
        return
    place = text.index("[") + 1
    for number, _ in enumerate(rows, 1):
        place = _skip(text, place)
        _, end = json.JSONDecoder().raw_decode(text, place)
        yield number, *_parse(text[place:end].encode())
        place = _skip(text, end) + 1


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
