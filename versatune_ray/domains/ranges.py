"""Large files in ranges of bytes, each read by a task of its own; what is in them does not depend
on how many there are.

Of lines a range has those that begin in it, of a Parquet file the row groups. Lines are counted
from 1 within a range: whoever has all of them in order adds the counts of those before. A CSV range
is only right if no field of the file has a line break in it; where one is met, ``NotByLines`` says
that the file has to be read in one piece.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from versatune_ray.domains import delimited, json_records
from versatune_ray.domains.delimited import NotByLines
from versatune_ray.domains.readers import BOM, UTF_16, Located, as_text, decoded, open_source
from versatune_ray.domains.remote import stamp
from versatune_ray.domains.spec import Input, reason_of
from versatune_ray.domains.tables import ParquetRange
from versatune_ray.errors import UserError

STEP = 8 << 20  # bytes of a range, and of a shard, at least: a few seconds of tokenising
_LARGEST = 4 << 30  # of a shard: what object stores take without trouble, and a task in an hour
_MOST = 1024  # ranges of all inputs of a store together, about, so that all CPUs have work
_HEAD = 256 << 10  # bytes that are looked at before a file is split
_BUFFER = 1 << 20
BREAKS = "has line breaks within fields"
_SPLIT = ("jsonl", "csv", "tsv", "parquet")


@dataclass
class Range:
    """Bytes ``[start, end)`` of a file; ``lines``: how many lines or rows were in it, once read."""

    start: int
    end: int
    lines: int = field(default=0, compare=False)


def size_of(source: Input) -> int | None:
    """Bytes of a file; None where nobody knows. What is wrong with it is told when it is read."""
    if source.format == "hub":
        return None
    try:
        found = stamp(source.path)
    except (OSError, ValueError, ImportError):
        return None
    return found[0] if found else None


def step_for(total: int) -> int:
    """Bytes of a range where all inputs of a store together have ``total``: nothing else decides
    it. From a terabyte on they are between one and four GiB.
    """
    return min(_LARGEST, max(STEP, total // _MOST))


def ranges(source: Input, size: int, step: int) -> list[Range]:
    """The ranges of an input of ``size`` bytes; none where it is to be read in one piece."""
    compressed = PurePosixPath(source.path.partition("?")[0].lower()).suffix
    if source.format not in _SPLIT or size <= step or compressed != f".{_suffix(source)}":
        return []
    return [Range(start, min(start + step, size)) for start in range(0, size, step)]


def in_one_piece(source: Input) -> str | None:
    """Why a file that could be split is not, in words: told by its beginning."""
    if source.format == "parquet":
        return None
    try:
        with open_source(source) as file:
            head = file.read(_HEAD)
    except Exception as error:  # told with its key where it is read
        return reason_of(error)
    if head.startswith(UTF_16) or b"\0" in head[:2]:
        return "is no UTF-8"
    head = head.removeprefix(BOM)
    if not head.strip():
        return "begins with nothing"
    if source.format == "jsonl":
        return "begins like a list" if head.lstrip().startswith(b"[") else None
    text = as_text(io.BytesIO(head[: head.rfind(b"\n") + 1]))
    return BREAKS if delimited.breaks_lines(text, source) else None


def read_range(source: Input, part: Range) -> Iterator[Located]:
    """As ``read_records``, for a range of the input; sets its ``lines`` at the end.

    Raises:
        NotByLines: see above. UserError: as ``read_records``.
    """
    try:
        with open_source(source, seekable=True) as file:
            for number, record, problem in _rows(file, source, part):
                yield Located(number, source.location(number), record, problem)
    except (UserError, NotByLines):
        raise
    except Exception as error:  # as in read_records
        where = f" from byte {part.start} on" if part.start else ""
        raise UserError(f"{source.label}: cannot be read{where}: {reason_of(error)}") from error


def _rows(file: Any, source: Input, part: Range) -> Iterator[json_records.Row]:
    if source.format == "parquet":
        found = ParquetRange(file, source, part.start, part.end)
        part.lines = found.count
        yield from found.rows()
        return
    lines = _lines(file, part)
    if source.format == "jsonl":
        yield from json_records.read_each(lines)
    else:
        with open_source(source) as again:
            head = as_text(decoded(again, source))
            yield from delimited.read_part(head, as_text(lines), source, part)
        return
    part.lines = lines.lines


def _lines(file: Any, part: Range) -> _Lines:
    whole = io.BufferedReader(_Seekable(file), _BUFFER)
    begin, stop = (_line_start(whole, place) for place in (part.start, part.end))
    if part.start == 0:
        whole.seek(0)
        begin = len(BOM) if whole.read(len(BOM)) == BOM else 0
    whole.seek(begin)
    return _Lines(whole, max(0, stop - begin))


def _line_start(file: io.BufferedReader[Any], place: int) -> int:
    """Where the first line begins that does not begin before ``place``."""
    if place == 0:
        return 0
    file.seek(place - 1)
    file.readline()
    return file.tell()


class _Seekable(io.RawIOBase):
    """Files of fsspec, as Python's own."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return int(self._file.seek(place, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Lines(io.BufferedReader):
    """The next ``left`` bytes of a file; ``lines``: of them that were iterated."""

    def __init__(self, file: io.BufferedReader[Any], left: int) -> None:
        super().__init__(_Limited(file, left), _BUFFER)
        self.lines = 0

    def __next__(self) -> bytes:
        line = super().__next__()
        self.lines += 1
        return line


class _Limited(io.RawIOBase):
    def __init__(self, file: io.BufferedReader[Any], left: int) -> None:
        self._file, self._left = file, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


def _suffix(source: Input) -> str:
    """What the name of a file that is not compressed ends in."""
    path = PurePosixPath(source.path.partition("?")[0].lower())
    return "ndjson" if path.suffix == ".ndjson" else source.format
