"""Files by path or URI: object stores through pyarrow's own file systems, which need no package
more and take the same URIs as ``storage``; ``hf://``, ``https://`` and the rest through fsspec's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import fsspec

_BY_PYARROW = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
# what fsspec's file systems call the version of a file, the surest first
_VERSIONS = (
    "version_id",
    "ETag",
    "etag",
    "blob_id",
    "md5",
    "mtime",
    "last_modified",
    "Last-Modified",
)
_BUFFER = 8 << 20  # bytes; a store answers a few large requests sooner than many small ones


class Place(NamedTuple):
    """A file system in fsspec's form, and a path there; ``uri`` names the paths that it lists."""

    fs: Any
    path: str
    before: str = ""
    root: str = ""
    after: str = ""

    def uri(self, name: str) -> str:
        """What ``locate`` and ``open_file`` take for the path ``name`` of this file system."""
        if not self.before:
            return str(self.fs.unstrip_protocol(name))
        return self.before + name.removeprefix(self.root) + self.after


def locate(spec: str) -> Place:
    """Where ``spec`` is: an absolute path, a URI, or a pattern of either.

    A query, as in ``s3://bucket/x?endpoint_override=localhost:9000&scheme=http``, is pyarrow's.

    Raises:
        OSError, ValueError, ImportError: no such scheme, or the store cannot be reached.
    """
    scheme, found, rest = spec.partition("://")
    if not found or scheme.lower() not in _BY_PYARROW:
        return Place(*fsspec.core.url_to_fs(spec))
    place, mark, query = rest.rpartition("?")
    if not mark or "=" not in query:  # else the mark is a pattern's
        place, query = rest, ""
    authority, _, path = place.partition("/")
    before, after = f"{scheme}://{authority}", f"?{query}" if query else ""
    fs, root = _store(before + after)
    return Place(fs, f"{root}/{path}".rstrip("/"), before, root, after)


def open_file(path: str, seekable: bool = False) -> IO[bytes]:
    """The bytes of one file, to be closed by the caller.

    Raises:
        OSError, ValueError, ImportError: it cannot be opened.
    """
    place = locate(path)
    if place.before and not seekable:
        stream = place.fs.fs.open_input_stream(place.path, compression=None, buffer_size=_BUFFER)
        return cast(IO[bytes], stream)
    return cast(IO[bytes], place.fs.open(place.path, "rb"))


def stamp(path: str) -> tuple[int, str] | None:
    """Size and version, ETag or time of one file, without reading it; None where its file system
    tells none of these.

    Raises:
        OSError, ValueError, ImportError: it cannot be found.
    """
    if "://" not in path:
        found = Path(path).stat()
        return found.st_size, str(found.st_mtime_ns)
    place = locate(path)
    if not place.before:
        info = place.fs.info(place.path)
        known = [info[name] for name in _VERSIONS if info.get(name)]
        return (int(info.get("size") or 0), str(known[0])) if known else None
    store = place.fs.fs
    (info,) = store.get_file_info([place.path])
    if not info.is_file:
        raise FileNotFoundError(f"no such file: {path.partition('?')[0]}")
    with store.open_input_stream(place.path, compression=None) as stream:
        said = {_text(name).lower(): _text(value) for name, value in stream.metadata().items()}
    version = said.get("versionid") or said.get("etag") or info.mtime_ns
    return (info.size, str(version)) if version is not None else None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@lru_cache(maxsize=64)
def _store(uri: str) -> tuple[Any, str]:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    # gcs:// is fsspec's word for what pyarrow calls gs://
    store, root = FileSystem.from_uri(
        uri.replace("gcs://", "gs://", 1) if uri.startswith("gcs") else uri
    )
    return ArrowFSWrapper(store), root
