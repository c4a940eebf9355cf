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
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock

from versatune_ray.errors import UserError
from versatune_ray.runs.names import inside, manifest_files, private
from versatune_ray.settings.location import is_mirrored, mirrored, root, shown, storage_errors

_WHOLE = ".whole"
_TRANSFERS = 8
_CHUNK = 16 << 20  # bytes

_Place = TypeVar("_Place", str, Path)


class Remote(NamedTuple):
    """A place in a storage: its file system, and the path there."""

    fs: Any
    path: str

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.fs, f"{self.path}/{name}")


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


def here(path: _Place) -> _Place:
    """The same place in this machine's mirror, whichever machine's mirror ``path`` is in."""
    found = mirrored(Path(path))
    return path if found is None else type(path)(root(found[0]) / found[1])


def fetch(path: _Place) -> _Place:
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
    _copy_down(remote, path)
    return True


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

    _in_parallel(
        (_copy_down, remote / name, folder / name)
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


def push(path: Path, source: Path | None = None) -> None:
    """Send a file or a folder to the storage, as ``path``, from ``source`` where it is about to be
    moved from there.

    A folder gets a manifest once all is there, and what does not belong to it goes.
    """
    remote, source = _remote(path), source or path
    if remote is None:
        return
    if source.is_file():
        _copy_up(source, remote)
        return
    files = {str(file.relative_to(source)): file for file in _files(source)}
    for name in files:
        inside(source, name)
    before = [name for name, _ in _list(remote)]
    if _WHOLE in before:
        remote.fs.delete_file(f"{remote.path}/{_WHOLE}")
    _in_parallel((_copy_up, file, remote / name) for name, file in files.items())
    for name in before:
        if name != _WHOLE and name not in files:
            remote.fs.delete_file(f"{remote.path}/{name}")
    manifest = json.dumps(
        {
            "id": uuid.uuid4().hex,
            "files": {name: file.stat().st_size for name, file in files.items()},
        }
    ).encode()
    _write(remote / _WHOLE, manifest)
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
    _write(remote, content)


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


def _in_parallel(tasks: Iterable[tuple[Any, Any, Any]]) -> None:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for done in [pool.submit(copy, source, target) for copy, source, target in tasks]:
            done.result()


def _read(remote: Remote) -> bytes | None:
    try:
        with remote.fs.open_input_file(remote.path) as stream:
            content: bytes = stream.read()
            return content
    except FileNotFoundError:
        return None


def _write(remote: Remote, content: bytes) -> None:
    with _appearing(remote) as place, remote.fs.open_output_stream(place) as stream:
        stream.write(content)


@contextmanager
def _appearing(remote: Remote) -> Iterator[str]:
    """Where to write a file that appears whole: object stores see to that, in a file system it is
    moved into its place.
    """
    if remote.fs.type_name != "local":
        yield remote.path
        return
    partial = f"{remote.path}.{uuid.uuid4().hex[:8]}.tmp"
    remote.fs.create_dir(partial.rpartition("/")[0])
    yield partial
    remote.fs.move(partial, remote.path)


def _copy_up(file: Path, remote: Remote) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    with _appearing(remote) as place:
        copy_files(
            str(file), place, LocalFileSystem(), remote.fs, chunk_size=_CHUNK, use_threads=False
        )
    written = remote.fs.get_file_info(remote.path).mtime_ns
    os.utime(file, ns=(written, written))  # that the two are the same is seen by this


def _copy_down(remote: Remote, file: Path) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        written = remote.fs.get_file_info(remote.path).mtime_ns
        copy_files(
            remote.path,
            str(partial),
            remote.fs,
            LocalFileSystem(),
            chunk_size=_CHUNK,
            use_threads=False,
        )
        os.utime(partial, ns=(written, written))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


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
            _in_parallel((_copy_down, remote / name, partial / name) for name in files)
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
