"""What stands for sources in a cache's key: which files they are, without reading them, or what
they hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

from versatune_ray.domains.remote import open_file, stamp
from versatune_ray.domains.spec import Input, reason_of
from versatune_ray.errors import UserError
from versatune_ray.settings.location import shown

By = Literal["files", "content"]
_ASKED = 16  # sources at once: a store far away answers each after a moment


def fingerprint(inputs: Sequence[Input], by: By = "files") -> str:
    """Hex SHA-256 of the inputs, in order.

    Args:
        by: ``files``: place, size, and the version, ETag or time of each file, of which no byte is
            read. ``content``: the bytes, wherever they lie. Of hub datasets id, config, split and
            commit in both; where the hub cannot be asked for the commit, the id alone.

    Raises:
        UserError: one cannot be read.
    """
    total = hashlib.sha256()
    with ThreadPoolExecutor(_ASKED) as pool:
        found = pool.map(_content if by == "content" else _files, inputs)
        for source, said in zip(inputs, found, strict=True):
            total.update(f"{source.format} {said}\n".encode())
    return total.hexdigest()


def _files(source: Input) -> str:
    if source.format == "hub":
        return _hub(source)
    try:
        version = stamp(source.path)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{source.label}: cannot be read: {reason_of(error)}") from error
    if version is None:  # a file system that knows no times
        return _content(source)
    return json.dumps([shown(source.path), *version])


def _content(source: Input) -> str:
    if source.format == "hub":
        return _hub(source)
    try:
        with open_file(source.path) as file:
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{source.label}: cannot be read: {reason_of(error)}") from error


def _hub(source: Input) -> str:
    return json.dumps([source.path, source.config, source.split, source.revision])
