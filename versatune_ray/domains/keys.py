"""Where the token store of some sources is kept, and what a store is known by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ray.domains.fingerprint import By, fingerprint
from versatune_ray.domains.spec import Input
from versatune_ray.domains.store import STORE_FORMAT
from versatune_ray.runs.cache import key_of
from versatune_ray.runs.folder import say
from versatune_ray.runs.storage import bring, fetch, here


def store_folder(
    cache: Path, parts: Mapping[str, Any], inputs: Sequence[Input], by: By, key: str
) -> Path:
    """The folder that keeps, or is to keep, the store of ``inputs``. Where there is one of an
    earlier version of this program, it is said that it is made again.

    Args:
        parts: all that decides what becomes of the records. key: of the configuration, for people.
    """
    place = (cache / "tokens").absolute()
    folder = place / key_of({**parts, by: fingerprint(inputs, by)})
    if not bring(folder) and _from_before(here(place), inputs):
        say("data", f"the token store of {key} is of an earlier version: it is made again")
    return folder


def identity(folder: Path) -> str:
    """What a store is known by: a digest of its records, whatever the files were called; of a
    folder that is none, its name.
    """
    meta = fetch(folder) / "meta.json"
    found = json.loads(meta.read_text(encoding="utf-8")) if meta.is_file() else {}
    return str(found.get("identity", folder.name))


def _from_before(place: Path, inputs: Sequence[Input]) -> bool:
    """Whether there is a store of inputs of these names in another format."""
    names = [source.prefix for source in inputs]
    for file in place.glob("*/meta.json"):
        try:
            meta = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # told by whoever needs that store
            continue
        if meta.get("format") != STORE_FORMAT and meta.get("inputs") == names:
            return True
    return False
