"""What of a folder is data: links, splits as the hub has them, and what ``save_to_disk`` wrote."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Any

from versatune_ray.errors import UserError

# what datasets say of themselves
METADATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WANTED = {"validation": ("validation", "test"), "questions": ("test", "validation")}


def walk(fs: Any, root: str) -> list[str]:
    """All files below a folder. Links to folders are followed on this machine's disks, and each
    folder is read once, so that a circle of links ends.

    Raises:
        UserError: a link leads nowhere, or what has a name is no file but a pipe, say.
    """
    if "file" not in fs.protocol:
        return list(fs.find(root))
    found, seen = [], set()
    for folder, inner, names in os.walk(root, followlinks=True):
        inner.sort()
        real = os.path.realpath(folder)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        for name in names:
            path = f"{folder}/{name}"
            if not os.path.exists(path):  # noqa: PTH110 - fsspec's paths are texts
                raise UserError(f"{path}: a link to nothing")
            if not os.path.isfile(path):  # noqa: PTH113 - reading one may wait for ever
                raise UserError(f"{path}: a pipe, socket or device and no file; take it away")
            found.append(path)
    return found


def saved_files(fs: Any, root: str) -> list[str]:
    """Arrow files of a folder made by ``datasets.save_to_disk``, in the order of its records; files
    of caches beside them are none. A dictionary of splits has them in a folder each. Empty where it
    is no such folder.
    """
    top = PurePosixPath(root)
    if fs.isfile(f"{top}/dataset_dict.json"):
        splits = json.loads(fs.cat_file(f"{top}/dataset_dict.json"))["splits"]
        return [file for split in splits for file in saved_files(fs, f"{top}/{split}")]
    if not fs.isfile(f"{top}/state.json"):
        return []
    state = json.loads(fs.cat_file(f"{top}/state.json"))
    files = state.get("_data_files") if isinstance(state, dict) else None
    return [f"{top}/{file['filename']}" for file in files or ()]


def of_split(names: list[str], root: str, side: str) -> tuple[list[str], str]:
    """Of files of which some are a training split and some another, those that ``side`` is for
    (``train``, ``validation`` or ``questions``), and words for what is left; otherwise all of them.
    A split is named by a folder or by the beginning or end of a word in a file's name.
    """
    splits = {name: _split(PurePosixPath(name.removeprefix(root))) for name in names}
    there = set(splits.values())
    if "train" not in there or not there & {"validation", "test"}:
        return names, ""
    wanted = next((one for one in _WANTED.get(side, ()) if one in there), "train")
    kept = [
        name for name in names if splits[name] in (wanted, None if wanted == "train" else wanted)
    ]
    left = [name for name in names if name not in kept]
    return kept, f"takes its {wanted} split and leaves {listed(left, root)}"


def unread(names: Sequence[str], taken: Collection[str], root: str) -> str:
    """Words for the files of a folder that are not ``taken``, but those that no records are
    expected in: hidden ones, what says something of the others, and marks such as ``_SUCCESS``.
    """
    left = []
    for name in sorted(set(names) - set(taken)):
        path = PurePosixPath(name.removeprefix(root))
        told = path.suffix.lower() in (".md", "") or path.name in METADATA
        if not told and not any(part.startswith(".") for part in path.parts):
            left.append(name)
    return f"leaves {listed(left, root)}" if left else ""


def listed(names: Sequence[str], root: str) -> str:
    """The first of them, as they lie in the folder."""
    shown = [name.removeprefix(root).lstrip("/") for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _split(path: PurePosixPath) -> str | None:
    """The split that a path names, its last word first."""
    for part in (path.name.partition(".")[0], *reversed(path.parts[:-1])):
        words = re.split(r"[^a-z]+", part.lower())
        for split, spellings in _SPLITS.items():
            if not set(spellings).isdisjoint(words):
                return split
    return None
