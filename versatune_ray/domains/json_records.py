"""JSON: objects line by line, a list of them, or one alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from versatune_ray.domains.spec import Input, reason_of
from versatune_ray.errors import UserError

Row = tuple[int, dict[str, Any] | None, str | None]  # number, and a record or a problem


def read_lines(file: IO[bytes], source: Input) -> Iterator[Row]:
    lines = iter(enumerate(file, 1))
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


def read_each(file: IO[bytes]) -> Iterator[Row]:
    """Objects line by line, and nothing else."""
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, *_parse(line)


def _elements(content: bytes) -> list[tuple[int, Any]] | None:
    """Elements of a JSON list of objects with the lines where they begin; None if it is no such
    list.
    """
    try:
        text = content.decode()
        found: list[tuple[int, Any]] = []
        place, line, counted = text.index("[") + 1, 1, 0
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


def read_json(file: IO[bytes], source: Input) -> Iterator[Row]:
    """A list of records, an object holding one list, or one record. One object per line is common
    under this suffix, so it counts too.
    """
    content = file.read()
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
