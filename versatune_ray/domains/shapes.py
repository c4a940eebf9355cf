"""The shapes that records have, and how each becomes an example.

| shape | fields |
|---|---|
| preference | ``chosen`` and ``rejected``, beside a prompt or turns; only where it is asked for |
| chat | ``messages``, ``conversations`` or ``conversation``: turns of ``role`` and ``content``, or
of ``from`` and ``value``; ``tools`` |
| flat | ``instruction``, ``question``, ``problem``, ``query`` or ``prompt``, and an answer:
``output``, ``response``, ``completion``, ``answer``, ``solution``; ``input`` and ``context`` follow
the question, ``history`` comes before it |
| choices | ``question`` and ``choices``: the answer may be an index, counted from 0 |
| prompt and completion | both lists of turns: only the completion is learned |
| text | ``text``: every token is learned |

The first that fits counts, in this order; fields that are null count as absent. Each may carry
``system`` or ``system_prompt``, ``weight``, ``train``, ``loss`` and ``reasoning``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from versatune_ray.domains.choices import read_choices
from versatune_ray.domains.example import BadRecord, Example, LeftOut, Message
from versatune_ray.domains.turns import (
    MEDIA,
    REASONING,
    Turn,
    flag,
    is_turns,
    listed,
    read_turns,
    strict,
    text,
    tool_schemas,
    user_text,
)

CHATS = ("messages", "conversations", "conversation")
FLAT: dict[str, tuple[str, ...]] = {
    "instruction": ("output", "response", "completion", "answer"),
    "prompt": ("completion", "response", "output", "answer"),
    "question": ("answer", "response", "output", "solution", "answerKey"),
    "problem": ("solution", "answer", "response", "output"),
    "query": ("response", "answer", "output"),
}
_EXPECTED = (
    "instruction/output, prompt/completion, question/answer, messages, conversations or text; "
    "domains.NAME.fields maps other names to these"
)
_VERDICTS = ("label", "kto_tag")
_SIGNS = {*_VERDICTS, *MEDIA}
_MARKS = {"weight", "train", "loss"}


class Fields(dict[str, Any]):
    """The fields of a record that are not null, and which of them were read."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        # a NaN, which tables have for null, differs from itself
        super().__init__(
            {name: value for name, value in record.items() if value is not None and value == value}
        )
        self.seen: set[str] = set()
        self.within: set[str] = set()
        self.answers: list[str] = []

    def take(self, name: str) -> Any:
        """A field's value, None where it has none."""
        self.seen.add(name)
        return self.get(name)

    def text(self, *names: str) -> str:
        """The first of the fields with text in it; the others are not read."""
        for name in names:
            if name in self and (found := text(self.take(name), name)).strip():
                return found
        return ""

    def turns(self, value: Any, name: str) -> list[Turn]:
        turns = read_turns(value, name)
        for turn in turns:
            if turn.unused:
                self.within.update(f"{name}.{field}" for field in turn.unused)
        return turns

    @property
    def unused(self) -> tuple[str, ...]:
        """Fields that hold something and were not read, in order; those of turns as
        ``messages.FIELD``.
        """
        own = [
            name
            for name, value in self.items()
            if name not in self.seen and not (isinstance(value, str | list | dict) and not value)
        ]
        return (*own, *sorted(self.within))


def recognise(
    record: Mapping[str, Any], preference: str | None, given: Sequence[str] = ()
) -> tuple[Example, str, Fields]:
    """An example, its shape and what was read of the record.

    Args:
        preference: ``chosen`` where preference records train on it.
        given: fields that were chosen by their value: a ``label`` among them is no verdict any
            more.

    Raises:
        BadRecord: unknown shape, an empty or ill-typed text, an unknown role, nothing to learn.
        LeftOut: the record says that it is not to be learned.
    """
    fields = Fields(record)
    weight = _weight(fields)
    turns, shape = _turns(fields, record, preference)
    if turns is not None and not _SIGNS.isdisjoint(fields):
        _heed(fields, given)
    if turns is None:
        return Example((), (), weight=weight, text=fields.text("text")), shape, fields
    if not any(turn.message["role"] == "assistant" for turn in turns):
        raise BadRecord("no assistant turn")
    if not any(turn.trains for turn in turns):
        raise LeftOut("none of its turns is to be learned")
    tools = tool_schemas(fields.take("tools"))
    messages = tuple(turn.message for turn in turns)
    return Example(messages, tuple(turn.trains for turn in turns), tools, weight), shape, fields


