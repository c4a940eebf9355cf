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
| ``meta.json`` | inputs, settings, ``identity`` (see ``keys``), and the counts: ``read = kept +
Σ bad + Σ left_out``; ``cut`` and ``over_long_kept`` are part of ``kept``; a text that is cut into
rows counts once for each; ``shapes`` and ``unused_fields`` count records |

A folder that exists is complete: it is written beside its place and moved there in one step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains.spec import Input
from versatune_ray.runs.storage import fetch

# part of every cache key: raise it whenever the same records would give other files
STORE_FORMAT = 2

COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
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
ACCOUNTS = ("shapes", "unused_fields", "missing_columns", "left_out", "template_drops")


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
