"""Writes a token store (see ``store`` for what is in it)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains.example import printable
from versatune_ray.domains.spec import Input
from versatune_ray.domains.store import ACCOUNTS, COLUMNS, STORE_FORMAT
from versatune_ray.runs.storage import push

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
            name: (self._partial / f"{name}.npy").open("w+b") for name in COLUMNS
        }
        self._rows = dict.fromkeys(COLUMNS, 0)
        self._digests = {name: hashlib.blake2b(digest_size=16) for name in COLUMNS}
        for name in COLUMNS:
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
        for name in COLUMNS:
            self._header(name)
        self._close()
        kept = self._rows["hashes"]
        meta = self._meta | {
            "identity": self._identity(),
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

    def _identity(self) -> str:
        """A digest of all records, but for where they were read."""
        columns = [name for name in COLUMNS if name != "locations"]
        whole = "".join(self._digests[name].hexdigest() for name in columns)
        return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()

    def _header(self, name: str) -> None:
        """Write the .npy header for the rows so far; numpy pads it, so that a later one for more
        rows fits the same place.
        """
        dtype, row = COLUMNS[name]
        header = {"descr": dtype, "fortran_order": False, "shape": (self._rows[name], *row)}
        self._files[name].seek(0)
        np.lib.format.write_array_header_1_0(self._files[name], header)  # type: ignore[no-untyped-call]

    def _append(self, name: str, values: NDArray[Any]) -> None:
        dtype, row = COLUMNS[name]
        array = np.ascontiguousarray(values, dtype).reshape(-1, *row)
        self._files[name].write(array.data)
        self._digests[name].update(array.data)
        self._rows[name] += len(array)

    def _close(self) -> None:
        for file in self._files.values():
            file.close()


def _add(counts: dict[str, int], name: str, count: int = 1) -> None:
    name = name if name in counts or len(counts) < _REASONS else "others"
    counts[name] = counts.get(name, 0) + count
