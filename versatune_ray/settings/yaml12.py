"""YAML as its version 1.2 has it, and as people mean it: ``1e-5`` is a number, ``no``, ``on`` and
``1:30`` are texts, every name is a text as it is written, and no name is there twice.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from versatune_ray.errors import UserError

_MOST = 1_000_000  # values of a file; the largest configurations have some thousands
_TAG = "tag:yaml.org,2002:"
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_REAL = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")  # 007 is a name, and no 7


class Number(NamedTuple):
    """A number without quotes, and its text: a key that takes a text has that (a run called
    1e5).
    """

    number: int | float
    text: str


class _Loader(yaml.SafeLoader):
    where = ""  # the file, for errors


def read_yaml(text: str, where: str = "") -> Any:
    """Plain values, and ``Number``.

    Args:
        where: the file, for errors.

    Raises:
        yaml.YAMLError: no YAML. UserError: a name is there twice, with both lines.
    """
    loader = _Loader(text)
    loader.where = where
    try:
        value = loader.get_single_data()
        _whole(value, (), [_MOST])
        return value
    except RecursionError:
        raise yaml.YAMLError("too many levels, or a value that holds itself") from None
    except ValueError as error:  # !!int x
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def no_yaml(error: yaml.YAMLError) -> str:
    """What follows a file's name: the place, what is wrong there, and where that began."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f": no valid YAML: {' '.join(str(error).split())}"
    at, begun = error.problem_mark, error.context_mark
    told = f":{at.line + 1}:{at.column + 1}: no valid YAML: {error.problem}"
    if begun is not None and begun.line != at.line:
        told += f", {error.context} that begins in line {begun.line + 1}"
    return told


def plain(value: Any) -> Any:
    """The same with every ``Number`` as a number."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.number if isinstance(value, Number) else value


def _whole(value: Any, above: tuple[int, ...], left: list[int]) -> None:
    """Raises ``RecursionError`` where a value holds itself, as ``&a [*a]`` does; ``ValueError``
    where names of names stand for more values than are ``left``.
    """
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"its aliases (*name) stand for more than {_MOST:,} values")
    if isinstance(value, dict | list):
        if id(value) in above:
            raise RecursionError
        for one in value.values() if isinstance(value, dict) else value:
            _whole(one, (*above, id(value)), left)


def _mapping(loader: Any, node: Any) -> Any:
    """Names as texts, each once; ``<<`` brings in the names of another mapping."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        name = _name(key)
        if name in lines and name != "<<":
            at, again = lines[name] + 1, key.start_mark.line + 1
            file = f"{loader.where}: " if loader.where else ""
            same = f"lines {at} and {again}" if at != again else f"line {at}"
            raise UserError(f"{file}{name!r} is there twice, in {same}; keep one of them")
        lines[name] = key.start_mark.line
    loader.flatten_mapping(node)
    found: dict[str, Any] = {}
    yield found
    for key, value in node.value:
        found[_name(key)] = loader.construct_object(value)


def _name(key: Any) -> str:
    if not isinstance(key, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(
            None, None, "a name has to be a text", key.start_mark
        )
    return str(key.value)


def _number(loader: Any, node: Any) -> Any:
    text = node.value
    if text[:2] in ("0o", "0x"):
        return Number(int(text, 0), text)
    if _WHOLE.fullmatch(text):
        try:
            return Number(int(text), text)
        except ValueError:  # thousands of digits
            return Number(float("inf"), text)
    return Number(float(re.sub(r"\.(?=inf|nan)", "", text.lower())), text)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("merge", re.compile(r"<<"), "<"),
    ("null", re.compile(r"~|null|Null|NULL|"), ("~", "n", "N", "")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("str", _LEADING_ZERO, "-+0"),
    ("float", re.compile(f"(?:{_WHOLE.pattern}|{_REAL.pattern})$"), "-+.0123456789"),
):
    _anchored = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(_TAG + _tag, _anchored, list(_first))
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(_TAG) in ("null", "bool", "str", "seq")
}
_Loader.add_constructor(_TAG + "map", _mapping)
_Loader.add_constructor(_TAG + "float", _number)
_Loader.add_constructor(_TAG + "int", _number)
