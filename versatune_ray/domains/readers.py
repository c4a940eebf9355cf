"""Inputs → located records: one item per record, whether it can be read or not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, Any, NamedTuple, cast

from versatune_ray.domains import delimited, json_records, tables
from versatune_ray.domains.remote import locate, open_file
from versatune_ray.domains.spec import Input, expand, reason_of
from versatune_ray.domains.tables import Unreadable
from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch

__all__ = ["Located", "Unreadable", "read_records", "read_texts", "remarks"]

BOM = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
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
                with open_source(source) as file:
                    remark = delimited.remark(as_text(decoded(file, source)), source.format)
            # the reading itself tells what is wrong
            except Exception:
                continue
            said += [f"{source.label}: {remark}"] if remark else []
    return said


def _rows(source: Input) -> Iterator[json_records.Row]:
    if source.format == "hub":
        yield from tables.read_hub(source)
        return
    readers: dict[str, Callable[[Any, Input], Iterator[json_records.Row]]] = {
        "jsonl": json_records.read_lines,
        "json": json_records.read_json,
        "csv": _read_delimited,
        "tsv": _read_delimited,
        "parquet": tables.read_parquet,
        "arrow": tables.read_arrow,
        "txt": _read_text,
    }
    with open_source(source) as file:
        binary = source.format in ("parquet", "arrow")
        yield from readers[source.format](file if binary else decoded(file, source), source)


def open_source(source: Input, seekable: bool = False) -> Any:
    """The decompressed bytes. A context manager, whose file can seek where it is not compressed.

    Raises:
        UserError: it is another kind of file than its name says.
    """
    path = fetch(source.path)
    with open_file(path) as file:
        head = file.read(64)
    compression = _COMPRESSIONS.get(PurePosixPath(locate(path).path.lower()).suffix)
    for start, what in _FOREIGN:
        binary = not start.isascii() or start in (b"BZh", b"PK\x03\x04", b"PAR1")
        if (compression or source.format in ("parquet", "arrow")) and binary:
            continue
        if head.lstrip().lower().startswith(start.lower()):
            raise UserError(f"{source.label}: this is {what}")
    file = open_file(path, seekable=seekable or source.format in ("parquet", "arrow"))
    return compression(file) if compression else file


def _zstd(file: IO[bytes]) -> IO[bytes]:
    import pyarrow as pa

    # the package zstandard ends in silence where a file was cut off
    return io.BufferedReader(cast(io.RawIOBase, pa.input_stream(file, compression="zstd")))


_COMPRESSIONS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}


def decoded(file: IO[bytes], source: Input) -> IO[bytes]:
    """The same in UTF-8 without a byte-order mark; what Windows calls Unicode is UTF-16.

    Raises:
        UserError: it begins like UTF-16 and is none.
    """
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(_Raw(file))
    head = buffered.peek(4)[:4]
    if head.startswith(UTF_16):
        try:
            return io.BytesIO(buffered.read().decode("utf-16").encode())
        except UnicodeError:
            raise UserError(
                f"{source.label}: begins like UTF-16 and is none; save it as UTF-8"
            ) from None
    if len(head) > 1 and b"\0" in head[:2]:
        raise UserError(f"{source.label}: not UTF-8 (perhaps UTF-16); save it as UTF-8")
    if head.startswith(BOM):
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


def as_text(file: IO[bytes]) -> io.TextIOWrapper:
    # surrogateescape carries invalid bytes up to their record instead of ending the file at the
    # first one.
    return io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")


def _read_delimited(file: IO[bytes], source: Input) -> Iterator[json_records.Row]:
    yield from delimited.read(as_text(file), source)


def _read_text(file: IO[bytes], source: Input) -> Iterator[json_records.Row]:
    try:
        text = file.read().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source.label}: cannot be read: invalid UTF-8 at byte {error.start + 1}; save it as "
            f"UTF-8"
        ) from None
    yield 1, {"text": text}, None
