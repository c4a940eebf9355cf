"""What a template writes around plain turns, found once for each sequence of roles.

A conversation that reads as such a skeleton with its contents in it needs no marks (see ``marks``):
it is rendered once, and where its answers are follows from the lengths of what it says.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from versatune_ray.domains.example import Example
from versatune_ray.domains.template import ChatTemplate

_PLAIN = {"role", "content"}
_KNOWN = 4096  # skeletons of a template that are kept

Span = tuple[int, int]
Key = tuple[tuple[str, str, str], ...]


class Skeleton(NamedTuple):
    """between: the n + 1 texts around n contents; learned: of each turn of an assistant how many
    characters before and after its content are learned with it.
    """

    between: tuple[str, ...]
    learned: dict[int, Span]

    def spans(
        self, text: str, contents: Sequence[str], trains: Sequence[bool]
    ) -> list[Span] | None:
        """What is learned of ``text``; None if it is not these contents in this skeleton."""
        pieces = [*chain.from_iterable(zip(self.between, contents, strict=False)), self.between[-1]]
        if "".join(pieces) != text:
            return None
        found, place = [], 0
        for turn, content in enumerate(contents):
            place += len(self.between[turn])
            if trains[turn]:
                before, after = self.learned[turn]
                found.append((place - before, place + len(content) + after))
            place += len(content)
        return found


def plain(template: ChatTemplate, example: Example) -> tuple[Key, list[str]] | None:
    """What a skeleton depends on, roles and outer white space, and the contents without that; None
    of a conversation with more than plain texts in it.
    """
    if example.tools is not None or template.tracks_generation:
        return None
    key, contents = [], []
    for turn in example.messages:
        content = turn.get("content")
        if turn.keys() != _PLAIN or not isinstance(content, str):
            return None
        core = content.strip()
        if not core or "think>" in content or template.spells_special(content):
            return None
        begin = len(content) - len(content.lstrip())
        key.append((turn["role"], content[:begin], content[begin + len(core) :]))
        contents.append(core)
    return tuple(key), contents


def remember(template: ChatTemplate, key: Key, skeleton: Skeleton) -> None:
    if len(template.skeletons) >= _KNOWN:
        template.skeletons.clear()
    template.skeletons[key] = skeleton
