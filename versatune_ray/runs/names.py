"""Names that a storage or a file gave: others may write to a bucket too, so each is held to its
folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from versatune_ray.errors import UserError
from versatune_ray.settings.location import shown


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, for a name that a storage or a file gave.

    Raises:
        UserError: it is absolute, climbs, is spelt in more than one way, or a link leads it out of
            ``folder``.
    """
    parts = set(name.split("/"))
    plain = name.isprintable() and "\\" not in name and not parts & {"", ".", ".."}
    if not plain or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{shown(folder)}: it holds the name {name!a}, which leads out of this folder, so "
            f"nothing is copied; remove what has that name"
        )
    return folder / name


def manifest_files(folder: Path, content: bytes) -> dict[str, int]:
    """Sizes in bytes by name, of the files that the manifest of a folder lists.

    Raises:
        UserError: it is no manifest, or names what is not in the folder.
    """
    try:
        sizes = {str(name): int(size) for name, size in json.loads(content)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{shown(folder)}/.whole: no manifest of a folder; remove it, and the folder is made "
            f"again"
        ) from None
    for name in sizes:
        inside(folder, name)
    return sizes


def private(folder: Path) -> Path:
    """Make a folder that only its owner can enter, unless it is there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
