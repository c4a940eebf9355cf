"""Storage behind a URI: each machine keeps a mirror of those parts of it that it needs, and works
in that.

A mirror is an ordinary folder whose name spells the URI, so a path in it says by itself what it
mirrors. Such a path may travel to any machine: ``fetch`` turns it into the same place in that
machine's own mirror and brings what is missing, once. ``push`` sends what was written. Where
``storage`` is a local folder there is no mirror, and all functions here do nothing but answer.

A folder that is pushed is followed by a manifest, ``.whole``, of what belongs to it: without one it
is not there yet. Others may write to a bucket too, so names that come from it are held to their
folder (``names.inside``), and a mirror is its owner's alone.

pyarrow is imported where there is a URI, and only there: a bare training machine has none.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Collection, Iterator
from errno import ENOENT
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from versatune_ray.errors import UserError
from versatune_ray.runs.names import inside, manifest_files, private
from versatune_ray.runs.transfer import Remote, copy_down, copy_up, in_parallel, write
from versatune_ray.settings.location import (
    Place,
    is_mirrored,
    mirrored,
    root,
    shown,
    storage_errors,
)
from versatune_ray.settings.location import here as here

_WHOLE = ".whole"


def check(storage: str) -> None:
    """Raises ``UserError`` where files cannot be written and deleted in ``storage``."""
    if "://" in storage:
        with storage_errors(storage):
            clock(root(storage))


def clock(folder: Path) -> Any:
    """The time by the storage's own clock, which machines agree on: that of a small file, written
    and deleted.
    """
    probe = folder / f".clock-{uuid.uuid4().hex[:8]}"
    write_small(probe, b"")
    written = read_small(probe)
    remove(probe)
    assert written is not None
    return written[1]


def fetch(path: Place) -> Place:
    """``here``, and brought from the storage where it is missing. What is in no mirror, such as a
    model's id, is returned as it is.

    Raises:
        UserError: it is not in the storage.
    """
    local = here(path)
    if is_mirrored(local) and not bring(Path(local)):
        raise UserError(f"{shown(local)}: not in the storage, or not whole")
    return local


def bring(path: Path) -> bool:
    """Whether a file or folder is there whole, brought from the storage first if there is one.

    A file that is here is taken as it is. A folder is compared by its manifest, or that of the
    folder it is in.
    """
    remote = _remote(path)
    if remote is None or path.is_file():
        return path.exists()
    for unit in (path, path.parent):
        at = _remote(unit)
        manifest = None if at is None else _read(at / _WHOLE)
        if at is not None and manifest is not None:
            _download(at, unit, manifest)
            return path.exists()
    if not remote.fs.get_file_info(remote.path).is_file:
        return False
    copy_down(remote, path)
    return True


def take(path: Path, target: Path | None = None) -> Path:
    """``path`` or ``target``, brought there from the storage where it is missing, by one process of
    this machine; for files of a folder that its manifest does not list, as they are large.

    Raises:
        FileNotFoundError: it is in neither.
    """
    target = target or path
    remote = _remote(path)
    if remote is not None and not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_file():
                if not remote.fs.get_file_info(remote.path).is_file:
                    raise FileNotFoundError(ENOENT, "not in the storage", shown(path))
                copy_down(remote, target)
    return target


def take_part(path: Path, start: int, size: int) -> bytes:
    """``size`` bytes of a file from ``start`` on: of this machine's copy, or else of the storage,
    from which nothing else is brought.
    """
    remote = _remote(path)
    if remote is None or path.is_file():
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
    with remote.fs.open_input_file(remote.path) as stream:
        stream.seek(start)
        found: bytes = stream.read(size)
        return found


def let_go(path: Path) -> None:
    """Remove this machine's copy of a file that the storage has; a local file stays."""
    if _remote(path) is not None:
        path.unlink(missing_ok=True)


def pull(folder: Path, *, exact: bool = False, without: str = "") -> None:
    """Bring the files of a folder that are not here as they are there (size and time), but for
    folders with a manifest of their own.

    Args:
        exact: files that are not there are removed here.
        without: name of folders to leave alone.
    """
    remote = _remote(folder)
    if remote is None:
        return
    there = {name: info for name, info in _list(remote) if without not in name.split("/")[:-1]}
    for name in there:
        inside(folder, name)
    units = {name.rpartition("/")[0] for name in there if name.rpartition("/")[2] == _WHOLE}
    wanted = {
        name: info
        for name, info in there.items()
        if not _hidden(name) and not any(name.startswith(f"{unit}/") for unit in units if unit)
    }

    def same(name: str, info: Any) -> bool:
        file = folder / name
        return file.is_file() and (file.stat().st_size, file.stat().st_mtime_ns) == (
            info.size,
            info.mtime_ns,
        )

    in_parallel(
        (copy_down, remote / name, folder / name)
        for name, info in wanted.items()
        if not same(name, info)
    )
    if exact:
        for file in _files(folder):
            name = str(file.relative_to(folder))
            if (
                name not in wanted
                and without not in name.split("/")
                and not any(name.startswith(f"{unit}/") for unit in units)
            ):
                file.unlink()


