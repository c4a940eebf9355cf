"""Turns of a chat, in whichever names they come: roles, contents, calls of tools, reasoning, and
whether they are learned.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from versatune_ray.domains.example import BadRecord, Message, Role
from versatune_ray.domains.tables import Unreadable

_ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(
        ("tool", "function", "observation", "ipython", "tool_response", "function_response"), "tool"
    ),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
_CALLS = ("function_call", "tool_call")  # roles whose content is the call itself
_TEXTS = {"role", "content"}
_FLAGS = ("weight", "train", "loss")
REASONING = ("reasoning_content", "reasoning", "thinking")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_PLACEHOLDER = re.compile(
    r"<image(?:[ _]?\d+)?>|<\|(?:image|audio|video|vision)\w*\|>"
    r"|(?:^|\n)\s*<(?:audio|video|speech)>|<(?:audio|video|speech)>\s*(?:$|\n)"
)


class Turn:
    """One turn that was read: its message, whether it is learned, and fields that nobody read."""

    __slots__ = ("message", "trains", "unused")

    def __init__(self, message: Message, trains: bool, unused: Collection[str]) -> None:
        self.message, self.trains, self.unused = message, trains, unused


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns and no list of texts or of parts of one text."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)
    )


def read_turns(value: Any, name: str) -> list[Turn]:
    """The turns of a list, or of a text that spells one in JSON (or as Python prints it, which is
    what pandas writes into a CSV file). System turns without a content are dropped.

    Raises:
        BadRecord: it is no such list, or a turn is not valid.
    """
    turns = listed(value, name, "turns")
    read = [_turn(turn, f"turn {number}") for number, turn in enumerate(turns, 1)]
    return [turn for turn in read if turn is not None]


def listed(value: Any, name: str, what: str) -> list[Any]:
    """A list, also where a text spells it.

    Raises:
        BadRecord: it is none, or has nothing in it.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                raise BadRecord(f"{name} is text, and no JSON list of {what}") from None
    if isinstance(value, Mapping) and what == "turns":
        value = [value]
    if not isinstance(value, list) or not value:
        raise BadRecord(f"{name} must be a list of {what} with something in it")
    return value


