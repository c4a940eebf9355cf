"""Results kept under ``{storage}/.cache``, keyed by everything they depend on, built once even when
two runs want them at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from versatune_ray.errors import redacted
from versatune_ray.runs.storage import bring, here, push, remove
from versatune_ray.settings.location import is_mirrored


def key_of(parts: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change when any part changes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cached(
    root: Path, kind: str, parts: Mapping[str, Any], build: Callable[[Path], None]
) -> tuple[Path, bool]:
    """The folder ``root/kind/<key of parts>``, made by ``build(work_folder)`` if it is not there.

    A second process that wants the same entry waits for the first. The work folder survives a kill,
    so that ``build`` may go on from what it finds there; it becomes the entry only when ``build``
    returns.

    Returns:
        The folder, and whether it was there already.
    """
    entry = here(root) / kind / key_of(parts)
    if have(entry):
        return entry, True
    with held(entry):
        if have(entry):
            return entry, True
        work = entry.with_name(f"{entry.name}.partial")
        work.mkdir(exist_ok=True)
        build(work)
        write_json(work / "key.json", redacted(dict(parts)))
        push(entry, work)
        work.replace(entry)
        remove(work)
    return entry, False


def have(entry: Path) -> bool:
    """Whether an entry is there: brought from the storage if it is not here, sent to it if it is
    not there.
    """
    if bring(entry):
        return True
    if is_mirrored(entry) and entry.is_dir():
        push(entry)
        return True
    return False


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock beside ``path``, ``{path}.lock``; where another job has it, say so and wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"[cache] waiting for another job that works on {path}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, value: Any) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
        appear(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Where to write what is to become ``path``: beside it, hidden, and of this try alone."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def appear(temporary: Path, path: Path) -> None:
    """Move a written file into its place, once its bytes are on the disk: a machine that loses its
    power leaves no empty file under a name that counts.
    """
    _to_disk(temporary)
    temporary.replace(path)
    _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path, why: object) -> None:
    """Move a file or folder that cannot be read out of the way, and say so; it is made again."""
    aside = path.with_name(f".unreadable-{path.name}-{uuid.uuid4().hex[:8]}")
    remove(path)
    path.rename(aside)
    reason = " ".join(str(why).split())[:200]
    print(f"[cache] {path} cannot be read ({reason}): now {aside.name}, made again", flush=True)