def push(path: Path, source: Path | None = None, keep: Collection[str] = ()) -> None:
    """Send a file or a folder to the storage, as ``path``, from ``source`` where it is about to be
    moved from there.

    A folder gets a manifest once all is there, and what does not belong to it goes, but for files
    to ``keep`` that are there already: see ``take``.
    """
    remote, source = _remote(path), source or path
    if remote is None:
        return
    if source.is_file():
        copy_up(source, remote)
        return
    files = {str(file.relative_to(source)): file for file in _files(source)}
    for name in files:
        inside(source, name)
    before = [name for name, _ in _list(remote)]
    if _WHOLE in before:
        remote.fs.delete_file(f"{remote.path}/{_WHOLE}")
    in_parallel((copy_up, file, remote / name) for name, file in files.items())
    for name in before:
        if name != _WHOLE and name not in files and name not in keep:
            remote.fs.delete_file(f"{remote.path}/{name}")
    manifest = json.dumps(
        {
            "id": uuid.uuid4().hex,
            "files": {name: file.stat().st_size for name, file in files.items()},
        }
    ).encode()
    write(remote / _WHOLE, manifest)
    (source / _WHOLE).write_bytes(manifest)


def remove(path: Path) -> None:
    """Remove a file or folder from the storage, if it is there; a local file or folder stays."""
    remote = _remote(path)
    if remote is None:
        return
    found = remote.fs.get_file_info(remote.path)
    if found.is_file:
        remote.fs.delete_file(remote.path)
    elif found.type.name == "Directory":
        remote.fs.delete_dir(remote.path)


def read_small(path: Path) -> tuple[bytes, Any] | None:
    """The bytes of a file in the storage, and when it was written by its clock; or None."""
    remote = _remote(path)
    assert remote is not None
    content = _read(remote)
    return None if content is None else (content, remote.fs.get_file_info(remote.path).mtime)


def write_small(path: Path, content: bytes) -> None:
    """Write a file in the storage alone."""
    remote = _remote(path)
    assert remote is not None
    write(remote, content)


def _remote(path: Path) -> Remote | None:
    found = mirrored(path)
    if found is None:
        return None
    fs, base = _file_system(found[0])
    private(root(found[0]))
    return Remote(fs, f"{base}/{found[1]}" if found[1] else base)


@lru_cache(maxsize=8)
def _file_system(uri: str) -> tuple[Any, str]:
    from pyarrow.fs import FileSystem

    fs, base = FileSystem.from_uri(uri)
    return fs, base.rstrip("/")


def _list(remote: Remote) -> Iterator[tuple[str, Any]]:
    """Files below a folder by their relative names; none if it is not there."""
    from pyarrow.fs import FileSelector

    selector = FileSelector(remote.path, recursive=True, allow_not_found=True)
    for info in remote.fs.get_file_info(selector):
        if info.is_file:
            yield info.path.removeprefix(remote.path).lstrip("/"), info


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/")) or name.endswith((".lock", ".tmp"))


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not _hidden(str(file.relative_to(folder)))
    )


def _read(remote: Remote) -> bytes | None:
    try:
        with remote.fs.open_input_file(remote.path) as stream:
            content: bytes = stream.read()
            return content
    except (FileNotFoundError, NotADirectoryError):
        return None


def _download(remote: Remote, folder: Path, manifest: bytes) -> None:
    """Bring a pushed folder unless it is here; the processes of a machine do it once."""

    def is_here() -> bool:
        return (folder / _WHOLE).is_file() and (folder / _WHOLE).read_bytes() == manifest

    if is_here():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.fetch.lock"):
        if is_here():
            return
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        try:
            files = manifest_files(folder, manifest)
            partial.mkdir(mode=0o700)
            in_parallel((copy_down, remote / name, partial / name) for name in files)
            changed = [
                name for name, size in files.items() if (partial / name).stat().st_size != size
            ]
            if changed:
                raise OSError(f"{shown(folder)}: {changed[0]} changed while it was fetched")
            (partial / _WHOLE).write_bytes(manifest)
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
