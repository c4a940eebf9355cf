"""Reference losses read from a file instead of measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch


def given_losses(file: str, names: Sequence[str], tokenizer: str) -> dict[str, Any]:
    """Reference losses of an earlier run, from its ``losses.json``.

    Args:
        names: the configured domains; the file may have more.
        tokenizer: fingerprint of the tokenizer of the model to tune.

    Raises:
        UserError: the file is missing, lacks a domain, or counts per token of another tokenizer.
    """
    path = Path(fetch(file))
    if not path.is_file():
        raise UserError(f"reference.losses: {file}: no such file")
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        domains = {
            name: {**stored["domains"][name], "loss": float(stored["domains"][name]["loss"])}
            for name in names
        }
        unit = stored["unit"]
    except KeyError as error:
        raise UserError(
            f"{file}: no {error} in it; it needs `unit` and a loss for each of {', '.join(names)}"
        ) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: no losses.json: {error}") from None
    if unit == "nats/token" and stored.get("tokenizer", tokenizer) != tokenizer:
        raise UserError(
            f"{file}: its losses are per token of another tokenizer; measure them again with this "
            f"model's, or per byte"
        )
    return stored | {"domains": domains}
