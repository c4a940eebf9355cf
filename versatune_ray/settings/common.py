"""How a key is declared, and how a wrong one is answered."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Union,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

Shares = dict[str, float]
MOST_SEED = 2**32 - 1  # what every library takes
MOST_SAMPLES = 1_000_000  # of a step


def setting(
    default: Any,
    description: str,
    unit: str = "",
    *,
    resumable: bool = False,
    results: bool = True,
    path: bool = False,
    **constraints: Any,
) -> Any:
    """Declare one key, or a section of them.

    Args:
        default: its value, or a factory of it without arguments.
        unit: of a number, for ``--keys``.
        resumable: whether it may change when a run goes on. results: whether what a run computes
            depends on it; False for what changes its speed, its place or its account, and such a
            key is resumable too. Both count for all keys of a section.
        path: whether it, or each of its values, may name a file or folder of this machine, and
            becomes a whole path then (``loading``); not for sources of records, which become so
            where they are read, and are told of as they were given.
        constraints: pydantic's.
    """
    extra: Any = {"unit": unit} if unit else {}
    extra |= {"resumable": True} if resumable or not results else {}
    extra |= {} if results else {"results": False}
    extra |= {"path": True} if path else {}
    given: Any = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**given, description=description, json_schema_extra=extra or None, **constraints)


def as_list(value: object) -> object:
    """One stands for a list of one, nothing for an empty list."""
    if value is None:
        return []
    return [value] if isinstance(value, str | Mapping | Section) else value


Paths = Annotated[list[str], BeforeValidator(as_list)]


def _recompute(value: object) -> object:
    """``none``, ``full`` or ``every N``; true and false as configurations before these had them."""
    if isinstance(value, bool):
        return "full" if value else "none"
    if isinstance(value, str) and (
        value in ("none", "full") or re.fullmatch(r"every [1-9]\d*", value)
    ):
        return value
    raise ValueError(f"none, full, or for each N-th layer `every N`; found {value!r}")


Recompute = Annotated[str, BeforeValidator(_recompute)]
Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
Loggers = Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], BeforeValidator(as_list)]


def kinds(annotation: Any) -> set[Any]:
    """The plain types that a value of ``annotation`` may be of: ``int | Literal["auto"]`` gives int
    and str. Containers and sections count as themselves.
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kinds(args[0])
    if origin is Literal:
        return {type(value) for value in args}
    if origin in (Union, UnionType):
        return set().union(*(kinds(arg) for arg in args))
    return {origin or annotation}


class OneOf:
    """Validator of a text that is one of ``names``, and in ``--keys`` the list of them;
    ``other`` checks what is none of them.
    """

    def __init__(self, names: Collection[str], other: re.Pattern[str] | None = None, way: str = ""):
        self.names, self.other, self.way = tuple(names), other, way

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError(f"one of {', '.join(self.names)}{self.way}")
        if value in self.names or (self.other is not None and self.other.fullmatch(value)):
            return value
        raise ValueError(f"{nearest(value, self.names)}{self.way}")


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    def deciding(self, *without: str) -> dict[str, Any]:
        """The keys that results depend on, but for ``without``: a part of a cache's key."""
        extras = {name: field.json_schema_extra for name, field in type(self).model_fields.items()}
        free = {
            name for name, extra in extras.items() if isinstance(extra, dict) and "results" in extra
        }
        return self.model_dump(exclude=free | set(without))

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes ``yes`` and 1 for true, and true for 1. And nothing stands for an empty
        mapping or list: else none could take back what an earlier file says.
        """
        expected = kinds(cls.model_fields[str(info.field_name)].annotation)
        if value is None and expected in ({dict}, {list}):
            return expected.pop()()
        if isinstance(value, bool):
            if expected & {int, float} and bool not in expected:
                raise ValueError("a number is needed")
        elif bool in expected and isinstance(value, int | float):
            raise ValueError("true or false is needed")
        elif bool in expected and str(value).lower() in _TRUTHS:
            raise ValueError("write true or false")
        return value


_TRUTHS = ("yes", "no", "on", "off", "y", "n", "t", "f", "true", "false", "1", "0")


class WithPreset(Section):
    """A section whose key ``preset`` stands for the values of ``PRESETS`` under that name, where
    they are not set beside it.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, given: Any) -> Any:
        return cls.with_preset(given)

    @classmethod
    def with_preset(cls, given: Any) -> Any:
        """The keys of ``given``, and those of the preset that it names and does not overrule."""
        preset = cls.PRESETS.get(str(given.get("preset"))) if isinstance(given, Mapping) else None
        return given if preset is None else _under(given, preset)


def _under(given: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, completed with what only ``preset`` has."""
    merged = dict(preset) | dict(given)
    for key, value in preset.items():
        if isinstance(value, Mapping) and isinstance(given.get(key), Mapping):
            merged[key] = _under(given[key], value)
    return merged


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint; a key in a wrong branch (``train.epochs``, ``epochs``) is found by its last part as
    well as by the whole.
    """
    tail = name.rpartition(".")[2]
    named_alike = [key for key in names if key.rpartition(".")[2] == tail]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if named_alike and name not in named_alike:
        in_branch = difflib.get_close_matches(name, named_alike, n=1, cutoff=0)
        close = in_branch if "." in name else named_alike
    if not close:
        tails = {key.rpartition(".")[2]: key for key in reversed(names)}
        close = [
            tails[match] for match in difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)
        ]
    return (
        f"did you mean {close[0]!r}?"
        if close
        else f"valid: {', '.join(list(names)[:12])}{', …' if len(names) > 12 else ''}"
    )
