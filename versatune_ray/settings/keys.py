"""The tree of keys: every one with what it is declared with, the text of ``--keys``, and values as
their keys declare them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from versatune_ray.errors import UserError
from versatune_ray.settings import Config, Domain
from versatune_ray.settings.common import OneOf, Section, kinds, nearest
from versatune_ray.settings.yaml12 import Number


def keys(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key with its declaration; NAME stands for what a person calls one of several."""
    for name, field in section.model_fields.items():
        inner, item = section_of(field.annotation), item_of(field.annotation)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field
            if (below := section_of(item)) is not None:
                yield from keys(below, f"{prefix}{name}.NAME.")


def sections(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """Every key that holds others."""
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            yield f"{prefix}{name}"
            yield from sections(inner, f"{prefix}{name}.")


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """All keys and sections, those first that people set most."""
    first = ("training", "mixture", "data")
    listed = [name for name, _ in keys()] + list(sections())
    return tuple(sorted(listed, key=lambda name: name.partition(".")[0] not in first))


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a value of ``annotation`` is, if it is one."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    is_one = isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation if is_one else None


def item_of(annotation: Any) -> Any:
    """What the values of a mapping or a list of ``annotation`` are; Any where that is not said."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return item_of(args[0])
    if origin in (dict, list):
        return args[-1]
    found = [item_of(arg) for arg in args if arg is not type(None)] if args else []
    return next((item for item in found if item is not Any), Any)


class Flags(NamedTuple):
    """Of a key: whether it may change on resume, and whether results depend on it."""

    resumable: bool
    results: bool


def is_declared(field: FieldInfo, what: str) -> bool:
    """Whether ``setting`` was told so of a key."""
    return what in cast(dict[str, Any], field.json_schema_extra or {})


def flags(key: str) -> Flags:
    """What is declared of a dotted key, or of the section that it is in."""
    annotation: Any = Config
    resumable, results = False, True
    for part in key.split("."):
        section = section_of(annotation)
        if section is None:
            annotation = item_of(annotation)
        elif part in section.model_fields:
            field = section.model_fields[part]
            resumable = resumable or is_declared(field, "resumable")
            results = results and not is_declared(field, "results")
            annotation = field.annotation
        else:
            break
    return Flags(resumable, results)


def without_unknown(
    value: Any, annotation: Any = Config, prefix: str = ""
) -> tuple[Any, list[str]]:
    """What was read, without keys that there are not; and their names."""
    section = section_of(annotation)
    item = Any if section is not None else item_of(annotation)
    gone: list[str] = []

    def below(name: Any, one: Any) -> Any:
        field = section.model_fields.get(name) if section is not None else None
        kept, more = without_unknown(one, field.annotation if field else item, f"{prefix}{name}.")
        gone.extend(more)
        return kept

    if isinstance(value, list):
        return [below(number, one) for number, one in enumerate(value)], gone
    if not isinstance(value, Mapping):
        return value, gone
    known = value.keys() if section is None else section.model_fields.keys()
    found = {name: below(name, one) for name, one in value.items() if name in known}
    return found, gone + [f"{prefix}{name}" for name in value if name not in known]


def as_declared(value: Any, annotation: Any = Config) -> Any:
    """What was read, with every plain number as its key takes it: as a number, or, where the key
    takes a text, as it was written. A section without any key is an empty one, but a domain, which
    is taken away so.
    """
    section = section_of(annotation)
    if isinstance(value, Mapping):
        fields = section.model_fields if section is not None else {}
        item = None if section is not None else item_of(annotation)
        return {
            name: as_declared(one, fields[name].annotation if name in fields else item)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [as_declared(one, item_of(annotation)) for one in value]
    if value is None and section not in (None, Domain):
        return {}
    if not isinstance(value, Number):
        return value
    expected = kinds(annotation)
    if list in expected:
        expected = expected - {list} | kinds(item_of(annotation))
    return value.text if str in expected and not expected & {int, float, Any} else value.number


def topics() -> list[str]:
    """The first parts of keys, in order."""
    return list(dict.fromkeys(key.partition(".")[0] for key, _ in keys()))


def describe(section: str = "") -> str:
    """Every key with type, unit, default and meaning: the text of ``--keys``; or those in or under
    ``section``, such as training or training.lora.

    Raises:
        UserError: no key begins so.
    """
    rows = []
    chosen = [one for one in keys() if not section or f"{one[0]}.".startswith(f"{section}.")]
    if not chosen:
        raise UserError(f"--keys {section}: no such key; {nearest(section, topics())}")
    for key, field in chosen:
        default = (
            "required" if field.is_required() else field.get_default(call_default_factory=True)
        )
        shown = (
            yaml.safe_dump(default, default_flow_style=True, width=1000).split("\n...")[0].strip()
            if default != ""
            else '""'
        )
        extra = cast(dict[str, Any], field.json_schema_extra or {})
        unit = f" [{extra['unit']}]" if "unit" in extra else ""
        names = [one for rule in field.metadata for one in _names(rule)]
        kind = " | ".join(names) if names else _type_name(field.annotation)
        rows.append((f"  {key}", f"{kind}{unit} = {shown}", field.description or ""))
    return "\n".join(f"{key:<38} {kind}\n{'':<38}   {text}" for key, kind, text in rows)


def _names(rule: Any) -> Sequence[str]:
    check = getattr(rule, "func", None)
    return check.names if isinstance(check, OneOf) else ()


def _type_name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin is Annotated:
        names = [one for rule in args[1:] for one in _names(rule)]
        return " | ".join(names) if names else _type_name(args[0])
    if args and origin not in (dict, list):
        return " | ".join("none" if arg is type(None) else _type_name(arg) for arg in args)
    if origin is list:
        return f"{_type_name(args[0])} or list"
    if origin is dict:
        return f"{{name: {_type_name(args[1])}}}"
    name = getattr(annotation, "__name__", str(annotation))
    words = {
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true|false",
        "Any": "any",
    }
    return words.get(name, name.lower())
