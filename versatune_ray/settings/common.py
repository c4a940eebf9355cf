"""How a key is declared, and how a wrong one is answered."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Shares = dict[str, float]


def setting(default: Any, description: str, unit: str = "", **constraints: Any) -> Any:
    """Declare one key: default (or a zero-argument factory of one), meaning, unit, pydantic constraints."""
    extra: Any = {"unit": unit} if unit else None
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=extra, **constraints)
    return Field(default=default, description=description, json_schema_extra=extra, **constraints)


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(_as_list)]
Sinks = Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], BeforeValidator(_as_list)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint; a wrong branch (``train.epochs``) is found by its last part as well as by the whole key."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:
        tails = {key.rpartition(".")[2]: key for key in reversed(names)}
        close = [tails[tail] for tail in difflib.get_close_matches(name.rpartition(".")[2], list(tails), n=1, cutoff=0.6)]
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(list(names)[:12])}{', …' if len(names) > 12 else ''}"
