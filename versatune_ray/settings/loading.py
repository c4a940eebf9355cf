"""The configuration tree of ``settings``, read from YAML files and ``dotted.key=value`` overrides.

Later files win over earlier ones, overrides win over files. Relative paths count from the current
folder. Errors name the key, the value, and the nearest valid key.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from versatune_ray.errors import UserError, redacted
from versatune_ray.settings import Config, Detection, Evaluation, Mixture, Section, nearest
from versatune_ray.settings.common import WithPreset
from versatune_ray.settings.location import resolve, shown

_TYPE = re.compile(
    r"int|float|str|bool|constrained-\w+|function-\w+\[.*\]|(list|dict|literal)\[.*\]", re.DOTALL
)  # pydantic's names of a union's members


def load(files: Sequence[str | Path] = (), overrides: Sequence[str] = ()) -> Config:
    """Read YAML ``files`` in order, apply ``overrides`` of the form ``a.b=value`` (value is YAML),
    validate.

    Raises:
        UserError: a file is missing or no YAML mapping, or a key is unknown or ill-typed (the
            nearest valid key is named).
    """
    tree: dict[str, Any] = {}
    for file in files:
        _merge(tree, _with_preset(_read(Path(file))))
    given: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(
                f"{override!r} is no override; write dotted.key=value, for example "
                f"training.epochs=2"
            )
        try:
            value = yaml.safe_load(text) if text else None
        except yaml.YAMLError:
            value = text
        _merge(given, _branch(key, value))
    _merge(tree, _with_preset(given))
    return parse(tree)


def with_keys(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``tree`` with the values of dotted keys."""
    given: dict[str, Any] = {}
    for key, value in changes.items():
        _merge(given, _branch(key, value))
    changed = copy.deepcopy(dict(tree))
    _merge(changed, _with_preset(given))
    return changed


def _branch(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    branch: dict[str, Any] = value
    return branch


def _with_preset(source: dict[str, Any]) -> dict[str, Any]:
    """A preset overrules what earlier sources say, and gives way to what its own source says."""
    sections: dict[str, type[WithPreset]] = {
        "detection": Detection,
        "evaluation": Evaluation,
        "mixture": Mixture,
    }
    return source | {
        name: section.with_preset(source[name])
        for name, section in sections.items()
        if name in source
    }


def parse(tree: Mapping[str, Any]) -> Config:
    """Validate a plain mapping. Raises ``UserError`` with one line per mistake."""
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("; ".join(_explain(item) for item in _mistakes(error))) from None

    def local(path: str | None) -> str | None:
        """Workers run in other folders: what lies on this machine is named by its whole path;
        anything else is an id.
        """
        return (
            str(Path(path).expanduser().absolute())
            if path is not None and Path(path).expanduser().exists()
            else path
        )

    judge = config.detection.judge
    # a name at the endpoint is no path
    path = judge.path if judge.kind == "http" else local(judge.path)
    judge = judge.model_copy(update={"path": path})
    models = [
        model.model_copy(update={"path": local(model.path)}) for model in config.detection.models
    ]
    return config.model_copy(
        update={
            "storage": resolve(config.storage),
            "model": config.model.model_copy(update={"path": local(config.model.path)}),
            "data": config.data.model_copy(
                update={"chat_template": local(config.data.chat_template)}
            ),
            "detection": config.detection.model_copy(
                update={
                    "distribution": local(config.detection.distribution),
                    "judge": judge,
                    "models": models,
                }
            ),
            "evaluation": config.evaluation.model_copy(
                update={
                    "models": {name: local(path) for name, path in config.evaluation.models.items()}
                }
            ),
            "mixture": config.mixture.model_copy(
                update={"trajectory": local(config.mixture.trajectory)}
            ),
            "training": config.training.model_copy(
                update={"soft_mask": [local(file) for file in config.training.soft_mask]}
            ),
            "reference": config.reference.model_copy(
                update={
                    "model": local(config.reference.model),
                    "losses": local(config.reference.losses),
                }
            ),
        }
    )


def dump(config: Config) -> str:
    """The whole resolved configuration as YAML that ``load`` accepts; a URI without its
    parameters, and secrets redacted.
    """
    return yaml.safe_dump(
        redacted(config.model_dump(mode="json") | {"storage": shown(config.storage)}),
        sort_keys=False,
        allow_unicode=True,
        width=120,
    )


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield ``key: old → new`` for every leaf that differs between two dumped configurations."""
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}: {before!r} → {after!r}"


def describe() -> str:
    """Every key with type, unit, default and meaning: the text of ``--help``."""
    rows = []
    for key, field in _keys(Config):
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
        rows.append(
            (f"  {key}", f"{_type_name(field.annotation)}{unit} = {shown}", field.description or "")
        )
    return "\n".join(f"{key:<38} {kind}\n{'':<38}   {text}" for key, kind, text in rows)


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field
            args = get_args(annotation)
            if (
                get_origin(annotation) in (dict, list)
                and isinstance(args[-1], type)
                and issubclass(args[-1], Section)
            ):
                yield from _keys(args[-1], f"{prefix}{name}.NAME.")


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    args = get_args(annotation)
    if args and get_origin(annotation) not in (dict, list):
        return " | ".join("none" if arg is type(None) else _type_name(arg) for arg in args)
    if get_origin(annotation) is list:
        return f"{_type_name(args[0])} or list"
    if get_origin(annotation) is dict:
        return f"{{name: {_type_name(args[1])}}}"
    return {
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true|false",
        "Any": "any",
    }.get(
        getattr(annotation, "__name__", str(annotation)),
        getattr(annotation, "__name__", str(annotation)).lower(),
    )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: no such configuration file")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file}: expected keys and values at the top, found {type(tree).__name__}")
    tree.pop("versions", None)  # a saved run's config.yaml can be loaded again
    return tree


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        there = into.get(key)
        if isinstance(value, Mapping) and isinstance(there, dict):
            _merge(there, value)
        elif (
            isinstance(value, Mapping)
            and isinstance(there, list)
            and there
            and all(_is_named(item) for item in there)
        ):
            named = {str(item["name"]): item for item in there}  # stages.NAME.epochs=2
            for name, changes in value.items():
                if name not in named:
                    raise UserError(
                        f"{key}.{name}: none has this name; {nearest(name, list(named))}"
                    )
                if not isinstance(changes, Mapping):
                    raise UserError(
                        f"{key}.{name}: {changes!r} is no set of keys; write {key}.{name}.KEY=VALUE"
                    )
                _merge(named[name], changes)
        else:
            into[key] = value


def _is_named(item: Any) -> bool:
    return isinstance(item, dict) and "name" in item


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
    return list(found.values())


def _explain(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        names = [name for name, _ in _keys(Config)]
        return (
            f"{key}: unknown key; "
            f"{nearest(key, names if '.' in key else list(Config.model_fields))}"
        )
    if not key:
        return str(error["msg"]).removeprefix("Value error, ")
    reason = _range(key) if error["type"].startswith(("greater_than", "less_than")) else None
    reason = reason or str(error["msg"]).removeprefix("Value error, ")
    return f"{key}: {error['input']!r} is not valid: {reason[0].lower()}{reason[1:]}"


def _range(key: str) -> str | None:
    """The whole valid range of a number, where its own field knows it."""
    field = dict(_keys(Config)).get(key)
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bounds = [
        f"{word} {getattr(rule, name):g}"
        for rule in (field.metadata if field else ())
        for name, word in words.items()
        if getattr(rule, name, None) is not None
    ]
    return f"it has to be {' and '.join(bounds)}" if bounds else None