def _heed(fields: Fields, given: Sequence[str]) -> None:
    """Verdicts on an answer, and what beside the text a question asks of."""
    for name in _VERDICTS:
        if name not in given and (wanted := flag(fields.get(name))) is not None:
            fields.seen.add(name)
            if not wanted:
                raise LeftOut(
                    f"{name} is false: an answer that is not wanted (to train on it, name the "
                    f"values of {name} under domains.NAME.where)"
                )
    for name in MEDIA:
        if fields.get(name):
            raise BadRecord(f"{name}: only text can be trained on")


def _turns(
    fields: Fields, record: Mapping[str, Any], preference: str | None
) -> tuple[list[Turn] | None, str]:
    """Turns and the shape's name; no turns where the record is a text."""
    if isinstance(fields.get("chosen"), str | list | Mapping) or "rejected" in fields:
        return _system(_preferred(fields, preference), fields), "preference (chosen)"
    if "rejected_response" in fields and preference != "chosen":
        raise BadRecord(_preference("rejected_response"))
    for name in CHATS:
        if name in fields:
            fields.seen.add("rejected_response")
            return _system(fields.turns(fields.take(name), name), fields), name
    for prompt, answers in FLAT.items():
        if prompt not in fields:
            continue
        present = [name for name in answers if name in fields] or [
            name for name in answers if name in record
        ]
        if present:
            return _system(_flat(fields, prompt, present[0]), fields), f"{prompt}/{present[0]}"
    if "text" in fields:
        if not fields.text("text").strip():
            raise BadRecord("no text (text is empty)")
        return None, "text"
    known = {*CHATS, *FLAT, "text"}
    for name in record:
        if name in known and name not in fields:
            raise BadRecord(f"{name} is null")
    names = ", ".join(str(name).encode("unicode_escape").decode() for name in record) or "none"
    raise BadRecord(f"unknown shape: fields {names}; expected {_EXPECTED}")


def _system(turns: list[Turn], fields: Fields) -> list[Turn]:
    if turns[:1] and turns[0].message["role"] == "system":
        return turns  # a field that says something else counts as not read
    system = fields.text("system", "system_prompt")
    return [_said("system", system), *turns] if system.strip() else turns


def _said(role: Any, content: str, trains: bool = False) -> Turn:
    return Turn(Message(role=role, content=content), trains, ())


def _weight(fields: Fields) -> float:
    if _MARKS.isdisjoint(fields):
        return 1.0
    for name in ("train", "loss"):
        if (said := flag(fields.get(name))) is not None:
            fields.seen.add(name)
            if not said:
                raise LeftOut(f"{name} is false")
    value = fields.take("weight")
    if value is None or value == "":
        return 1.0
    try:
        weight = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise BadRecord(f"weight is {value!r}; it scales the loss of the record, a number ≥ 0")
    if weight == 0:
        raise LeftOut("weight is 0")
    return weight


def _preference(names: str) -> str:
    return (
        f"preference data ({names}): data.preference=chosen trains on what was chosen and leaves "
        f"the rest"
    )


