"""Marks around the texts of a conversation: where a chat template put each of them.

Marks are noncharacters. A text is marked inside its outer white space, which a template may strip,
and thoughts apart from the answer, which a template may take apart. A ``BREAK`` inside of a special
token that a text spells keeps it the text that it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from versatune_ray.domains.records import BadRecord, Example
from versatune_ray.domains.template import BREAK, CLOSE, OPEN, ChatTemplate

_DIGITS = [chr(code) for code in range(ord(BREAK) + 1, 0xFDF0)]
_MARK = re.compile(f"{OPEN}([{_DIGITS[0]}-{_DIGITS[-1]}]{{3}})|{CLOSE}|{BREAK}")
_THINK = re.compile(r"(\s*</?think>\s*)")
_NAMES = ("type", "id", "role")  # what templates compare and do not only write

TOOLS = -1  # the turn of what is told of tools
ROLES = frozenset({"system", "user", "assistant", "tool"})

# Where in a special token to break it, given its text.
BreakAt = Callable[[str], int]


class Piece(NamedTuple):
    """The text number ``number`` of a turn, and the tags before and after it in its content."""

    turn: int
    number: int
    kind: str
    before: str = ""
    after: str = ""


class Region(NamedTuple):
    """Where a piece is: characters ``[start, end)``."""

    piece: Piece
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """A rendered text, where pieces are in it, in order, and the places of its breaks."""

    text: str
    regions: list[Region]
    breaks: list[int]

    def of(self, turn: int) -> list[Region]:
        return [self.regions[place] for place in self._places.get(turn, ())]

    def around(self, turn: int) -> tuple[int, int]:
        """Where what stands before a turn that is there ends, and where what follows begins."""
        first, last = self._places[turn][0], self._places[turn][-1] + 1
        after = self.regions[last].start if last < len(self.regions) else len(self.text)
        return self.regions[first - 1].end if first else 0, after

    @cached_property
    def _places(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for place, region in enumerate(self.regions):
            found.setdefault(region.piece.turn, []).append(place)
        return found


class Marker:
    """Puts marks around texts and breaks into them; ``pieces``: what was marked, in order."""

    def __init__(self, template: ChatTemplate, break_at: BreakAt) -> None:
        self._template, self._break_at = template, break_at
        self.pieces: list[Piece] = []

    def conversation(
        self, example: Example, roles: Collection[str] = ROLES
    ) -> tuple[list[Mapping[str, Any]], Any]:
        """Its messages and tools; those of other roles as they are."""
        tools = self._tools(example.tools) if "system" in roles else example.tools
        return [
            self._turn(index, turn) if turn["role"] in roles else turn
            for index, turn in enumerate(example.messages)
        ], tools

    def _turn(self, index: int, turn: Mapping[str, Any]) -> dict[str, Any]:
        marked = broken(self._template, turn, self._break_at)
        content = marked.get("content")
        self._number = 0
        if turn["role"] == "assistant" and isinstance(content, str):
            marked["content"] = self._answer(index, content)
        elif content is not None:
            marked["content"] = self._values(content, index, "text")
        if isinstance(marked.get("reasoning_content"), str):
            marked["reasoning_content"] = self._text(
                marked["reasoning_content"], index, "reasoning"
            )
        if marked.get("tool_calls"):
            marked["tool_calls"] = self._values(marked["tool_calls"], index, "tool calls")
        return marked  # type: ignore[no-any-return]

    def _tools(self, tools: Any) -> Any:
        """Their names."""
        self._number = 0
        marked = broken(self._template, tools, self._break_at)
        for tool in marked or ():
            function = tool.get("function", tool)
            if isinstance(function, dict) and isinstance(function.get("name"), str):
                function["name"] = self._text(function["name"], TOOLS, "tools")
        return marked

    def _answer(self, turn: int, content: str) -> str:
        """Thoughts and answer apart."""
        if "think>" not in content:
            return self._text(content, turn, "text")
        parts, thinking = _THINK.split(content), "<think>" not in content
        for place in range(0, len(parts), 2):
            before = parts[place - 1] if place else ""
            after = parts[place + 1] if place + 1 < len(parts) else ""
            thinking = "</" not in before if before else thinking
            kind = "reasoning" if thinking else "text"
            parts[place] = self._text(parts[place], turn, kind, before.lstrip(), after.rstrip())
        return "".join(parts)

    def _values(self, value: Any, turn: int, kind: str) -> Any:
        if isinstance(value, str):
            return self._text(value, turn, kind)
        if isinstance(value, Mapping):
            return {
                name: part if name in _NAMES else self._values(part, turn, kind)
                for name, part in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._values(part, turn, kind) for part in value]
        return value

    def _text(self, text: str, turn: int, kind: str, before: str = "", after: str = "") -> str:
        core = text.strip()
        if not core:
            return text
        place, base = len(self.pieces), len(_DIGITS)
        if place >= base**3:
            raise BadRecord(f"it has more than {base**3} texts")
        self.pieces.append(Piece(turn, self._number, kind, before, after))
        self._number += 1
        name = "".join(_DIGITS[place // base**power % base] for power in (2, 1, 0))
        begin = len(text) - len(text.lstrip())
        return f"{text[:begin]}{OPEN}{name}{core}{CLOSE}{text[begin + len(core) :]}"


def broken(template: ChatTemplate, value: Any, break_at: BreakAt) -> Any:
    """A copy in which no text spells a special token."""

    def cut(found: re.Match[str]) -> str:
        place = break_at(found.group())
        return found.group()[:place] + BREAK + found.group()[place:]

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return template.special.sub(cut, value)
        if isinstance(value, Mapping):
            return {name: walk(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [walk(part) for part in value]
        return value

    return walk(value)


def parsed(marked: str, pieces: Sequence[Piece] = ()) -> Layout | None:
    """The text without its marks, and where they were; None if they do not match."""
    parts: list[str] = []
    regions: list[Region] = []
    breaks: list[int] = []
    length = reached = 0
    opened: tuple[Piece, int] | None = None
    for mark in _MARK.finditer(marked):
        parts.append(marked[reached : mark.start()])
        length, reached = length + len(parts[-1]), mark.end()
        if mark[0] == BREAK:
            breaks.append(length)
        elif (opened is None) == (mark[0] == CLOSE):
            return None
        elif opened is None:
            a, b, c = (_DIGITS.index(digit) for digit in mark[1])
            opened = (pieces[(a * len(_DIGITS) + b) * len(_DIGITS) + c], length)
        else:
            regions.append(Region(*opened, length))
            opened = None
    parts.append(marked[reached:])
    return None if opened else Layout("".join(parts), regions, breaks)


def lay_out(
    template: ChatTemplate, example: Example, text: str, break_at: BreakAt
) -> tuple[Layout | None, list[Piece]]:
    """The layout of ``text`` and what was marked. A template may read a system text, or edit what
    users say, so that marks would change it: those roles then go without.
    """
    for roles in (ROLES, ROLES - {"system"}, {"assistant"}):
        marker = Marker(template, break_at)
        try:
            layout = parsed(template.render(*marker.conversation(example, roles))[0], marker.pieces)
        except BadRecord:
            continue
        if layout is not None and layout.text == text:
            return layout, marker.pieces
    return None, []
