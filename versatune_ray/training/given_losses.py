"""Reference losses read from a file instead of measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch
from versatune_ray.settings.recipe import Unit


def given_losses(file: str, names: Sequence[str], tokenizer: str | None = None) -> dict[str, Any]:
    """Reference losses of an earlier run, from its ``losses.json``.

    Args:
        names: the configured domains; the file may have more.
        tokenizer: fingerprint of the tokenizer of the model to tune; None: any will do.

    Raises:
        UserError: the file is missing, lacks a domain, has a loss or a unit that is none, or
            counts per token of another tokenizer.
    """
    path = Path(fetch(file)).expanduser()
    if not path.is_file():
        raise UserError(f"reference.losses: {file}: no such file")
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        domains = {name: dict(stored["domains"][name]) for name in names}
        losses, unit = {name: one["loss"] for name, one in domains.items()}, stored["unit"]
    except KeyError as error:
        raise UserError(
            f"{file}: no {error} in it; it needs `unit` and a loss for each of {', '.join(names)}"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: no losses.json: {error}") from None
    for name, loss in losses.items():
        number = isinstance(loss, int | float) and not isinstance(loss, bool)
        if not number or not 0 <= loss < math.inf:
            raise UserError(f"{file}: domains.{name}.loss: {loss!r} is no loss; a number ≥ 0 is")
    if unit not in get_args(Unit):
        raise UserError(f"{file}: unit: {unit!r}; valid: {', '.join(get_args(Unit))}")
    of = stored.get("tokenizer", tokenizer)
    if tokenizer is not None and unit == "nats/token" and of != tokenizer:
        raise UserError(
            f"{file}: its losses are per token of another tokenizer; measure them again with this "
            f"model's, or per byte"
        )
    return stored | {"domains": domains}
