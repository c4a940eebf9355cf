"""What a record becomes: turns of a conversation of which some are learned, or a plain text."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

_JSON = json.JSONEncoder(ensure_ascii=False)
_quoted = json.encoder.encode_basestring_ascii
Role = Literal["system", "user", "assistant", "tool"]


class Message(TypedDict, total=False):
    """One turn, as chat templates take it. ``content`` is "" where an assistant only calls a
    tool.
    """

    role: Role
    content: str
    tool_calls: list[dict[str, Any]]
    reasoning_content: str
    name: str
    tool_call_id: str


class BadRecord(Exception):
    """This record cannot be trained on; the message says why and is counted. It never ends a job by
    itself.
    """


class LeftOut(BadRecord):
    """The record itself says that it is not to be trained on: counted apart from the bad ones."""


@dataclass(frozen=True)
class Example:
    """One record, ready for the chat template.

    messages: empty for raw text. trains: one per message, true for assistant turns that carry loss.
    tools: what the template is told of tools, as JSON schemas. weight: what the record's loss
    counts, ≥ 0. text: raw text, of which every token trains.
    """

    messages: tuple[Message, ...]
    trains: tuple[bool, ...]
    tools: list[dict[str, Any]] | None = None
    weight: float = 1.0
    text: str | None = None

    @classmethod
    def chat(cls, messages: Sequence[Message]) -> Example:
        """A conversation of which every assistant turn is learned."""
        return cls(tuple(messages), tuple(turn["role"] == "assistant" for turn in messages))


def content_hash(example: Example) -> int:
    """64-bit BLAKE2b over roles and stripped contents: equal for records that differ only in outer
    white space or shape, or in which turns are learned.
    """
    if example.text is not None:
        said = [_listed(["text", example.text.strip()])]
    else:
        said = [_content(turn) for turn in example.messages]
    if example.tools:
        said.append(json.dumps(example.tools))
    return _hash(said)


def prompt_key(example: Example) -> int:
    """64-bit BLAKE2b of what stands before the first answer that is learned (of a raw text: all of
    it), but for case, white space and the Unicode form: equal for records that ask the same.
    """
    if example.text is not None:
        said = [example.text]
    else:
        first = example.trains.index(True) if True in example.trains else len(example.trains)
        turns = example.messages[:first] or example.messages
        said = [part for turn in turns for part in (turn["role"], turn["content"])]
    return _hash(
        [_quoted(" ".join(unicodedata.normalize("NFKC", part).casefold().split())) for part in said]
    )


def _hash(said: list[str]) -> int:
    """Of a list in JSON, given its elements in JSON."""
    digest = hashlib.blake2b(f"[{', '.join(said)}]".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _content(turn: Message) -> str:
    said: list[Any] = [turn["role"], turn["content"].strip()]
    if len(turn) == 2:
        return _listed(said)
    more = {name: value for name, value in turn.items() if name not in ("role", "content")}
    return json.dumps([*said, more] if more else said)


def _listed(texts: list[str]) -> str:
    """``json.dumps``, which takes several times as long to begin."""
    return f"[{', '.join(map(_quoted, texts))}]"


def printable(text: str) -> str:
    """Text that any file can hold: half characters (lone surrogates) are written as their code."""
    return text.encode("utf-8", "backslashreplace").decode()


def packed(example: Example) -> str:
    """An example as JSON, for tables.

    Raises:
        BadRecord: tools or calls hold what JSON cannot.
    """
    fields = [example.messages, example.trains, example.tools, example.weight, example.text]
    try:
        found = _JSON.encode(fields)
        found.encode()
    except (TypeError, ValueError) as error:  # dates among arguments, half characters in a name
        raise BadRecord(f"tools or calls hold what JSON cannot: {error}") from None
    return found


def unpacked(content: str) -> Example:
    """What ``packed`` made JSON of."""
    messages, trains, tools, weight, text = json.loads(content)
    return Example(tuple(messages), tuple(trains), tools, weight, text)


def tolerating(bad: int, read: int) -> str:
    """The setting with which ``bad`` of ``read`` records are left out instead of stopping a job."""
    return f"data.max_bad_fraction={math.ceil(bad / read * 1000) / 1000:g}"
