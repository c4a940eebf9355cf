"""How a key is declared, and how a wrong one is answered."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Shares = dict[str, float]


def setting(default: Any, description: str, unit: str = "", **constraints: Any) -> Any:
    """Declare one key: default (or a zero-argument factory of one), meaning, unit, pydantic
    constraints.
    """
    extra: Any = {"unit": unit} if unit else None
    if callable(default):
        return Field(
            default_factory=default, description=description, json_schema_extra=extra, **constraints
        )
    return Field(default=default, description=description, json_schema_extra=extra, **constraints)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(_as_list)]


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
Loggers = Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], BeforeValidator(_as_list)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


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
    """A hint; a wrong branch (``train.epochs``) is found by its last part as well as by the whole
    key.
    """
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:
        tails = {key.rpartition(".")[2]: key for key in reversed(names)}
        close = [
            tails[tail]
            for tail in difflib.get_close_matches(
                name.rpartition(".")[2], list(tails), n=1, cutoff=0.6
            )
        ]
    return (
        f"did you mean {close[0]!r}?"
        if close
        else f"valid: {', '.join(list(names)[:12])}{', …' if len(names) > 12 else ''}"
    )
