"""Source specs → concrete inputs → located records.

A spec is a file, a folder or a glob pattern (local, or any URI that fsspec reads), or a Hugging
Face dataset written ``org/name``, ``org/name:config`` or ``org/name:config@split`` (split:
``train`` unless given). What exists locally or has ``://`` in it is a file; what looks like a file
but is missing is an error; the rest must be a dataset id.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, NamedTuple, cast

import fsspec

from versatune_ray.errors import UserError, redacted
from versatune_ray.runs.storage import fetch

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


class Located(NamedTuple):
    """A record and where it stands. Exactly one of ``record`` and ``problem`` is set."""

    number: int
    location: str
    record: dict[str, Any] | None
    problem: str | None


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
        raise UserError(f"{spec}: cannot be opened: {_one_line(error)} ({key})") from error
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
        place = fs.unstrip_protocol(name) if "://" in spec else name
        inputs.append(Input(place, redacted(shown), kind))
    return inputs


def read_records(source: Input) -> Iterator[Located]:
    """Stream the records of one input, one item per record; empty lines are skipped.

    A record that is broken (bad JSON, invalid UTF-8, no object) comes with ``problem`` instead of
    ``record``.

    Raises:
        UserError: the input as a whole cannot be read, so that the number of lost records is
            unknown.
    """
    if source.format == "hub":
        yield from _read_hub(source)
        return
    reader = {
        "jsonl": _read_lines,
        "json": _read_json,
        "csv": _read_csv,
        "tsv": _read_csv,
        "parquet": _read_parquet,
    }.get(source.format)
    if reader is None:
        raise UserError(f"{source.label}: a text file holds no records")
    try:
        with _open(source) as file:
            yield from reader(file, source)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{source.label}: cannot be read: {_one_line(error)}") from error


def read_texts(specs: Sequence[str], key: str = "base.corpora") -> Iterator[tuple[str, str]]:
    """Yield ``(location, text)``: a ``.txt`` file is one text, a record gives its ``text`` field.

    Raises:
        UserError: with file and line, where a text is missing, empty or broken.
    """
    for source in (source for spec in specs for source in expand(spec, key, texts=True)):
        if source.format == "txt":
            try:
                with _open(source) as file:
                    text = file.read().decode("utf-8-sig")
            except (OSError, EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{source.label}: cannot be read: {_one_line(error)} ({key})"
                ) from error
            if not text.strip():
                raise UserError(f"{source.label}: the file is empty ({key})")
            yield source.label, text
            continue
        for item in read_records(source):
            value = item.record.get("text") if item.record else None
            if not isinstance(value, str) or not value.strip():
                raise UserError(
                    f"{item.location}: {item.problem or 'no `text` field with text in it'} ({key})"
                )
            yield item.location, value


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
                with fsspec.open(source.path, "rb") as file:
                    content = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
            except OSError as error:
                raise UserError(f"{source.label}: cannot be read: {_one_line(error)}") from error
        total.update(f"{source.format} {content}\n".encode())
    return total.hexdigest()


def _open(source: Input) -> Any:
    return fsspec.open(fetch(source.path), "rb", compression="infer")


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
        revision = _commit_here(match["path"])
    return Input(match["path"], spec, "hub", match["config"], match["split"] or "train", revision)


def _commit_here(name: str) -> str | None:
    """The commit of the copy in the hub's local cache: without it, what a failed look-up gives
    today and another copy tomorrow would be the same input.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    file = Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / "main"
    return file.read_text(encoding="utf-8").strip() or None if file.is_file() else None


def _read_hub(source: Input) -> Iterator[Located]:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.path, source.config, split=source.split, revision=source.revision, streaming=True
        )
        for number, row in enumerate(rows, 1):
            yield Located(number, source.location(number), dict(row), None)
    # the hub's errors come from several libraries and share no base class
    except Exception as error:
        raise UserError(
            f"{source.label}: no such file, and as a Hugging Face dataset it cannot be loaded: "
            f"{_one_line(error)}"
        ) from error


def _read_lines(file: IO[bytes], source: Input) -> Iterator[Located]:
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield Located(number, source.location(number), *_parse(line))


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str | None]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, f"invalid UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        return None, f"broken JSON: {error.msg} at column {error.colno}"
    # numbers of thousands of digits, thousands of nested lists
    except (ValueError, RecursionError) as error:
        return None, f"broken JSON: {_one_line(error)}"
    return _record(value)


def _record(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    if isinstance(value, dict):
        return value, None
    return None, f"a record must be an object with fields, found {_json_type(value)}"


def _read_json(file: IO[bytes], source: Input) -> Iterator[Located]:
    """A list of records or an object holding one list. One object per line is common under this
    suffix, so it counts too.
    """
    content = file.read().removeprefix(b"\xef\xbb\xbf")
    lines = content.split(b"\n")
    rows: Any
    first, _ = _parse(lines[0])
    if first is not None and any(line.strip() for line in lines[1:]):
        for number, line in enumerate((line for line in lines if line.strip()), 1):
            yield Located(number, source.location(number), *_parse(line))
        return
    try:
        rows = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        position = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source.label}:{position}: invalid UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{source.label}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source.label}: broken JSON: {_one_line(error)}") from error
    if isinstance(rows, dict):
        lists = [value for value in rows.values() if isinstance(value, list)]
        rows = lists[0] if len(lists) == 1 else None
    if not isinstance(rows, list):
        raise UserError(
            f"{source.label}: expected a list of records, or one object holding a single list of "
            f"them"
        )
    for number, value in enumerate(rows, 1):
        yield Located(number, source.location(number), *_record(value))


def _read_csv(file: IO[bytes], source: Input) -> Iterator[Located]:
    csv.field_size_limit(sys.maxsize)
    # surrogateescape carries invalid bytes up to their record instead of ending the file at the
    # first one.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter="\t" if source.format == "tsv" else ",")
    header: list[str] | None = None
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Located(number, source.location(number), None, f"broken CSV: {error}")
            continue
        if not row:
            continue
        if header is None:
            header = row
            continue
        problem = None
        if len(row) != len(header):
            problem = f"{len(row)} fields where the header has {len(header)}"
        elif not _is_unicode("".join(row)):
            problem = "invalid UTF-8"
        record = None if problem else dict(zip(header, row, strict=True))
        yield Located(number, source.location(number), record, problem)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(file: IO[bytes], source: Input) -> Iterator[Located]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        for batch in ParquetFile(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Located(number, source.location(number), row, None)
    except ArrowException as error:
        raise OSError(_one_line(error)) from error


def _json_type(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
