"""CSV and TSV, strictly: a quotation mark that is never closed costs one record and no other."""

from __future__ import annotations

import csv
import io
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

from versatune_ray.domains.spec import Input
from versatune_ray.errors import UserError

Row = tuple[int, dict[str, Any] | None, str | None]
Cells = tuple[int, list[str] | None, str | None]  # line, and cells or a problem
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LONGEST = 16 << 20  # characters within which a quotation mark has to be closed
_LOOK = 1000  # lines after which it is settled whether a TSV file quotes

csv.field_size_limit(sys.maxsize)


def read(text: io.TextIOWrapper, source: Input) -> Iterator[Row]:
    """Records with the line where each begins (or, of a broken one, where its quote was opened).

    The separator is the one that the suffix names, unless the header has none and has another.
    CSV is read strictly; in TSV a quotation mark is text, unless the file is seen to quote (its
    header does, or a cell that needs it).

    Raises:
        UserError: the header is broken, not UTF-8, or names a column twice.
    """
    separator, quotes, lines = _form(text, source.format)
    rows = _quoted(lines, separator) if quotes else _plain(lines, separator)
    yield from _records(rows, _header(rows, source))


def read_part(
    head: io.TextIOWrapper, text: io.TextIOWrapper, source: Input, part: Any
) -> Iterator[Row]:
    """The same of ``text``, some lines of a file of which ``head`` is the beginning; sets
    ``part.lines`` to their number.

    Raises:
        NotByLines: a record takes more than one line, or is broken. UserError: as ``read``.
    """
    separator, quotes, first = _form(head, source.format)
    header = _header(_quoted(first, separator) if quotes else _plain(first, separator), source)
    lines = _Counted(text)
    rows = _quoted(lines, separator, by_lines=True) if quotes else _plain(lines, separator)
    if part.start == 0:
        next(rows, None)
    yield from _records(rows, header)
    part.lines = lines.count


def breaks_lines(text: io.TextIOWrapper, source: Input) -> bool:
    """Whether records of ``text`` take more than one line, or are broken."""
    separator, quotes, lines = _form(text, source.format)
    try:
        for _ in _quoted(lines, separator, by_lines=True) if quotes else ():
            pass
    except NotByLines:
        return True
    return False


class NotByLines(Exception):
    """Records are not lines: no line says whether it begins one."""


class _Counted:
    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self.count = iter(lines), 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.count += 1
        return line


def _records(rows: Iterator[Cells], header: list[str]) -> Iterator[Row]:
    for number, cells, problem in rows:
        if cells is not None and len(cells) != len(header):
            problem = f"{len(cells)} fields where the header has {len(header)}"
        elif cells is not None and not _is_unicode("".join(cells)):
            problem = "invalid UTF-8; save the file as UTF-8"
        if problem or cells is None:
            yield number, None, problem
        else:
            yield number, dict(zip(header, cells, strict=True)), None


def remark(text: io.TextIOWrapper, kind: str) -> str | None:
    """What is guessed of a file, in words."""
    separator, quotes, _ = _form(text, kind)
    said = []
    if separator != _usual(kind):
        said.append(f"read with {_NAMES[separator]} between fields, which is what its header has")
    elif kind == "tsv" and quotes:
        said.append("read with quotation marks around fields, as it uses them")
    return "; ".join(said) or None


def _usual(kind: str) -> Literal[",", "\t"]:
    return "\t" if kind == "tsv" else ","


def _form(text: Iterable[str], kind: str) -> tuple[str, bool, Iterator[str]]:
    """Separator, whether quotation marks quote, and all lines."""
    lines = iter(text)
    head = list(islice(lines, _LOOK if kind == "tsv" else 20))
    first = next((line for line in head if line.strip()), "")
    separator: str = _usual(kind)
    if separator not in first:
        separator = max(_NAMES, key=first.count) if any(map(first.count, _NAMES)) else separator
    quotes = separator == "," or kind == "csv" or _uses_quotes(head, separator)
    return separator, quotes, _chained(head, lines)


def _chained(head: list[str], lines: Iterator[str]) -> Iterator[str]:
    yield from head
    yield from lines


def _uses_quotes(head: list[str], separator: str) -> bool:
    """Whether quoting explains the first lines: all are right with it, and a cell needs it or the
    header has it.
    """
    rows = list(_quoted(iter(head), separator))
    # the last may be cut off by the look
    whole = rows[:-1] if len(head) == _LOOK else rows
    if any(cells is None for _, cells, _ in whole) or len({len(c or ()) for _, c, _ in whole}) > 1:
        return False
    if head and next((line for line in head if line.strip()), "").startswith('"'):
        return True
    needs = any(
        any(mark in cell for mark in (separator, "\n", "\r"))
        for _, cells, _ in whole
        for cell in cells or ()
    )
    doubled = any(
        cell.startswith('"') and cell.endswith('"') and '""' in cell[1:-1]
        for line in head
        for cell in line.rstrip("\r\n").split(separator)
    )
    return needs or doubled


def _plain(lines: Iterator[str], separator: str) -> Iterator[Cells]:
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r\n")
        if line:
            yield number, line.split(separator), None


def _quoted(lines: Iterator[str], separator: str, by_lines: bool = False) -> Iterator[Cells]:
    """Rows in which cells may be quoted. After a broken one, reading goes on in the line after the
    one where its quote was opened.

    Raises:
        NotByLines: with ``by_lines``, if one is broken or takes more than a line.
    """
    waiting: deque[str] = deque()
    number = 1
    while True:
        taken: list[str] = []
        reader = csv.reader(_taking(waiting, lines, taken), delimiter=separator, strict=True)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if by_lines:
                raise NotByLines from None
            ended = "unexpected end" in str(error)
            # else the last line closed it, and before the end of its cell
            opened = _opened(taken if ended else taken[:-1])
            if len(taken) == 1 and not ended:
                problem = f"broken CSV: text after a closing quotation mark ({error})"
            else:
                problem = f"quote opened in line {number + opened} is never closed"
            yield number + opened, None, problem
            waiting.extendleft(reversed(taken[opened + 1 :]))
            number += opened + 1
            continue
        if by_lines and len(taken) > 1:
            raise NotByLines
        if cells:
            yield number, cells, None
        number += len(taken)


def _taking(waiting: deque[str], lines: Iterator[str], taken: list[str]) -> Iterator[str]:
    size = 0
    while size < _LONGEST:
        line = waiting.popleft() if waiting else next(lines, None)
        if line is None:
            return
        taken.append(line)
        size += len(line)
        yield line


def _opened(taken: list[str]) -> int:
    """The line where the quote was opened that is open at the end: each mark opens or closes, a
    doubled one does neither.
    """
    inside, opened = False, 0
    for place, line in enumerate(taken):
        for _ in range(line.replace('""', "").count('"')):
            inside = not inside
            opened = place if inside else opened
    return opened


def _header(rows: Iterator[Cells], source: Input) -> list[str]:
    number, cells, problem = next(rows, (0, [], None))
    if cells is None:
        raise UserError(f"{source.label}:{number}: {problem} (in the header)")
    for name in cells:
        if not _is_unicode(name):
            raise UserError(
                f"{source.label}:{number}: the header is not UTF-8 (perhaps Latin-1 or "
                f"Windows-1252); save the file as UTF-8"
            )
        if cells.count(name) > 1:
            raise UserError(f"{source.label}:{number}: two columns are named {name!r}")
    return cells


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
