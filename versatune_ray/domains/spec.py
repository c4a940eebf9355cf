"""Source specs → concrete inputs.

A spec is a file, a folder or a glob pattern (local, or any URI that fsspec reads), or a Hugging
Face dataset written ``org/name``, ``org/name:config`` or ``org/name:config@split`` (split:
``train`` unless given). What exists locally or has ``://`` in it is a file; what looks like a file
but is missing is an error; the rest must be a dataset id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import fsspec

from versatune_ray.errors import UserError

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "txt", "hub"]
_RECORD_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_TEXT_SUFFIXES: dict[str, Format] = {**_RECORD_SUFFIXES, ".txt": "txt"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_DATASET_ID = re.compile(
    r"(?P<path>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.\[\]:%+-]+))?"
)


@dataclass(frozen=True)
class Input:
    """One file or one split of a hub dataset. ``path`` is absolute; ``label`` is how messages name
    it.
    """

    path: str
    label: str
    format: Format
    config: str | None = None
    split: str = "train"
    revision: str | None = None

    @property
    def prefix(self) -> str:
        """A location without its number: ``label:`` where records are lines (JSONL, CSV), else
        ``label#``.
        """
        return f"{self.label}{':' if self.format in ('jsonl', 'csv', 'tsv') else '#'}"

    def location(self, number: int) -> str:
        """``label:line`` or ``label#row``; both count from 1."""
        return f"{self.prefix}{number}"


def expand(spec: str, key: str, texts: bool = False) -> list[Input]:
    """List the inputs that ``spec`` stands for, files of a folder in sorted order.

    Hidden files, those starting with ``_`` and those of other formats are skipped in folders.
    ``texts`` admits ``.txt``. ``key`` is the configuration key named in errors. Only dataset ids
    touch the network (to pin the commit).

    Raises:
        UserError: nothing is there, the format is unknown, or the URI cannot be opened.
    """
    suffixes = _TEXT_SUFFIXES if texts else _RECORD_SUFFIXES
    local = Path(spec).expanduser()
    if "://" not in spec and not local.exists() and not _is_glob(spec):
        if (
            _format(spec, _TEXT_SUFFIXES) is not None
            or local.is_absolute()
            or spec.startswith((".", "~"))
            or spec.endswith("/")
        ):
            raise UserError(f"file not found: {spec} ({key})")
        return [_dataset(spec, key)]
    try:
        fs, root = fsspec.core.url_to_fs(spec if "://" in spec else str(local.absolute()))
        if fs.isfile(root):
            files = [root]
        elif fs.isdir(root):
            files = _visible(fs.find(root), root, suffixes)
        else:
            files = _visible(fs.glob(root), "", suffixes) if _is_glob(spec) else []
            if not files:
                raise UserError(f"file not found: {spec} ({key})")
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{spec}: cannot be opened: {reason_of(error)} ({key})") from error
    if not files:
        raise UserError(f"{spec}: no file ending in {', '.join(suffixes)} in this folder ({key})")
    inputs = []
    for name in files:
        kind = _format(name, suffixes)
        if kind is None:
            raise UserError(
                f"{spec}: unknown format; expected a file ending in {', '.join(suffixes)} ({key})"
            )
        shown = (
            spec
            if name == root
            else fs.unstrip_protocol(name)
            if "://" in spec
            else _as_written(name, local)
        )
        inputs.append(Input(fs.unstrip_protocol(name) if "://" in spec else name, shown, kind))
    return inputs


def _format(name: str, suffixes: dict[str, Format]) -> Format | None:
    path = PurePosixPath(name.lower())
    if path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return suffixes.get(path.suffix)


def _is_glob(spec: str) -> bool:
    return any(character in spec for character in "*?[") and _DATASET_ID.fullmatch(spec) is None


def _visible(names: Sequence[str], root: str, suffixes: dict[str, Format]) -> list[str]:
    def hidden(name: str) -> bool:
        relative = (
            PurePosixPath(name.removeprefix(root))
            if root
            else PurePosixPath(PurePosixPath(name).name)
        )
        return any(part.startswith((".", "_")) for part in relative.parts)

    return sorted(
        name for name in names if not hidden(name) and _format(name, suffixes) is not None
    )


def _as_written(name: str, folder: Path) -> str:
    """Keep a relative spec relative in messages: that is what the user typed and can look up."""
    absolute = folder.absolute()
    return (
        str(folder / Path(name).relative_to(absolute))
        if Path(name).is_relative_to(absolute)
        else name
    )


def _dataset(spec: str, key: str) -> Input:
    match = _DATASET_ID.fullmatch(spec)
    if match is None:
        raise UserError(
            f"file not found: {spec}; nor is it a Hugging Face dataset id such as "
            f"org/name:config@split ({key})"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        revision = HfApi().dataset_info(match["path"], timeout=20).sha
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{spec}: neither a file here nor a Hugging Face dataset that you can read ({key})"
        ) from error
    # offline, in whichever of several libraries' ways: a copy in the local cache may still load
    except Exception:
        revision = None
    return Input(match["path"], spec, "hub", match["config"], match["split"] or "train", revision)


def reason_of(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
