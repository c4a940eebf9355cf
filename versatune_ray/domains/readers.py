"""Inputs → located records: one item per record, whether it can be read or not."""

from __future__ import annotations

import csv
import io
import json
import lzma
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import fsspec

from versatune_ray.domains.spec import Input, expand, reason_of
from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch


class Located(NamedTuple):
    """A record and where it stands. Exactly one of ``record`` and ``problem`` is set."""

    number: int
    location: str
    record: dict[str, Any] | None
    problem: str | None


def read_records(source: Input) -> Iterator[Located]:
    """Stream the records of one input, one item per record; empty lines are skipped.

    A record that is broken (bad JSON, invalid UTF-8, no object) comes with ``problem`` instead of
    ``record``.

    Raises:
        UserError: the input as a whole cannot be read, so that the number of lost records is
            unknown.
    """
    if source.format == "hub":
        yield from _read_hub(source)
        return
    reader = {
        "jsonl": _read_lines,
        "json": _read_json,
        "csv": _read_csv,
        "tsv": _read_csv,
        "parquet": _read_parquet,
    }.get(source.format)
    if reader is None:
        raise UserError(f"{source.label}: a text file holds no records")
    try:
        with _open(source) as file:
            yield from reader(file, source)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{source.label}: cannot be read: {reason_of(error)}") from error


def read_texts(specs: Sequence[str], key: str = "base.corpora") -> Iterator[tuple[str, str]]:
    """Yield ``(location, text)``: a ``.txt`` file is one text, a record gives its ``text`` field.

    Raises:
        UserError: with file and line, where a text is missing, empty or broken.
    """
    for source in (source for spec in specs for source in expand(spec, key, texts=True)):
        if source.format == "txt":
            try:
                with _open(source) as file:
                    text = file.read().decode("utf-8-sig")
            except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{source.label}: cannot be read: {reason_of(error)} ({key})"
                ) from error
            if not text.strip():
                raise UserError(f"{source.label}: the file is empty ({key})")
            yield source.label, text
            continue
        for item in read_records(source):
            value = item.record.get("text") if item.record else None
            if not isinstance(value, str) or not value.strip():
                raise UserError(
                    f"{item.location}: {item.problem or 'no `text` field with text in it'} ({key})"
                )
            yield item.location, value


def _open(source: Input) -> Any:
    return fsspec.open(fetch(source.path), "rb", compression="infer")


def _read_hub(source: Input) -> Iterator[Located]:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.path, source.config, split=source.split, revision=source.revision, streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield Located(number, source.location(number), dict(row), None)
    # the hub's errors come from several libraries and share no base class
    except Exception as error:
        raise UserError(
            f"{source.label}: no such file, and as a Hugging Face dataset it cannot be loaded: "
            f"{reason_of(error)}"
        ) from error


def _read_lines(file: IO[bytes], source: Input) -> Iterator[Located]:
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield Located(number, source.location(number), *_parse(line))


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        return None, f"broken JSON: {error.msg} at column {error.colno}"
    # numbers of thousands of digits, thousands of nested lists
    except (ValueError, RecursionError) as error:
        return None, f"broken JSON: {reason_of(error)}"
    return _record(value)


def _record(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    if isinstance(value, dict):
        return value, None
    return None, f"a record must be an object with fields, found {_json_type(value)}"


def _read_json(file: IO[bytes], source: Input) -> Iterator[Located]:
    """A list of records or an object holding one list. One object per line is common under this
    suffix, so it counts too.
    """
    content = file.read().removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\n")
    rows: Any
    first, _ = _parse(lines[0])
    if first is not None and any(line.strip() for line in lines[1:]):
        for number, line in enumerate((line for line in lines if line.strip()), 1):
            yield Located(number, source.location(number), *_parse(line))
        return
    try:
        rows = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        position = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source.label}:{position}: invalid UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{source.label}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source.label}: broken JSON: {reason_of(error)}") from error
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list):
        raise UserError(
            f"{source.label}: expected a list of records, or one object holding a single list of "
            f"them"
        )
    for number, value in enumerate(rows, 1):
        yield Located(number, source.location(number), *_record(value))


def _read_csv(file: IO[bytes], source: Input) -> Iterator[Located]:
    csv.field_size_limit(sys.maxsize)
    # surrogateescape carries invalid bytes up to their record instead of ending the file at the
    # first one.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter="\t" if source.format == "tsv" else ",")
    header: list[str] | None = None
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Located(number, source.location(number), None, f"broken CSV: {error}")
            continue
        if not row:
            continue
        if header is None:
            header = row
            continue
        problem = None
        if len(row) != len(header):
            problem = f"{len(row)} fields where the header has {len(header)}"
        elif not _is_unicode("".join(row)):
            problem = "invalid UTF-8"
        record = None if problem else dict(zip(header, row, strict=True))
        yield Located(number, source.location(number), record, problem)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(file: IO[bytes], source: Input) -> Iterator[Located]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        for batch in ParquetFile(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Located(number, source.location(number), row, None)
    except ArrowException as error:
        raise OSError(reason_of(error)) from error


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
