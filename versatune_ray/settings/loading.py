"""The configuration tree of ``settings``, read from YAML files and ``dotted.key=value`` overrides.

Later files win over earlier ones, overrides win over files; null takes away a domain, a key of one,
a study's method, a domain's benchmarks or a model to evaluate beside. Relative paths count from the
current folder. Errors name the key, the value, and the nearest valid key.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from versatune_ray.errors import UserError, redacted
from versatune_ray.settings import Config, Detection, Evaluation, Judge, Mixture, nearest
from versatune_ray.settings.common import Section, WithPreset
from versatune_ray.settings.keys import as_declared, is_declared, names, without_unknown
from versatune_ray.settings.location import resolve, shown
from versatune_ray.settings.mistakes import check_values, mistakes_of
from versatune_ray.settings.yaml12 import no_yaml, read_yaml

# beside domains, of which each key may be taken away; in a method null is a value as any other
_NAMED_BY_USERS = ("study.methods.", "evaluation.benchmarks.", "evaluation.models.")

# a name that holds a dot or "=" stands in double quotes: study.methods."DMT, k = 1/4"=null
_OVERRIDE = re.compile(r'((?:"[^"]*"|[^"=])+)=(.*)', re.DOTALL)
_DOT = re.compile(r'\.(?=(?:[^"]*"[^"]*")*[^"]*$)')


def load(
    files: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
) -> Config:
    """Read YAML ``files`` in order, apply ``overrides`` of the form ``a.b=value`` (value is YAML)
    or ``changes``, dotted key → value, validate. In a key, a name with a dot or "=" in it stands in
    double quotes.

    Raises:
        UserError: a file is missing or no YAML mapping, or a key is unknown or ill-typed (the
            nearest valid key is named).
    """
    tree: dict[str, Any] = {}
    for file in files:
        _merge(tree, _with_preset(_read(Path(file))))
    given: dict[str, Any] = {}
    for override in overrides:
        if (parts := _OVERRIDE.fullmatch(override)) is None:
            raise UserError(_no_override(override))
        key, text = parts.groups()
        try:
            value = read_yaml(text, key) if text else None
        except yaml.YAMLError:
            value = text
        _merge(given, _in_full(as_declared(_branch(key, value))))
    for key, value in (changes or {}).items():
        _merge(given, _in_full(_branch(key, value)))
    _merge(tree, _with_preset(given))
    return parse(tree)


def _no_override(text: str) -> str:
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        return f"{text}: a configuration file is given as --config {text}"
    key = text.lstrip("-")
    known = [name for name in names() if name == key or name.endswith(f".{key}")]
    if known and text.startswith("-"):
        return f"{text}: no such option; write {known[0]}=VALUE"
    if text.startswith("-"):
        return f"{text}: no such option; --help lists options, --keys what a configuration may say"
    return f"{text!r} is no override; write dotted.key=value, for example training.epochs=2"


def no_option(words: Sequence[str]) -> str:
    """What to write in place of an option that there is not, as ``--epochs=2``."""
    option, equals, value = words[0].partition("=")
    value = value if equals else "VALUE"
    return _no_override(option).replace("VALUE", value)


def with_keys(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``tree`` with the values of dotted keys."""
    given: dict[str, Any] = {}
    for key, value in changes.items():
        _merge(given, _in_full(_branch(key, value)))
    changed = _in_full(copy.deepcopy(dict(tree)))
    _merge(changed, _with_preset(given))
    return changed


def _branch(key: str, value: Any) -> dict[str, Any]:
    parts = _DOT.split(key)
    if parts[:2] in (["study", "methods"], ["replay", "settings"]) and len(parts) > 3:
        parts[3:] = [".".join(parts[3:])]  # what is under a name here are dotted keys themselves
    for part in reversed(parts):
        quoted = len(part) > 1 and part[0] == part[-1] == '"'
        value = {part[1:-1] if quoted else part: value}
    branch: dict[str, Any] = value
    return branch


def _in_full(tree: dict[str, Any]) -> dict[str, Any]:
    """Short forms written out, so that a later source can add to them: ``law: law.jsonl`` is
    ``law: {train: law.jsonl}``.
    """
    full = dict(tree)
    if isinstance(domains := tree.get("domains"), Mapping):
        full["domains"] = {
            name: {"train": spec} if isinstance(spec, str | list) else spec
            for name, spec in domains.items()
        }
    detection, evaluation = tree.get("detection"), tree.get("evaluation")
    if isinstance(detection, Mapping) and "models" in detection:
        full["detection"] = {**detection, "models": _items(detection["models"], "path")}
    if isinstance(evaluation, Mapping) and isinstance(evaluation.get("benchmarks"), Mapping):
        listed = {name: _items(some, "task") for name, some in evaluation["benchmarks"].items()}
        full["evaluation"] = {**evaluation, "benchmarks": listed}
    return full


