"""Writes shards of a token store, and makes a store of them (see ``store`` for what is in it)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains.example import printable
from versatune_ray.domains.spec import Input
from versatune_ray.domains.store import ACCOUNTS, COLUMNS, MASK, STORE_FORMAT, TOKENS
from versatune_ray.runs.storage import push

ROWS = "{}.rows.npy"  # what columns are made of; gone when they are
_ROW = np.dtype(
    [
        ("length", "<i8"),
        ("hashes", "<u8"),
        ("prompts", "<u8"),
        ("response_tokens", "<i8"),
        ("response_bytes", "<i8"),
        ("weights", "<f4"),
        ("locations", "<i8", (2,)),
    ]
)
_CHUNK = 1 << 16  # rows that are copied at a time
_COUNTS = ("cut", "over_long_kept", "response_tokens")
_EXAMPLES = 20
_REASONS = 100
_BASE = 0x9E3779B97F4A7C15  # of the polynomial whose terms are the digests of records
_ALL = (1 << 64) - 1


class Batch(NamedTuple):
    """Records to append: ``tokens`` and ``mask`` flat over the b records, the others one entry
    (``locations``: a pair) each. ``weights``: none: 1;
    ``prompts``: none: those of ``hashes``.
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    response_bytes: NDArray[np.int64]
    locations: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    prompts: NDArray[np.uint64] | None = None


class ShardWriter:
    """Appends batches as they come, in bounded memory, to the files ``name`` of ``folder``."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._tokens = _Column(folder / TOKENS.format(name), np.dtype("<i4"))
        self._mask = _Column(folder / MASK.format(name), np.dtype("|u1"))
        self._rows = _Column(folder / ROWS.format(name), _ROW)
        self._bits: NDArray[np.bool_] = np.zeros(0, np.bool_)  # of a byte that is not full
        self._digest = 0
        self._bad: dict[str, int] = {}
        self._account: dict[str, dict[str, int]] = {kind: {} for kind in ACCOUNTS}
        self._examples: list[tuple[int, int, str]] = []
        self._counts = dict.fromkeys(_COUNTS, 0)

    def append(self, batch: Batch, cut: int = 0, over_long_kept: int = 0) -> None:
        """Add records, of which ``cut`` were shortened and ``over_long_kept`` are longer than the
        limit.
        """
        if not len(batch.lengths):
            return
        if (
            batch.lengths.min() < 1
            or batch.lengths.sum() != len(batch.tokens)
            or len(batch.mask) != len(batch.tokens)
        ):
            raise ValueError(
                "lengths must be positive and sum to the number of tokens and of mask entries"
            )
        ends = np.cumsum(batch.lengths)
        rows = np.zeros(len(ends), _ROW)
        rows["length"] = batch.lengths
        rows["response_tokens"] = np.add.reduceat(batch.mask.astype(np.int64), ends - batch.lengths)
        for name in ("hashes", "response_bytes", "locations"):
            rows[name] = getattr(batch, name)
        rows["weights"] = 1 if batch.weights is None else batch.weights
        rows["prompts"] = batch.hashes if batch.prompts is None else batch.prompts
        tokens = self._tokens.append(batch.tokens)
        self._rows.append(rows)
        bits = np.concatenate([self._bits, batch.mask])
        whole = len(bits) // 8 * 8
        self._mask.append(np.packbits(bits[:whole], bitorder="little"))
        self._bits = bits[whole:]
        self._digest = _digest(self._digest, tokens, batch.mask, ends.tolist())
        self._counts["cut"] += cut
        self._counts["over_long_kept"] += over_long_kept
        self._counts["response_tokens"] += int(rows["response_tokens"].sum())

    def reject(self, source: int, number: int, reason: str) -> None:
        """Count a bad record of input ``source`` at line or row ``number``."""
        reason = printable(reason)
        _add(self._bad, reason)
        if len(self._examples) < _EXAMPLES:
            self._examples.append((source, number, reason))

    def account(self, kind: str, name: str, count: int = 1) -> None:
        """Count under one of ``ACCOUNTS``."""
        _add(self._account[kind], printable(name), count)

    def finish(self) -> dict[str, Any]:
        """Complete the files and return what a store has to know of them, as JSON can hold it."""
        self._mask.append(np.packbits(self._bits, bitorder="little"))
        tokens, rows = self._tokens.finish(), self._rows.finish()
        self._mask.finish()
        return {
            "name": self.name,
            "records": rows,
            "tokens": tokens,
            "digest": self._digest,
            "bad": self._bad,
            "bad_examples": self._examples,
            "account": self._account,
            "counts": self._counts,
        }

    def close(self) -> None:
        for column in (self._tokens, self._mask, self._rows):
            column.file.close()


class TokenStoreWriter:
    """A store of one shard: appends batches as they come (see ``ShardWriter``) and puts the
    finished store at ``folder``.

    A context manager: leaving it normally finishes the store; leaving it by an exception, or one
    while it is finished, removes what was written.
    """

    def __init__(
        self, folder: Path, inputs: Sequence[Input] = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        self._folder, self._inputs, self._settings = folder, inputs, settings
        self._partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        self._partial.mkdir(parents=True)
        self._shard = ShardWriter(self._partial, "00000")
        self.append, self.reject = self._shard.append, self._shard.reject
        self.account = self._shard.account

    def finish(self) -> Path:
        """Complete the store, move it to its place and return that."""
        report = self._shard.finish()
        rows = self._partial / ROWS.format(report["name"])
        assemble(self._partial, [report], lambda _: rows, self._inputs, self._settings)
        rows.unlink()
        push(self._folder, self._partial)
        os.replace(self._partial, self._folder)  # noqa: PTH105 - Path.replace is documented for files only
        return self._folder

    def abort(self) -> None:
        """Remove what was written."""
        self._shard.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.abort()  # of a finished store nothing is left here


def assemble(
    folder: Path,
    reports: Iterable[Mapping[str, Any]],
    rows: Callable[[str], Path],
    inputs: Sequence[Input] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the columns and the meta file of a store, in bounded memory.

    Args:
        reports: of its shards, in order (see ``ShardWriter.finish``), with ``lines``: pairs of an
            input and how many of its lines or rows the shard has read, where later shards count
            theirs from 1.
        rows: where the rows of a shard are, by its name.
    """
    columns = {
        name: _Column(folder / f"{name}.npy", np.dtype(dtype), shape)
        for name, (dtype, shape) in COLUMNS.items()
    }
    digests = {name: hashlib.blake2b(digest_size=16) for name in COLUMNS}

    def add(name: str, values: Any) -> None:
        digests[name].update(columns[name].append(values).data)

    add("offsets", [0])
    tokens = digest = 0
    before: Counter[int] = Counter()
    bad: dict[str, int] = {}
    account: dict[str, dict[str, int]] = {kind: {} for kind in ACCOUNTS}
    examples: list[tuple[int, int, str]] = []
    counts: Counter[str] = Counter()
    shards = []
    for report in reports:
        for part in _chunks(rows(report["name"])) if report["records"] else ():
            ends = tokens + np.cumsum(part["length"])
            add("offsets", ends)
            tokens = int(ends[-1])
            for source, _ in report.get("lines", ()):
                part["locations"][part["locations"][:, 0] == source, 1] += before[source]
            for name in COLUMNS:
                if name != "offsets":
                    add(name, part[name])
        digest = (digest * pow(_BASE, report["records"], _ALL + 1) + report["digest"]) & _ALL
        for reason, count in report["bad"].items():
            _add(bad, reason, count)
        for kind, names in report["account"].items():
            for name, count in names.items():
                _add(account[kind], name, count)
        examples += [(a, b + before[a], why) for a, b, why in report["bad_examples"]]
        counts.update(report["counts"])
        before.update(dict(report.get("lines", ())))
        if report["records"]:
            shards.append([report["name"], report["records"], report["tokens"]])
    for column in columns.values():
        kept = column.finish()
    whole = "".join(digests[name].hexdigest() for name in COLUMNS if name != "locations")
    meta = {
        "format": STORE_FORMAT,
        "inputs": [source.prefix for source in inputs],
        "settings": dict(settings or {}),
        "identity": hashlib.blake2b(f"{whole}{digest}".encode(), digest_size=16).hexdigest(),
        "shards": shards,
        "read": kept + sum(bad.values()) + sum(account["left_out"].values()),
        "kept": kept,
        "bad": bad,
        "bad_examples": examples[:_EXAMPLES],
        **account,
        "tokens": tokens,
        **{name: counts[name] for name in _COUNTS},
    }
    (folder / "meta.json").write_text(
        json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8"
    )


