"""Record shapes → conversations.

| shape | fields |
|---|---|
| chat | ``messages``: turns of ``role`` and ``content``; or ``conversations``: turns of ``from``
and ``value`` |
| instruction | ``instruction``, optional ``input``, and ``output`` or ``response`` |
| prompt | ``prompt``, and ``completion`` or ``response`` |
| question | ``question``, and ``answer`` or ``response``; with ``choices`` the answer may be an
index, counted from 0 |

The first shape that fits counts, chat before the others; fields that are null count as absent.
Every shape may carry ``system``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal, NamedTuple, TypedDict

from versatune_ray.domains.sources import expand, read_records
from versatune_ray.errors import UserError

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


Conversation = list[Message]


class Question(NamedTuple):
    """A question as it is put to the model (choices appended as lettered lines), the expected
    answer text, and others that are as right.
    """

    question: str
    answer: str
    others: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """All that are accepted."""
        return (self.answer, *self.others)


class BadRecord(Exception):
    """This record cannot be trained on; the message says why and is counted. It never ends a job by
    itself.
    """


_FLAT: dict[str, tuple[str, ...]] = {
    "instruction": ("output", "response"),
    "prompt": ("completion", "response"),
    "question": ("answer", "response"),
}
_EXPECTED = "instruction/output, prompt/completion, question/answer, messages or conversations"
_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
}


def to_conversation(record: Mapping[str, Any]) -> Conversation:
    """Turn one record into its conversation, whatever its shape (see the module's table).

    Texts keep their own white space; empty system turns are dropped; several turns of one role in a
    row are kept.

    Raises:
        BadRecord: unknown shape, an empty or ill-typed text, an unknown role, or no assistant turn.
    """
    fields = {name: value for name, value in record.items() if value is not None}
    for name in ("messages", "conversations"):
        if name in fields:
            return _with_system(_chat(fields[name], name), fields)
    for prompt, answers in _FLAT.items():
        present = [name for name in answers if name in fields] or [
            name for name in answers if name in record
        ]
        if prompt in fields and present:
            return _with_system(_flat(fields, prompt, present[0]), fields)
    names = ", ".join(map(str, record)) or "none"
    raise BadRecord(f"unknown shape: fields {names}; expected {_EXPECTED}")


def content_hash(conversation: Sequence[Message]) -> int:
    """64-bit BLAKE2b over roles and stripped contents: equal for records that differ only in outer
    white space or shape.
    """
    normal = json.dumps([[turn["role"], turn["content"].strip()] for turn in conversation])
    return int.from_bytes(hashlib.blake2b(normal.encode(), digest_size=8).digest(), "big")


def read_questions(
    specs: Sequence[str], limit: int | None = None, key: str = "questions"
) -> list[Question]:
    """Read the first ``limit`` (default: all) question/answer records of the sources, in order.

    Raises:
        UserError: with file and line, where a record is broken or is no single question with its
            answer.
    """
    questions: list[Question] = []
    for source in (source for spec in specs for source in expand(spec, key)):
        for item in read_records(source):
            if len(questions) == limit:
                return questions
            if item.record is None:
                raise UserError(f"{item.location}: {item.problem} ({key})")
            try:
                conversation = to_conversation(item.record)
            except BadRecord as error:
                raise UserError(f"{item.location}: {error} ({key})") from None
            if [turn["role"] for turn in conversation] != ["user", "assistant"]:
                raise UserError(
                    f"{item.location}: expected one question and one answer, no further turns "
                    f"({key})"
                )
            questions.append(
                Question(conversation[0]["content"], conversation[1]["content"].strip())
            )
    return questions


def _flat(fields: Mapping[str, Any], prompt: str, answer: str) -> Conversation:
    if prompt == "question" and "choices" in fields:
        question, reply = _multiple_choice(fields, answer)
    else:
        question, reply = text(fields[prompt], prompt), text(fields.get(answer), answer)
    if prompt == "instruction":
        parts = [question, text(fields.get("input"), "input")]
        question = "\n\n".join(part for part in parts if part.strip())
    if not question.strip():
        raise BadRecord(f"no question ({prompt} is empty)")
    if not reply.strip():
        raise BadRecord(f"no answer ({answer} is empty)")
    return [Message(role="user", content=question), Message(role="assistant", content=reply)]


def chosen(fields: Mapping[str, Any], answer: str = "answer") -> tuple[str, list[str], int]:
    """Question, choices and the index of the right one, of a record with ``choices``.

    Raises:
        BadRecord: the choices are no texts, or the answer is none of them.
    """
    if not isinstance(fields["choices"], list) or not 0 < len(fields["choices"]) <= len(
        ascii_uppercase
    ):
        raise BadRecord(f"choices must be a list of 1 to {len(ascii_uppercase)} texts")
    choices = [
        text(choice, f"choice {letter}")
        for letter, choice in zip(ascii_uppercase, fields["choices"], strict=False)
    ]
    question, given = text(fields.get("question"), "question"), fields.get(answer)
    if not question.strip():
        raise BadRecord("no question (question is empty)")
    if isinstance(given, int):
        if not 0 <= given < len(choices):
            raise BadRecord(
                f"{answer} is {given}, but the choices count from 0 to {len(choices) - 1}"
            )
        return question, choices, given
    reply = text(given, answer)
    if not reply.strip():
        raise BadRecord(f"no answer ({answer} is empty)")
    if reply in choices:
        return question, choices, choices.index(reply)
    letters = ascii_uppercase[: len(choices)]
    if len(reply.strip()) != 1 or reply.strip() not in letters:
        raise BadRecord(f"{answer} is none of the choices; give its index, its letter or its text")
    return question, choices, letters.index(reply.strip())


def _multiple_choice(fields: Mapping[str, Any], answer: str) -> tuple[str, str]:
    question, choices, right = chosen(fields, answer)
    lines = [
        f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)
    ]
    return "\n".join([question, *lines]), choices[right]


def _chat(turns: Any, name: str) -> Conversation:
    if not isinstance(turns, list) or not turns:
        raise BadRecord(f"{name} must be a list of turns with something in it")
    conversation: Conversation = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise BadRecord(f"turn {number} is no object with a role and a content")
        given = turn.get("role", turn.get("from"))
        role = _ROLES.get(str(given).lower())
        if role is None:
            raise BadRecord(
                f"unknown role {given!r} in turn {number}; expected system, user or assistant"
            )
        content = text(turn.get("content", turn.get("value")), f"turn {number}")
        if content.strip():
            conversation.append(Message(role=role, content=content))
        elif role != "system":
            raise BadRecord(
                f"no answer (turn {number} is empty)"
                if role == "assistant"
                else f"turn {number} ({role}) is empty"
            )
    if not any(turn["role"] == "assistant" for turn in conversation):
        raise BadRecord("no assistant turn")
    return conversation


def _with_system(conversation: Conversation, fields: Mapping[str, Any]) -> Conversation:
    system = text(fields.get("system"), "system")
    if not system.strip() or conversation[0]["role"] == "system":
        return conversation
    return [Message(role="system", content=system), *conversation]


def text(value: Any, name: str) -> str:
    """A field as text: null and NaN are empty, numbers are written out, lists of text parts are
    joined.

    Raises:
        BadRecord: naming the field, for anything else or for text that is not valid Unicode.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list):
        parts = [
            part.get("text")
            if isinstance(part, Mapping) and part.get("type", "text") == "text"
            else part
            for part in value
        ]
        if not all(isinstance(part, str) for part in parts):
            raise BadRecord(f"{name} holds parts that are no text")
        value = "".join(map(str, parts))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRecord(f"{name} is no text ({type(value).__name__})")
    result = str(value)
    try:
        result.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{name} holds half a Unicode character (a lone surrogate)") from None
    return result


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