def _items(entries: Any, key: str) -> Any:
    """A text in a list stands for ``{key: text}``."""
    if not isinstance(entries, list):
        return entries
    return [{key: entry} if isinstance(entry, str) else entry for entry in entries]


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
    """Validate a plain mapping. Raises ``UserError``: all mistakes, in one line."""
    check_values(tree)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(mistakes_of(error)) from None
    whole: Config = _with_whole_paths(config)
    return whole.model_copy(update={"storage": resolve(config.storage)})


def _with_whole_paths(value: Any, is_path: bool = False) -> Any:
    """Workers run in other folders: what lies on this machine is named by its whole path, wherever
    a key may name that; anything else is an id.
    """
    if isinstance(value, Judge) and value.kind == "http":
        return value  # a name at the endpoint is no path
    if isinstance(value, Section):
        fields = type(value).model_fields
        given = {name: getattr(value, name) for name in fields}
        whole = {
            name: _with_whole_paths(one, is_declared(fields[name], "path"))
            for name, one in given.items()
        }
        changed = {name: one for name, one in whole.items() if one != given[name]}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, Mapping):
        return {name: _with_whole_paths(one, is_path) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_whole_paths(one, is_path) for one in value]
    if not is_path or not isinstance(value, str):
        return value
    try:
        path = Path(value).expanduser()
        return str(path.absolute()) if path.exists() else value
    except (OSError, RuntimeError):  # longer than a path may be, or ~nobody
        return value


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


def saved_config(file: Path) -> tuple[Config, list[str]]:
    """The configuration that a run was begun with, by another version perhaps: keys that there
    were not then at their defaults, and the names of those that there are no more.

    Raises:
        UserError: a value that is none now.
    """
    tree, gone = without_unknown(_read(file))
    return parse(tree), gone


def changed_keys(old: Config, new: Config) -> Iterator[tuple[str, Any, Any]]:
    """Every dotted key that differs between two configurations, with both values."""

    def differing(before: Any, after: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            for name in dict.fromkeys([*before, *after]):
                whole = f"{key}.{name}" if key else name
                yield from differing(before.get(name), after.get(name), whole)
        elif before != after:
            yield key, before, after

    # as they are saved: without secrets
    before, after = (
        redacted(one.model_dump(mode="json") | {"storage": shown(one.storage)})
        for one in (old, new)
    )
    yield from differing(before, after, "")


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file}: no such configuration file")
    try:
        tree = as_declared(read_yaml(file.read_text(encoding="utf-8-sig"), str(file)))
    except yaml.YAMLError as error:
        raise UserError(f"{file}{no_yaml(error)}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}:{line}: no text in UTF-8; save it as such") from None
    if tree in (None, {}):
        raise UserError(f"{file}: nothing in it; versatune init FOLDER writes one from your files")
    if not isinstance(tree, dict):
        raise UserError(f"{file}: expected keys and values at the top, found {type(tree).__name__}")
    tree.pop("versions", None)  # a saved run's config.yaml can be loaded again
    return _in_full(tree)


def _merge(into: dict[str, Any], other: Mapping[str, Any], above: str = "") -> None:
    for key, value in other.items():
        there, whole = into.get(key), f"{above}{key}"
        if isinstance(value, Mapping) and isinstance(there, dict):
            _merge(there, value, f"{whole}.")
        elif (
            isinstance(value, Mapping)
            and isinstance(there, list)
            and there
            and all(map(_id, there))
        ):
            named = {_id(item): item for item in there}  # stages.NAME.epochs=2
            for name, changes in value.items():
                if name not in named:
                    raise UserError(
                        f"{whole}.{name}: none has this name; {nearest(name, list(named))}"
                    )
                if not isinstance(changes, Mapping):
                    raise UserError(
                        f"{whole}.{name}: {changes!r} is no set of keys; write "
                        f"{whole}.{name}.KEY=VALUE"
                    )
                _merge(named[name], changes, f"{whole}.{name}.")
        elif (
            value is None
            and key in into
            and (above in _NAMED_BY_USERS or above.startswith("domains."))
        ):
            del into[key]  # what an earlier source says is taken away
        else:
            into[key] = value


def _id(item: Any) -> str:
    """What one of a list is called: its name, else the task or the model that it is of."""
    if not isinstance(item, dict):
        return ""
    return str(item.get("name") or item.get("task") or Path(str(item.get("path", ""))).name)
