"""Source specs → concrete inputs.

A spec is a file, a folder or a glob pattern (local, or any URI that pyarrow or fsspec reads), or a
Hugging Face dataset written ``org/name``, with ``:config``, ``@split`` and ``@revision`` behind it
as far as they are needed (split: ``train`` unless given, slices as ``train[:10%]`` included; a
revision comes after the split). What exists locally or has ``://`` in it is a file; what looks like
a file but is missing is an error; the rest must be a dataset id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from versatune_ray.domains import folders
from versatune_ray.domains.remote import locate
from versatune_ray.errors import UserError, redacted

Format = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "txt", "hub"]
_RECORD_SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_TEXT_SUFFIXES: dict[str, Format] = {**_RECORD_SUFFIXES, ".txt": "txt"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_DATASET_ID = re.compile(
    r"(?P<path>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.\[\]:%+-]+))?"
    r"(@(?P<revision>[\w./-]+))?"
)


@dataclass(frozen=True)
class Input:
    """One file or one split of a hub dataset. ``path`` is absolute; ``label`` is how messages name
    it; ``note`` is what a person should know of how it was found.
    """

    path: str
    label: str
    format: Format
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    note: str = ""

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

    In folders, hidden files, those starting with ``_``, what datasets say of themselves
    (``dataset_infos.json``) and other formats are skipped; links are followed. Of a folder that
    holds several splits, as the hub stores them, only those are taken that ``key`` is for. ``note``
    names what was left. ``.txt`` files count where a folder holds nothing else, and with
    ``texts`` always. ``key`` is the configuration key named in errors. Only dataset ids touch the
    network (to pin the commit).

    Raises:
        UserError: nothing is there, the format is unknown, or the URI cannot be opened.
    """
    local = Path(spec).expanduser()
    if "://" not in spec and not local.exists() and not _is_glob(spec):
        if local.is_symlink():
            raise UserError(f"{spec}: a link to nothing ({key})")
        if (
            _format(spec, _TEXT_SUFFIXES) is not None
            or local.is_absolute()
            or spec.startswith((".", "~"))
            or spec.endswith("/")
        ):
            raise UserError(f"file not found: {spec} ({key})")
        return [_dataset(spec, key)]
    note = ""
    try:
        found = locate(spec if "://" in spec else str(local.absolute()))
        fs, root = found.fs, found.path
        if fs.isfile(root):
            files = [root]
        elif fs.isdir(root):
            files, note = _in_folder(fs, root, key, texts)
        else:
            files = _visible(fs.glob(root), "", texts) if _is_glob(root) else []
            if not files:
                raise UserError(f"file not found: {spec} ({key})")
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{spec}: cannot be opened: {reason_of(error)} ({key})") from error
    endings = ", ".join(_TEXT_SUFFIXES)
    if not files:
        raise UserError(f"{spec}: no file ending in {endings} in this folder ({key})")
    inputs = []
    for name in files:
        kind = _format(name, _TEXT_SUFFIXES)
        if kind is None:
            raise UserError(f"{spec}: unknown format; expected a file ending in {endings} ({key})")
        place = found.uri(name) if "://" in spec else name
        shown = spec if name == root else place if "://" in spec else _as_written(name, local)
        inputs.append(Input(place, redacted(shown), kind))
    inputs[0] = replace(inputs[0], note=f"{spec}: {note}" if note else "")
    return inputs


def reason_of(error: BaseException) -> str:
    """An error's own words in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _in_folder(fs: Any, root: str, key: str, texts: bool) -> tuple[list[str], str]:
    """Files of a folder that hold what ``key`` is for, and which others were left."""
    side = key.rpartition(".")[2]
    if saved := folders.saved_files(fs, root):
        return folders.of_split(saved, root, side)
    there = folders.walk(fs, root)
    names = _visible(there, root, texts)
    kept, note = folders.of_split(names, root, side)
    return kept, "; ".join(filter(None, (note, folders.unread(there, names, root))))


def _format(name: str, suffixes: dict[str, Format]) -> Format | None:
    path = PurePosixPath(name.lower())
    if path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return suffixes.get(path.suffix)


def _is_glob(spec: str) -> bool:
    return any(character in spec for character in "*?[") and _DATASET_ID.fullmatch(spec) is None


def _visible(names: Sequence[str], root: str, texts: bool) -> list[str]:
    def hidden(name: str) -> bool:
        path = PurePosixPath(name.removeprefix(root)) if root else PurePosixPath(name)
        parts = path.parts if root else path.parts[-1:]
        return path.name in folders.METADATA or any(part.startswith((".", "_")) for part in parts)

    shown = sorted(name for name in names if not hidden(name))
    with_texts = [name for name in shown if _format(name, _TEXT_SUFFIXES) is not None]
    records = [name for name in shown if _format(name, _RECORD_SUFFIXES) is not None]
    return with_texts if texts else records or with_texts


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
            f"org/name:config@split or org/name@split@revision ({key})"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    asked: dict[str, Any] = {} if match["revision"] is None else {"revision": match["revision"]}
    try:
        revision = HfApi().dataset_info(match["path"], timeout=20, **asked).sha
    except RevisionNotFoundError as error:
        raise UserError(
            f"{spec}: the dataset has no revision {match['revision']} ({key})"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{spec}: neither a file here nor a Hugging Face dataset that you can read ({key})"
        ) from error
    # offline, in whichever of several libraries' ways: a copy in the local cache may still load
    except Exception:
        revision = match["revision"] or _commit_here(match["path"])
    return Input(match["path"], spec, "hub", match["config"], match["split"] or "train", revision)


def _commit_here(name: str) -> str | None:
    """The commit of the copy in the hub's local cache: without it, what a failed look-up gives
    today and another copy tomorrow would be the same input.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    file = Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / "main"
    return file.read_text(encoding="utf-8").strip() or None if file.is_file() else None
