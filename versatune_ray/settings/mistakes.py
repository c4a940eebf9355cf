"""What is wrong with a configuration, in one line: the key as a person wrote it, the value, and the
way out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from versatune_ray.errors import UserError
from versatune_ray.settings import Config
from versatune_ray.settings.common import nearest
from versatune_ray.settings.domains import Source
from versatune_ray.settings.keys import keys, names

_TYPE = re.compile(
    r"int|float|str|bool|constrained-\w+|function-\w+\[.*\]|(list|dict|literal)\[.*\]|Source",
    re.DOTALL,
)  # pydantic's names of a union's members
_OF_USER = re.compile(r"~[^\s/]+/\S*")
_LONG = 100  # characters of a value that are shown
_LEVELS = 40


def check_values(tree: Any, key: str = "", level: int = 0) -> None:
    """Refuse what no key takes.

    Raises:
        UserError: a number that is none or infinite, a text that cannot be written to a file, a
            path of a user that there is not, a name that is none, or too many levels.
    """
    if level > _LEVELS:
        raise UserError(f"{_printable(key[:_LONG])}…: more than {_LEVELS} levels of keys")
    if isinstance(tree, float) and not math.isfinite(tree):
        raise UserError(f"{_printable(key)}: {tree} is not valid: write a finite number")
    if isinstance(tree, str) and ("\0" in tree or _unwritable(tree)):
        raise UserError(f"{_printable(key)}: {_short(tree)} is not valid: no text in UTF-8")
    if isinstance(tree, str) and _OF_USER.fullmatch(tree):
        try:
            Path(tree).expanduser()
        except RuntimeError:
            user = _short(tree.partition("/")[0][1:])
            raise UserError(f"{_printable(key)}: {_short(tree)}: there is no user {user}") from None
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            whole = f"{key}.{name}" if key else str(name)
            if not isinstance(name, str) or "\0" in name or _unwritable(name):
                raise UserError(f"{_printable(whole)}: {_short(name)} is no name of a key")
            check_values(value, whole, level + 1)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            check_values(value, f"{key}.{number}", level + 1)


def mistakes_of(error: ValidationError) -> str:
    """All mistakes that pydantic found, in one line."""
    return "; ".join(_explain(item) for item in _mistakes(error))


def unknown(key: str) -> str:
    """Of a key that there is not, with the nearest one at any depth."""
    parent, _, last = key.rpartition(".")
    if re.fullmatch(r"domains\..+\.train\.\d+", parent):
        return f"{_printable(key)}: unknown key; {nearest(last, list(Source.model_fields))}"
    near = nearest(key, names())
    if near.startswith("valid: "):
        near = f"valid: {', '.join(Config.model_fields)}"
    return f"{_printable(key)}: unknown key; {near}"


def _mistakes(error: ValidationError) -> list[dict[str, Any]]:
    """Pydantic's errors, with one for a value that is none of several types instead of one per
    type.
    """
    found: dict[str, dict[str, Any]] = {}
    for item in error.errors():
        loc = tuple(
            part for part in item["loc"] if not (isinstance(part, str) and _TYPE.fullmatch(part))
        )
        key = ".".join(map(str, loc))
        if key and key in found and len(loc) < len(item["loc"]):
            found[key]["msg"] += " or " + item["msg"].removeprefix("Input should be ").removeprefix(
                "Value error, "
            )
        else:
            found[key or str(len(found))] = {**item, "loc": loc}
    # of what may be a text or have keys, and has keys, those are what is wrong
    return [
        item
        for key, item in found.items()
        if item["type"] != "string_type" or not any(one.startswith(f"{key}.") for one in found)
    ]


def _explain(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    reason = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        last = str(error["loc"][-1])
        if "." in last and key in names():  # as on a command line
            branch = ": {".join(last.split("."))
            return (
                f"{key}: dots are for the command line; in a file write {branch}: …"
                f"{'}' * last.count('.')}"
            )
        return unknown(key)
    if not key:
        return reason
    if error["type"] == "string_pattern_mismatch":
        reason = "use letters from a to z, digits, _ and -, with a letter or digit first"
    if error["type"] == "missing":
        return f"{_printable(key)}: missing; it has no default"
    if error["type"] == "value_error" and isinstance(error["input"], Mapping):
        inner = re.match(r"[a-z_]\w*(\.\w+)*(?=[:=])", reason)
        return f"{_printable(key)}.{reason}" if inner else f"{_printable(key)}: {reason}"
    if error["type"].startswith(("greater_than", "less_than")):
        reason = _range(key) or reason
    if error["type"] in ("model_type", "dict_type"):
        reason = f"it has keys of its own; write {_printable(key)}.KEY=VALUE"
    if error["input"] is None:
        return f"{_printable(key)}: nothing is given; {reason[0].lower()}{reason[1:]}"
    return (
        f"{_printable(key)}: {_short(error['input'])} is not valid: {reason[0].lower()}{reason[1:]}"
    )


def _range(key: str) -> str | None:
    """The whole valid range of a number, where its own field knows it."""
    field = dict(keys()).get(key)
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bounds = [
        f"{word} {getattr(rule, name):.10g}"
        for rule in (field.metadata if field else ())
        for name, word in words.items()
        if getattr(rule, name, None) is not None
    ]
    return f"it has to be {' and '.join(bounds)}" if bounds else None


def _unwritable(text: str) -> bool:
    """Halves of characters, as of bytes on a command line that are no UTF-8."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _printable(text: str) -> str:
    """A name on one line, whatever is in it."""
    return text if text.isprintable() else repr(text)[1:-1]


def _short(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # a number of thousands of digits
        shown = "this number"
    return shown if len(shown) <= _LONG else f"{shown[:_LONG]}…"
