"""What inputs hold, as one number: the part of a cache's key that follows the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, cast

from versatune_ray.domains.remote import open_file
from versatune_ray.domains.spec import Input, reason_of
from versatune_ray.errors import UserError


def fingerprint(inputs: Sequence[Input]) -> str:
    """Hex SHA-256 of what the inputs hold, in order: bytes of files; id, config, split and commit
    of hub datasets.

    File names do not count. Where the hub cannot be asked for the commit, the id alone stands for a
    dataset.
    """
    total = hashlib.sha256()
    for source in inputs:
        if source.format == "hub":
            content = json.dumps([source.path, source.config, source.split, source.revision])
        else:
            try:
                with open_file(source.path) as file:
                    content = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"{source.label}: cannot be read: {reason_of(error)}") from error
        total.update(f"{source.format} {content}\n".encode())
    return total.hexdigest()