def text(value: Any, name: str) -> str:
    """A field as text: null and NaN are empty, numbers are written out, bytes are UTF-8, lists of
    text parts are joined.

    Raises:
        BadRecord: naming the field, for anything else or for text that is not valid Unicode.
    """
    if isinstance(value, str):
        result = value
    elif value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    elif isinstance(value, list):
        result = "".join(_part(part, name) for part in value)
    elif isinstance(value, bytes):
        try:
            result = value.decode()
        except UnicodeDecodeError:
            raise BadRecord(f"{name} holds invalid UTF-8") from None
    elif isinstance(value, Unreadable):
        raise BadRecord(f"{name} cannot be read: {value.reason}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        result = str(value)
    else:
        raise BadRecord(f"{name} is no text ({type(value).__name__})")
    try:
        result.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{name} holds half a Unicode character (a lone surrogate)") from None
    return result


def strict(value: Any, name: str) -> str:
    """A text; lists only of parts, since one does not know what a list of texts stands for."""
    if isinstance(value, list) and not all(isinstance(part, Mapping) for part in value):
        raise BadRecord(f"{name} is a list of texts; one text is needed")
    return text(value, name)


def user_text(content: str, name: str) -> str:
    """``content``, if it stands for nothing but text.

    Raises:
        BadRecord: it holds the place of an image, a sound or a film.
    """
    if "<" in content and (found := _PLACEHOLDER.search(content)):
        raise BadRecord(f"{name} holds {found[0].strip()}: only text can be trained on")
    return content


def tool_schemas(value: Any) -> list[dict[str, Any]] | None:
    """``tools`` of a record: a list of schemas or JSON text of one; nulls in them count as absent.

    Raises:
        BadRecord: it is neither.
    """
    if not value or (isinstance(value, str) and value.strip() in ("", "[]", "null")):
        return None
    tools = listed(value, "tools", "schemas")
    tools = [_json(tool) for tool in tools]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRecord("tools must be a list of schemas (objects)")
    return [_without_nulls(tool) for tool in tools]


def flag(value: Any) -> bool | None:
    """True or false, also as text; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return value if isinstance(value, bool) else None


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        kind = part.get("type") or "text"
        if kind in ("thinking", "reasoning"):
            return ""  # read apart
        if kind == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        if kind != "text":
            raise BadRecord(f"{name} holds a part of type {kind!r}: only text can be trained on")
    raise BadRecord(f"{name} holds parts that are no text")


def _plain_turn(given: Any, name: str) -> Turn | None:
    """A turn of a known role and a text, which needs no more care; most are."""
    if type(given) is not dict or given.keys() != _TEXTS:
        return None
    said, content = given["role"], given["content"]
    if type(content) is not str or said not in ("user", "assistant") or not content.strip():
        return None
    if said == "user":
        user_text(content, name)
    return Turn(Message(role=said, content=text(content, name)), said == "assistant", ())


def _turn(given: Any, name: str) -> Turn | None:
    if (plain := _plain_turn(given, name)) is not None:
        return plain
    if not isinstance(given, Mapping):
        raise BadRecord(f"{name} is no object with a role and a content")
    fields = {key: value for key, value in given.items() if value is not None}
    said = fields.pop("role", None)
    said = fields.pop("from", None) if said is None else said
    kind = str(said).lower()
    role = _ROLES.get(kind)
    if role is None:
        raise BadRecord(
            f"unknown role {said!r} in {name}; expected system, user, assistant or tool"
        )
    value = fields.pop("content", None)
    value = fields.pop("value", None) if value is None else value
    for medium in MEDIA:
        if fields.get(medium):
            raise BadRecord(f"{name} has {medium}: only text can be trained on")
    if role == "tool" and not isinstance(value, str | list | None):
        value = json.dumps(value, ensure_ascii=False)  # what a tool answers is data
    message = Message(role=role, content=text(value, name))
    trains = _learned(fields, role, name)
    if role == "assistant":
        _calls_and_reasoning(message, fields, value, kind, name)
    else:
        user_text(message["content"], name)
    for key in ("name", "tool_call_id"):
        if isinstance(fields.get(key), str):
            message[key] = fields.pop(key)  # type: ignore[literal-required]
    _not_empty(message, given, name)
    if role == "system" and not message["content"].strip():
        return None
    return Turn(message, trains, [key for key, left in fields.items() if left not in ("", [], {})])


def _not_empty(message: Message, given: Mapping[str, Any], name: str) -> None:
    role = message["role"]
    if message["content"].strip() or role in ("system", "tool") or message.get("tool_calls"):
        return
    if role == "assistant":
        calls = "; its tool_calls hold no call" if "tool_calls" in given else ""
        raise BadRecord(f"no answer ({name} is empty{calls})")
    raise BadRecord(f"{name} ({role}) is empty")


def _learned(fields: dict[str, Any], role: Role, name: str) -> bool:
    """Whether a turn carries loss: only an assistant's can, and ``weight: 0``, ``train: false`` or
    ``loss: false`` keep it as context. The flags of an assistant are taken out of ``fields``.
    """
    if role != "assistant":
        return False
    learned = True
    for key in _FLAGS:
        if key in fields:
            value = fields.pop(key)
            said = flag(value)
            if said is None and value in (0, 1):
                said = bool(value)
            if said is None:
                raise BadRecord(
                    f"{name} has {key} {value!r}: a turn is learned or not (1 or 0, true or false)"
                )
            learned = learned and said
    return learned


def _calls_and_reasoning(
    message: Message, fields: dict[str, Any], value: Any, kind: str, name: str
) -> None:
    for key in REASONING:
        thought = text(fields.pop(key), f"{key} of {name}") if key in fields else ""
        if thought.strip() and "reasoning_content" not in message:
            message["reasoning_content"] = thought
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, Mapping)]
        thought = "".join(
            str(part.get(key) or part.get("text") or "")
            for part in parts
            for key in ("thinking", "reasoning")
            if part.get("type") == key
        )
        if thought.strip():
            message.setdefault("reasoning_content", thought)
    calls: Any = fields.pop("tool_calls", None)
    legacy = fields.pop("function_call", None)
    if legacy and not calls:
        calls = [legacy]
    if kind in _CALLS:  # the call is the content, or a text that stays one
        found = _json(message["content"])
        if isinstance(found, Mapping | list):
            calls, message["content"] = found if isinstance(found, list) else [found], ""
    if calls:
        calls = [calls] if isinstance(calls, Mapping) else listed(calls, "tool_calls", "calls")
        message["tool_calls"] = [_call(call, name) for call in calls]


def _call(given: Any, name: str) -> dict[str, Any]:
    call = _json(given)
    function = _json(call.get("function", call)) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRecord(f"{name} has a tool call without the name of a function")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        # templates write arguments as JSON themselves; a text would be quoted twice
        arguments = _json(arguments) if arguments.strip() else {}
    else:
        arguments = {} if arguments is None else _without_nulls(arguments)
    result: dict[str, Any] = {"type": "function"}
    if isinstance(call.get("id"), str):
        result["id"] = call["id"]
    return result | {"function": {"name": function["name"], "arguments": arguments}}


def _json(value: Any) -> Any:
    """What a text spells in JSON, else the text itself."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _without_nulls(value: Any) -> Any:
    """Tables give every object the fields of all objects, null where one has none."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
