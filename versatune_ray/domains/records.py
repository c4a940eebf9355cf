"""Records → examples, by rules that a configuration gives (see ``shapes`` for what is read)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from versatune_ray.domains.choices import read_choices
from versatune_ray.domains.example import (
    BadRecord,
    Example,
    LeftOut,
    Message,
    Role,
    content_hash,
)
from versatune_ray.domains.readers import read_records
from versatune_ray.domains.shapes import CHATS, FLAT, recognise
from versatune_ray.domains.spec import expand
from versatune_ray.errors import UserError

__all__ = [
    "BadRecord",
    "Example",
    "LeftOut",
    "Message",
    "Question",
    "Reading",
    "Role",
    "Rules",
    "content_hash",
    "interpret",
    "read_choices",
    "read_questions",
    "to_example",
]

# names of which a record's shape needs one; a mapped one stands for all of its kind
_KINDS = (
    {*CHATS, *FLAT, "text", "read_choices"},
    {name for names in FLAT.values() for name in names},
)


@dataclass(frozen=True)
class Rules:
    """What a configuration says of the records of a domain.

    fields: our name → column (``domains.NAME.fields``). where: column → values, of which a record
    has to have one (``domains.NAME.where``). preference: ``chosen`` where records with ``chosen``
    and ``rejected`` train (``data.preference``).
    """

    fields: dict[str, str] = field(default_factory=dict)
    where: dict[str, list[Any]] = field(default_factory=dict)
    preference: str | None = None


class Reading(NamedTuple):
    """An example, the name of its record's shape, the fields that hold something and were not read,
    all answers that are right where the record names several, and mapped columns that it lacks.
    """

    example: Example
    shape: str
    unused: tuple[str, ...]
    answers: tuple[str, ...]
    missing: tuple[str, ...] = ()


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


def to_example(record: Mapping[str, Any], rules: Rules | None = None) -> Example:
    """Turn one record into an example, whatever its shape.

    Texts keep their own white space; empty system turns are dropped; several turns of one role in a
    row are kept.

    Raises:
        BadRecord: unknown shape, an empty or ill-typed text, an unknown role, or no assistant turn.
        LeftOut: it is not to be learned by its own word or by ``rules.where``.
    """
    return interpret(record, rules).example


def interpret(record: Mapping[str, Any], rules: Rules | None = None) -> Reading:
    """``to_example``, with the name of the shape and the fields that were not read."""
    if rules is None:
        rules = Rules()
    for name, values in rules.where.items():
        if _plain(record.get(name)) not in [_plain(value) for value in values]:
            raise LeftOut(f"another {name} than domains.NAME.where asks for")
    given = record
    dropped: tuple[str, ...] = ()
    if rules.fields:
        record, dropped = _renamed(record, rules.fields)
    missing = tuple(column for column in rules.fields.values() if column not in given)
    example, shape, fields = recognise(record, rules.preference, tuple(rules.where))
    fields.seen.update(rules.where)
    return Reading(example, shape, (*fields.unused, *dropped), tuple(fields.answers), missing)


def _renamed(
    record: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The record under our names, and its own fields that would compete with them. Where it has
    none of the columns, it is left as it is.
    """
    found = {ours: column for ours, column in names.items() if column in record}
    if not found:
        return record, ()
    rest = {name: value for name, value in record.items() if name not in found.values()}
    rivals = set(found).union(*(kind for kind in _KINDS if not kind.isdisjoint(found)))
    dropped = tuple(name for name in rest if name in rivals and rest[name] not in (None, ""))
    kept = {name: value for name, value in rest.items() if name not in rivals}
    return {ours: record[column] for ours, column in found.items()} | kept, dropped


def _plain(value: Any) -> str:
    """A value as one compares it: text files know no numbers and no true or false."""
    if isinstance(value, bool) or (isinstance(value, str) and value in ("True", "False")):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "null" if value is None else str(value)


def read_questions(
    specs: Sequence[str],
    limit: int | None = None,
    key: str = "questions",
    rules: Rules | None = None,
) -> list[Question]:
    """Read the first ``limit`` (default: all) question/answer records of the sources, in order.

    Raises:
        UserError: with file and line, where a record is broken or is no single question with its
            answer; or there is none.
    """
    questions: list[Question] = []
    for source in (source for spec in specs for source in expand(spec, key)):
        for item in read_records(source):
            if len(questions) == limit:
                return questions
            if item.record is None:
                raise UserError(f"{item.location}: {item.problem} ({key})")
            try:
                reading = interpret(item.record, rules)
            except BadRecord as error:
                raise UserError(f"{item.location}: {error} ({key})") from None
            turns = reading.example.messages
            if [turn["role"] for turn in turns] != ["user", "assistant"]:
                raise UserError(
                    f"{item.location}: expected one question and one answer, no further turns "
                    f"({key})"
                )
            answer = turns[1]["content"].strip()
            others = dict.fromkeys(other.strip() for other in reading.answers if other.strip())
            others.pop(answer, None)
            questions.append(Question(turns[0]["content"], answer, tuple(others)))
    if specs and not questions:
        raise UserError(f"{', '.join(specs)}: no question in it ({key})")
    return questions