class _Column:
    """An array in a file that grows; ``width``: of a row."""

    def __init__(self, path: Path, dtype: np.dtype[Any], width: tuple[int, ...] = ()) -> None:
        self.file = path.open("w+b")
        self._dtype, self._width, self._rows = dtype, width, 0
        self._header()

    def append(self, values: Any) -> NDArray[Any]:
        """The values as they are written."""
        array = np.ascontiguousarray(values, self._dtype).reshape(-1, *self._width)
        self.file.write(array.data)
        self._rows += len(array)
        return array

    def finish(self) -> int:
        """Complete the file and return its number of rows."""
        self._header()
        self.file.close()
        return self._rows

    def _header(self) -> None:
        """Write the .npy header for the rows so far; numpy pads it, so that a later one for more
        rows fits the same place.
        """
        descr = np.lib.format.dtype_to_descr(self._dtype)  # type: ignore[no-untyped-call]
        header = {"descr": descr, "fortran_order": False, "shape": (self._rows, *self._width)}
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, header)  # type: ignore[no-untyped-call]


def _chunks(path: Path) -> Iterator[NDArray[Any]]:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
        _, _, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
        while len(part := np.fromfile(file, dtype, _CHUNK)):
            yield part


def _digest(
    before: int, tokens: NDArray[np.int32], mask: NDArray[np.bool_], ends: Sequence[int]
) -> int:
    """That of records after others: a polynomial, so that it does not depend on how many shards
    there are.
    """
    ids, loss, start = tokens.data.cast("B"), mask.data.cast("B"), 0
    for end in ends:
        one = hashlib.blake2b(ids[4 * start : 4 * end], digest_size=8)
        one.update(loss[start:end])
        before = (before * _BASE + int.from_bytes(one.digest(), "big")) & _ALL
        start = end
    return before


def _add(counts: dict[str, int], name: str, count: int = 1) -> None:
    name = name if name in counts or len(counts) < _REASONS else "others"
    counts[name] = counts.get(name, 0) + count