def _preferred(fields: Fields, preference: str | None) -> list[Turn]:
    if preference != "chosen":
        raise BadRecord(
            _preference(", ".join(name for name in ("chosen", "rejected") if name in fields))
        )
    fields.seen.add("rejected")
    value = fields.take("chosen")
    if value is None:
        raise BadRecord("rejected without chosen: there is nothing to train on")
    if isinstance(value, str):
        answer = [_said("assistant", _answer(value, "chosen"), True)]
    else:
        answer = fields.turns(value, "chosen")
        # a whole conversation, prompt included, differs from the rejected one in its last turn
        if len(answer) > 1 and answer[0].message["role"] != "assistant":
            fields.seen.add("prompt")
            return [_context(turn) for turn in answer[:-1]] + answer[-1:]
    for name in CHATS:
        if name in fields:
            before = fields.turns(fields.take(name), name)
            return [_context(turn) for turn in before] + answer
    for name in FLAT:
        if name in fields:
            return [*_question(fields, name), *answer]
    raise BadRecord("chosen without a prompt that it answers")


def _context(turn: Turn) -> Turn:
    return Turn(turn.message, False, turn.unused)


def _flat(fields: Fields, prompt: str, answer: str) -> list[Turn]:
    if prompt == "question" and "choices" in fields:
        question, choices, right = read_choices(fields, answer)
        lines = [
            f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)
        ]
        question, reply = "\n".join([_with_context(question, fields), *lines]), choices[right]
        return [_said("user", question), _said("assistant", reply, True)]
    before = _question(fields, prompt)
    value = fields.take(answer)
    if is_turns(value):
        return before + fields.turns(value, answer)
    said = _said("assistant", _answer(value, answer), True)
    fields.answers = alternatives(value, answer)
    for name in REASONING:
        if isinstance(fields.get(name), str) and fields[name].strip():
            said.message["reasoning_content"] = text(fields.take(name), name)
            break
    return [*before, said]


def _question(fields: Fields, prompt: str) -> list[Turn]:
    """What comes before the answer: history, question, input and context."""
    value = fields.take(prompt)
    if is_turns(value):
        return [_context(turn) for turn in fields.turns(value, prompt)]
    question = strict(value, prompt)
    if prompt == "prompt":  # often written out with all that belongs to it
        more = [
            part
            for name in ("input", "context")
            if isinstance(fields.get(name), str)
            and (part := text(fields.take(name), name)).strip() not in question
        ]
        question = "\n\n".join(part for part in (question, *more) if part.strip())
    else:
        question = _with_context(question, fields)
    if not question.strip():
        raise BadRecord(f"no question ({prompt} is empty)")
    return [*_history(fields), _said("user", user_text(question, prompt))]


def _with_context(question: str, fields: Fields) -> str:
    parts = [question]
    for name in ("input", "context"):
        value = fields.get(name)
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            parts.append("\n\n".join(text(part, name) for part in fields.take(name)))
        elif not isinstance(value, list | Mapping | None):
            parts.append(text(fields.take(name), name))
    return "\n\n".join(part for part in parts if part.strip())


def _history(fields: Fields) -> list[Turn]:
    value = fields.get("history")
    if not value or (isinstance(value, str) and value.strip() in ("[]", "null")):
        return []
    rounds = listed(fields.take("history"), "history", "rounds")
    if is_turns(rounds):
        return fields.turns(rounds, "history")
    turns = []
    for number, pair in enumerate(rounds, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise BadRecord(f"history: round {number} is no pair of a question and an answer")
        question, answer = (text(said, f"round {number} of history") for said in pair)
        if question.strip():
            turns.append(_said("user", user_text(question, "history")))
        if answer.strip():
            turns.append(_said("assistant", answer, True))
    return turns


def _answer(value: Any, name: str) -> str:
    """The answer that is learned: of several, the first."""
    answers = alternatives(value, name)
    if not answers or not answers[0].strip():
        raise BadRecord(f"no answer ({name} is empty)")
    return answers[0]


def alternatives(value: Any, name: str) -> list[str]:
    """All answers that are right: a list holds several, unless it holds the parts of one."""
    if isinstance(value, list) and not any(isinstance(part, Mapping) for part in value):
        return [text(answer, name) for answer in value]
    return [text(value, name)]
