"""Where ``storage`` lies: a local folder, or a URI and the folder on this machine that mirrors it.

A mirror is an ordinary folder whose name spells the URI, so a path in it says by itself what it
mirrors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, quote, unquote

from versatune_ray.errors import UserError, printable, redacted

_MIRRORS = "versatune-mirrors"
# Parameters that say where a storage is. All others are refused: some hold keys, and these belong
# in the environment.
_PARAMETERS = {
    "scheme",
    "endpoint_override",
    "region",
    "project_id",
    "retry_limit_seconds",
    "enable_tls",
    "credential_kind",
}
_NAME_BYTES = 255

Place = TypeVar("Place", str, Path)


def resolve(storage: str) -> str:
    """The setting as it is used: a URI, or the whole path of a local folder.

    Raises:
        UserError: nothing, or a URI that holds credentials or would be too long for a folder's
            name.
    """
    if not storage.strip():
        raise UserError("storage: empty; name a folder, such as runs, or a URI")
    if "://" not in storage:
        return str(Path(storage).expanduser().absolute())
    place, mark, query = storage.partition("?")
    unknown = sorted(set(parse_qs(query, keep_blank_values=True)) - _PARAMETERS)
    if unknown or re.match(r"[^/]*//[^@]*:[^@]*@", storage):
        what = f"the parameter {', '.join(unknown)}" if unknown else "a password"
        raise UserError(
            f"storage: {shown(storage)}: {what} does not belong in a URI; credentials come from "
            f"the environment"
        )
    uri = place.rstrip("/") + mark + query
    if len(quote(uri, safe="")) > _NAME_BYTES:
        raise UserError(f"storage: {shown(storage)}: this URI is too long")
    return uri


def root(storage: str) -> Path:
    """The folder that stands for a resolved ``storage`` on this machine: the folder itself, or the
    URI's mirror.

    Mirrors lie in ``$VERSATUNE_WORK``, or in the user's cache folder.
    """
    if "://" not in storage:
        return Path(storage)
    return (
        Path(os.environ.get("VERSATUNE_WORK") or Path.home() / ".cache")
        / _MIRRORS
        / quote(storage, safe="")
    )


def shown(place: str | Path) -> str:
    """A URI, or what a path in a mirror mirrors, for people and files: without parameters and
    credentials. Other paths as they are.
    """
    found = mirrored(Path(place)) if "://" not in str(place) else (str(place), "")
    if found is None:
        return str(place)
    bare = re.sub(r"//[^?]*@", "//", found[0].partition("?")[0])
    return f"{bare}/{found[1]}" if found[1] else bare


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """What goes wrong in a storage becomes one line that names it."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError | ValueError) and type(error).__module__ != "pyarrow.lib":
            raise
        reason = " ".join(str(error).split()).replace(storage, shown(storage))
        reason = printable(redacted(re.sub(r"\s*\(Request ID:[^)]*\)", "", reason)))
        raise UserError(f"storage: {shown(storage)} cannot be used: {reason}") from None


def uri_of(path: Path) -> str:
    """What ``path`` mirrors, as a URI that pyarrow and Ray take; a path in no mirror as it is."""
    found = mirrored(path)
    if found is None:
        return str(path)
    place, mark, query = found[0].partition("?")
    return f"{place}/{found[1]}{mark}{query}"


def is_mirrored(path: str | Path) -> bool:
    return mirrored(Path(path)) is not None


def here(path: Place) -> Place:
    """The same place in this machine's mirror, whichever machine's mirror ``path`` is in."""
    found = mirrored(Path(path))
    return path if found is None else type(path)(root(found[0]) / found[1])


def mirrored(path: Path) -> tuple[str, str] | None:
    """URI of the storage and path within, of a path in a mirror of any machine; a path that climbs
    is in none.
    """
    parts = path.parts
    if ".." in parts:
        return None
    for place, part in enumerate(parts[1:], 1):
        if parts[place - 1] == _MIRRORS and "%3A%2F%2F" in part:
            return unquote(part), "/".join(parts[place + 1 :])
    return None
