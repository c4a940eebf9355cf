"""The token store of one list of sources: flat arrays on disk, written once, memory-mapped by every
worker.

| file | content |
|---|---|
| ``tokens.npy``, ``mask.npy`` | int32 and bool, all records one after another; the mask is true
where a token carries loss |
| ``offsets.npy`` | int64, n + 1: record i is ``[offsets[i], offsets[i + 1])`` |
| ``hashes.npy`` | uint64, n: content hash, equal for duplicates |
| ``prompts.npy`` | uint64, n: hash of what is asked, equal for records that ask the same |
| ``response_tokens.npy``, ``response_bytes.npy`` | int64, n: tokens that carry loss, and UTF-8
bytes of the answers they spell |
| ``locations.npy`` | int64, n × 2: input (index into ``inputs`` of the meta file) and line or row |
| ``weights.npy`` | float32, n: what a record's loss counts, 1 unless it says otherwise |
| ``meta.json`` | inputs, settings, and the counts: ``read = kept + Σ bad + Σ left_out``; ``cut``
and ``over_long_kept`` are part of ``kept``; a text that is cut into rows counts once for each;
``shapes`` and ``unused_fields`` count records |

A folder that exists is complete: it is written beside its place and moved there in one step.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains.example import printable
from versatune_ray.domains.spec import Input
from versatune_ray.runs.storage import fetch, push

# part of every cache key: raise it whenever the same records would give other files
STORE_FORMAT = 2

_COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "tokens": ("<i4", ()),
    "mask": ("|b1", ()),
    "offsets": ("<i8", ()),
    "hashes": ("<u8", ()),
    "prompts": ("<u8", ()),
    "response_tokens": ("<i8", ()),
    "response_bytes": ("<i8", ()),
    "weights": ("<f4", ()),
    "locations": ("<i8", (2,)),
}
ACCOUNTS = ("shapes", "unused_fields", "missing_columns", "left_out")
_EXAMPLES = 20
_REASONS = 100


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


class TokenStoreWriter:
    """Appends batches as they come, in bounded memory, and puts the finished store at ``folder``.

    A context manager: leaving it normally finishes the store, leaving it by an exception removes
    what was written.
    """

    def __init__(
        self, folder: Path, inputs: Sequence[Input] = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        self._folder = folder
        self._meta: dict[str, Any] = {
            "format": STORE_FORMAT,
            "inputs": [source.prefix for source in inputs],
            "settings": dict(settings or {}),
        }
        self._partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        self._partial.mkdir(parents=True)
        self._files: dict[str, BinaryIO] = {
            name: (self._partial / f"{name}.npy").open("w+b") for name in _COLUMNS
        }
        self._rows = dict.fromkeys(_COLUMNS, 0)
        for name in _COLUMNS:
            self._header(name)
        self._append("offsets", np.zeros(1, np.int64))
        self._bad: dict[str, int] = {}
        self._account: dict[str, dict[str, int]] = {kind: {} for kind in ACCOUNTS}
        self._examples: list[tuple[int, int, str]] = []
        self._counts = {"cut": 0, "over_long_kept": 0, "response_tokens": 0}

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
        response_tokens = np.add.reduceat(batch.mask.astype(np.int64), ends - batch.lengths)
        self._append("offsets", ends + self._rows["tokens"])
        self._append("response_tokens", response_tokens)
        for name in ("tokens", "mask", "hashes", "response_bytes", "locations"):
            self._append(name, getattr(batch, name))
        self._append("weights", np.ones(len(ends)) if batch.weights is None else batch.weights)
        self._append("prompts", batch.hashes if batch.prompts is None else batch.prompts)
        self._counts["cut"] += cut
        self._counts["over_long_kept"] += over_long_kept
        self._counts["response_tokens"] += int(response_tokens.sum())

    def reject(self, source: int, number: int, reason: str) -> None:
        """Count a bad record of input ``source`` at line or row ``number``."""
        reason = printable(reason)
        _add(self._bad, reason)
        if len(self._examples) < _EXAMPLES:
            self._examples.append((source, number, reason))

    def account(self, kind: str, name: str, count: int = 1) -> None:
        """Count under one of ``ACCOUNTS``."""
        _add(self._account[kind], printable(name), count)

    def finish(self) -> Path:
        """Complete the store, move it to its place and return that."""
        for name in _COLUMNS:
            self._header(name)
        self._close()
        kept = self._rows["hashes"]
        meta = self._meta | {
            "read": kept + sum(self._bad.values()) + sum(self._account["left_out"].values()),
            "kept": kept,
            "bad": self._bad,
            "bad_examples": self._examples,
            **self._account,
            "tokens": self._rows["tokens"],
            **self._counts,
        }
        (self._partial / "meta.json").write_text(
            json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8"
        )
        push(self._folder, self._partial)
        os.replace(self._partial, self._folder)  # noqa: PTH105 - Path.replace is documented for files only
        return self._folder

    def abort(self) -> None:
        """Remove what was written."""
        self._close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()

    def _header(self, name: str) -> None:
        """Write the .npy header for the rows so far; numpy pads it, so that a later one for more
        rows fits the same place.
        """
        dtype, row = _COLUMNS[name]
        header = {"descr": dtype, "fortran_order": False, "shape": (self._rows[name], *row)}
        self._files[name].seek(0)
        np.lib.format.write_array_header_1_0(self._files[name], header)  # type: ignore[no-untyped-call]

    def _append(self, name: str, values: NDArray[Any]) -> None:
        dtype, row = _COLUMNS[name]
        array = np.ascontiguousarray(values, dtype).reshape(-1, *row)
        self._files[name].write(array.data)
        self._rows[name] += len(array)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()


def _add(counts: dict[str, int], name: str, count: int = 1) -> None:
    name = name if name in counts or len(counts) < _REASONS else "others"
    counts[name] = counts.get(name, 0) + count


class TokenStore:
    """A finished store, opened read-only. Pickles as its path: each process maps the files itself,
    its machine fetches them once.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = fetch(Path(folder))
        self.meta: dict[str, Any] = json.loads(
            (self.folder / "meta.json").read_text(encoding="utf-8")
        )
        if self.meta["format"] != STORE_FORMAT:
            raise ValueError(
                f"{self.folder}: token store of format {self.meta['format']}, expected "
                f"{STORE_FORMAT}"
            )

    def __len__(self) -> int:
        return int(self.meta["kept"])

    def __reduce__(self) -> tuple[type[TokenStore], tuple[Path]]:
        return TokenStore, (self.folder,)

    def tokens(self, index: int) -> NDArray[np.int32]:
        """Token ids of record ``index``, int32[L], a view of the mapped file."""
        offsets = self.offsets
        return self.flat_tokens[offsets[index] : offsets[index + 1]]

    def mask(self, index: int) -> NDArray[np.bool_]:
        """True where a token of record ``index`` carries loss, bool[L], a view of the mapped
        file.
        """
        offsets = self.offsets
        return self._mask[offsets[index] : offsets[index + 1]]

    @cached_property
    def inputs(self) -> NDArray[np.int64]:
        """Which input each record was read from, int64[n]."""
        return self._locations[:, 0]

    def location(self, index: int) -> str:
        """``file:line`` or ``file#row`` of record ``index``, the file as it was named when the
        store was written.
        """
        source, number = self._locations[index]
        return f"{self.meta['inputs'][source]}{number}"

    def bad_examples(self, inputs: Sequence[Input] | None = None) -> list[str]:
        """The first bad records as ``file:line: reason``, with the names of today's ``inputs``
        where they are given.
        """
        names = self.meta["inputs"] if inputs is None else [source.prefix for source in inputs]
        return [
            f"{names[source]}{number}: {reason}"
            for source, number, reason in self.meta["bad_examples"]
        ]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        return self._load("offsets")

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each record, int64[n]."""
        return np.diff(self.offsets)

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        return self._load("hashes")

    @cached_property
    def response_tokens(self) -> NDArray[np.int64]:
        """Tokens of each record that carry loss, int64[n]."""
        return self._load("response_tokens")

    @cached_property
    def response_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of each record's answers, int64[n]."""
        return self._load("response_bytes")

    @cached_property
    def prompts(self) -> NDArray[np.uint64]:
        """What each record asks, as a hash, uint64[n]: see ``example.prompt_key``."""
        return self._load("prompts")

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """What the loss of each record counts, float32[n]."""
        return self._load("weights")

    @cached_property
    def flat_tokens(self) -> NDArray[np.int32]:
        """The tokens of all records, one after another, int32."""
        return self._load("tokens")

    @cached_property
    def _mask(self) -> NDArray[np.bool_]:
        return self._load("mask")

    @cached_property
    def _locations(self) -> NDArray[np.int64]:
        return self._load("locations")

    def _load(self, name: str) -> NDArray[Any]:
        mapped: NDArray[Any] = np.load(
            self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False
        )
        return mapped.view(np.ndarray)  # slicing np.memmap itself costs several times as much


class Records:
    """Some records of a store, in the order of ``indices`` (int64[n]). Pickles as path and
    indices.
    """

    def __init__(self, store: TokenStore, indices: NDArray[np.int64]) -> None:
        self.store = store
        self.indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """``(tokens int32[L], mask bool[L])`` of the record at ``index`` of this view, as views of
        the mapped files.
        """
        record = int(self.indices[index])
        return self.store.tokens(record), self.store.mask(record)

    def __reduce__(self) -> tuple[type[Records], tuple[TokenStore, NDArray[np.int64]]]:
        return Records, (self.store, self.indices)

    def location(self, index: int) -> str:
        """Where the record at ``index`` of this view was read."""
        return self.store.location(int(self.indices[index]))

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per record, in view order."""
        return self.store.lengths[self.indices]

    @cached_property
    def response_tokens(self) -> NDArray[np.int64]:
        """Tokens that carry loss per record, in view order."""
        return self.store.response_tokens[self.indices]

    @cached_property
    def response_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of the answers per record, in view order."""
        return self.store.response_bytes[self.indices]

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """What the loss of each record counts, in view order."""
        return self.store.weights[self.indices]

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """Content hashes per record, in view order."""
        return self.store.hashes[self.indices]
