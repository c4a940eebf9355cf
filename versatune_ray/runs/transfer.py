"""Files to and from a storage: each appears whole, with the time that the storage gave it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_TRANSFERS = 8
_CHUNK = 16 << 20  # bytes


class Remote(NamedTuple):
    """A place in a storage: its file system, and the path there."""

    fs: Any
    path: str

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.fs, f"{self.path}/{name}")


def in_parallel(tasks: Iterable[tuple[Any, Any, Any]]) -> None:
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for done in [pool.submit(copy, source, target) for copy, source, target in tasks]:
            done.result()


def write(remote: Remote, content: bytes) -> None:
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


def copy_up(file: Path, remote: Remote) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    with _appearing(remote) as place:
        copy_files(
            str(file), place, LocalFileSystem(), remote.fs, chunk_size=_CHUNK, use_threads=False
        )
    written = remote.fs.get_file_info(remote.path).mtime_ns
    os.utime(file, ns=(written, written))  # that the two are the same is seen by this


def copy_down(remote: Remote, file: Path) -> None:
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
