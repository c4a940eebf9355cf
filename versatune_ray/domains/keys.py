"""Where the token store of some sources is kept, and what a store is known by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ray.domains.fingerprint import By, fingerprint
from versatune_ray.domains.spec import Input
from versatune_ray.runs.cache import have, key_of, write_json
from versatune_ray.runs.folder import say
from versatune_ray.runs.storage import bring, fetch, here, push


def store_folder(
    cache: Path, parts: Mapping[str, Any], inputs: Sequence[Input], by: By, key: str
) -> Path:
    """The folder that keeps, or is to keep, the store of ``inputs``.

    Before stores were found by their files they were found by their content: where the cache has
    one of these inputs from then, their content is read once, and it is used if that is the same.

    Args:
        parts: all that decides what becomes of the records. key: of the configuration, for people.
    """
    place = (cache / "tokens").absolute()
    folder = place / key_of({**parts, by: fingerprint(inputs, by)})
    if by == "content" or have(folder):
        return folder
    note = folder.with_name(f"{folder.name}.same.json")
    if bring(note):
        same = place / str(json.loads(here(note).read_text(encoding="utf-8"))["store"])
        if have(same):
            return same
    elif _from_before(here(place), inputs):
        say("data", f"reads the sources of {key} once, to know the store of an earlier version")
        same = place / key_of({**parts, "content": fingerprint(inputs, "content")})
        if have(same):
            write_json(here(note), {"store": same.name})
            push(here(note))
            return same
    return folder


def identity(folder: Path) -> str:
    """What a store is known by: a digest of its records, whatever the files were called; of one
    from before stores had it, the name of its folder.
    """
    meta = fetch(folder) / "meta.json"
    found = json.loads(meta.read_text(encoding="utf-8")) if meta.is_file() else {}
    return str(found.get("identity", folder.name))


def _from_before(place: Path, inputs: Sequence[Input]) -> bool:
    """Whether there is a store of inputs of these names that was found by its content."""
    names = [source.prefix for source in inputs]
    for file in place.glob("*/meta.json"):
        try:
            meta = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # told by whoever needs that store
            continue
        if "identity" not in meta and meta.get("inputs") == names:
            return True
    return False
