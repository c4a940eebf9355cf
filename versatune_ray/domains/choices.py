"""Questions with choices: which of them the answer means."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, NamedTuple

from versatune_ray.domains.example import BadRecord
from versatune_ray.domains.turns import listed, strict, text, user_text


class Choices(NamedTuple):
    """``question`` as it is read, up to where an answer begins; the answers that are compared; the
    number of the right one; whether they are compared by what a character of theirs is likely.
    """

    question: str
    answers: tuple[str, ...]
    right: int
    per_character: bool = False


def read_choices(fields: Mapping[str, Any], answer: str = "answer") -> tuple[str, list[str], int]:
    """Question, choices and the index of the right one, of a record with ``choices``: a list of
    texts, or ``{text: [...], label: [...]}``.

    The answer is, by the first rule that fits: a label, where there are labels; the text of a
    choice; its letter; a whole number, counted from 0. Numbers with a point and numbers in
    quotation marks are texts and no indices, true and false are neither, and a whole number that
    spells another choice than the one it counts to is ambiguous.

    Raises:
        BadRecord: the choices are no texts, or the answer is none of them.
    """
    take = getattr(fields, "take", fields.get)
    given, labels = take("choices"), None
    if isinstance(given, str):
        given = listed(given, "choices", "texts")
    if isinstance(given, Mapping) and isinstance(given.get("text"), list):
        given, labels = given["text"], given.get("label")
    if not isinstance(given, list) or not 0 < len(given) <= len(ascii_uppercase):
        raise BadRecord(f"choices must be a list of 1 to {len(ascii_uppercase)} texts")
    choices = [
        text(choice, f"choice {letter}")
        for letter, choice in zip(ascii_uppercase, given, strict=False)
    ]
    question = user_text(strict(take("question"), "question"), "question")
    if not question.strip():
        raise BadRecord("no question (question is empty)")
    if answer not in fields and "answerKey" in fields:
        answer = "answerKey"
    value = take(answer)
    if isinstance(value, bool):
        raise BadRecord(
            f"{answer} is {str(value).lower()}, which is no index; give the index, the letter or "
            f"the text of the choice"
        )
    labels = [str(label) for label in labels] if isinstance(labels, list) else []
    return question, choices, _index(value, answer, choices, labels)


def _index(value: Any, answer: str, choices: list[str], labels: list[str]) -> int:
    reply = text(value, answer)
    if not reply.strip():
        raise BadRecord(f"no answer ({answer} is empty)")
    if len(labels) == len(choices) and reply.strip() in labels:
        return labels.index(reply.strip())
    spelled = next((known.index(said) for known, said in _spellings(choices, reply)), None)
    if isinstance(value, int):
        if not 0 <= value < len(choices):
            raise BadRecord(
                f"{answer} is {value}, but the choices count from 0 to {len(choices) - 1}"
            )
        if spelled not in (None, value):
            raise BadRecord(
                f"{answer} is {value}: choice {value}, counted from 0, or the choice that is "
                f"written {reply}? give its letter"
            )
        return value
    if spelled is not None:
        return spelled
    letters = ascii_uppercase[: len(choices)]
    if len(reply.strip()) == 1 and reply.strip() in letters:
        return letters.index(reply.strip())
    hint = ""
    if reply.strip().removesuffix(".0").isdecimal():
        hint = f"; {value!r} is no index: an index is a whole number without quotation marks"
    raise BadRecord(
        f"{answer} is none of the choices; give its index, its letter or its text{hint}"
    )


def _spellings(choices: list[str], reply: str) -> list[tuple[list[str], str]]:
    """The spellings under which the reply is found among the choices, the exact one first."""
    outer = [choice.strip() for choice in choices]
    pairs = ((choices, reply), (outer, reply.strip()))
    return [(known, said) for known, said in pairs if said in known]
