"""The token store of one list of sources: flat arrays on disk, written once, memory-mapped by every
worker; tokens in shards, which a machine brings as it needs them.

| file | content |
|---|---|
| ``NNNNN.tokens.npy`` | int32: a shard's records one after another |
| ``NNNNN.mask.npy`` | a bit of each of its tokens, the lowest of a byte first: set where a token
carries loss |
| ``offsets.npy`` | int64, n + 1: record i is ``[offsets[i], offsets[i + 1])`` of all tokens |
| ``hashes.npy`` | uint64, n: content hash, equal for duplicates |
| ``prompts.npy`` | uint64, n: hash of what is asked, equal for records that ask the same |
| ``response_tokens.npy``, ``response_bytes.npy`` | int64, n: tokens that carry loss, and UTF-8
bytes of the answers they spell |
| ``locations.npy`` | int64, n × 2: input (index into ``inputs`` of the meta file) and line or row |
| ``weights.npy`` | float32, n: what a record's loss counts, 1 unless it says otherwise |
| ``meta.json`` | inputs, settings, ``shards`` (name, records, tokens), ``identity`` (see ``keys``;
it does not depend on the shards), and the counts: ``read = kept + Σ bad + Σ left_out``; ``cut`` and
``over_long_kept`` are part of ``kept``; a text that is cut into rows counts once for each;
``shapes`` and ``unused_fields`` count records |

A folder that exists is complete: it is written beside its place and moved there in one step.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains.spec import Input
from versatune_ray.runs.names import inside
from versatune_ray.runs.storage import fetch, let_go, take, take_part
from versatune_ray.settings.location import is_mirrored

# part of every cache key: raise it whenever the same records would give other files
STORE_FORMAT = 3

_READERS = 16  # threads that wait for a storage
TOKENS, MASK = "{}.tokens.npy", "{}.mask.npy"  # by the name of a shard
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
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
        self._open: dict[tuple[str, int], NDArray[Any]] = {}
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
        shard, start, end = self._where(index)
        return self._mapped(TOKENS, shard)[start:end]

    def mask(self, index: int) -> NDArray[np.bool_]:
        """True where a token of record ``index`` carries loss, bool[L]."""
        shard, start, end = self._where(index)
        packed = self._mapped(MASK, shard)[start >> 3 : (end + 7) >> 3]
        bits = np.unpackbits(packed, bitorder="little")[start & 7 :][: end - start]
        return bits.view(np.bool_)

    def run(self, first: int, most: int) -> tuple[int, NDArray[np.int32]]:
        """The tokens of records from ``first`` on, int32, and the record after them: as many whole
        records of one shard as ``most`` tokens have room for, at least one.
        """
        shard, start, _ = self._where(first)
        there = self._firsts[shard + 1] if shard + 1 < len(self._firsts) else len(self)
        fits = int(np.searchsorted(self.offsets, self.offsets[first] + most, "right")) - 1
        last = min(there, max(first + 1, fits))
        length = int(self.offsets[last] - self.offsets[first])
        return last, self._mapped(TOKENS, shard)[start : start + length]

    def shards_of(self, records: NDArray[Any]) -> NDArray[np.int64]:
        """The shard that each of some records lies in, int64[n]."""
        found: NDArray[np.int64] = np.searchsorted(self._firsts, records, side="right") - 1
        return found

    @property
    def is_fetched(self) -> bool:
        """Whether shards are brought from a storage behind a URI."""
        return is_mirrored(self.folder)

    def bring(self, shard: int) -> None:
        """Bring a shard to this machine, before it is read."""
        for file in (TOKENS, MASK):
            take(self._file(file, shard))

    def drop(self, shard: int) -> None:
        """Free the disk of a shard that was brought; it is brought again when it is read."""
        for file in (TOKENS, MASK):
            self._open.pop((file, shard), None)
            let_go(self._file(file, shard))

    def copy(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """``tokens`` and ``mask`` of record ``index`` in memory, without bringing its shard."""
        shard, start, end = self._where(index)
        first, last = start >> 3, (end + 7) >> 3
        tokens = self._part(TOKENS, shard, 4 * start, 4 * (end - start)).view("<i4")
        bits = np.unpackbits(self._part(MASK, shard, first, last - first), bitorder="little")
        return tokens, bits[start & 7 :][: end - start].view(np.bool_)

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
    def _locations(self) -> NDArray[np.int64]:
        return self._load("locations")

    @cached_property
    def _firsts(self) -> list[int]:
        """The first record of each shard."""
        return [0, *accumulate(records for _, records, _ in self.meta["shards"])][:-1]

    @cached_property
    def _begins(self) -> list[int]:
        """The first token of each shard."""
        return [0, *accumulate(tokens for _, _, tokens in self.meta["shards"])][:-1]

    def _where(self, index: int) -> tuple[int, int, int]:
        """The shard of a record, and its tokens ``[start, end)`` there."""
        shard = bisect_right(self._firsts, index) - 1
        begin = self._begins[shard]
        return shard, int(self.offsets[index]) - begin, int(self.offsets[index + 1]) - begin

    def _mapped(self, file: str, shard: int) -> NDArray[Any]:
        found = self._open.get((file, shard))
        if found is None:
            found = self._open[file, shard] = mapped(take(self._file(file, shard)))
        return found

    def _file(self, file: str, shard: int) -> Path:
        return inside(self.folder, file.format(self.meta["shards"][shard][0]))

    def _part(self, file: str, shard: int, start: int, size: int) -> NDArray[np.uint8]:
        """Bytes of an array's data."""
        place = self._file(file, shard)
        head = 10 + int.from_bytes(take_part(place, 8, 2), "little")  # .npy of version 1
        return np.frombuffer(take_part(place, head + start, size), np.uint8)

    def _load(self, name: str) -> NDArray[Any]:
        return mapped(self.folder / f"{name}.npy")


def mapped(file: Path) -> NDArray[Any]:
    """The array of a .npy file, read-only, whose pages all processes of a machine share."""
    found: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return found.view(np.ndarray)  # slicing np.memmap itself costs several times as much


class Records:
    """Some records of a store, in the order of ``indices`` (integers [n], perhaps mapped from a
    file). Pickles as path and indices.
    """

    def __init__(
        self,
        store: TokenStore,
        indices: NDArray[Any],
        columns: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        """``columns``: some of those below where they are at hand, such as mapped from files, so
        that they need not be taken from the store.
        """
        self.store = store
        self.indices = indices
        self._columns = dict(columns or {})

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """``(tokens int32[L], mask bool[L])`` of the record at ``index`` of this view."""
        record = int(self.indices[index])
        return self.store.tokens(record), self.store.mask(record)

    def __reduce__(self) -> tuple[type[Records], tuple[TokenStore, NDArray[Any]]]:
        return type(self), (self.store, self.indices)

    def location(self, index: int) -> str:
        """Where the record at ``index`` of this view was read."""
        return self.store.location(int(self.indices[index]))

    @property
    def shards(self) -> NDArray[np.int64]:
        """The shard of the store that each record lies in, in view order."""
        return self.store.shards_of(self.indices)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per record, in view order."""
        return self._column("lengths")

    @property
    def response_tokens(self) -> NDArray[np.int64]:
        """Tokens that carry loss per record, in view order."""
        return self._column("response_tokens")

    @property
    def response_bytes(self) -> NDArray[np.int64]:
        """UTF-8 bytes of the answers per record, in view order."""
        return self._column("response_bytes")

    @property
    def weights(self) -> NDArray[np.float32]:
        """What the loss of each record counts, in view order."""
        return self._column("weights")

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """Content hashes per record, in view order."""
        return self._column("hashes")

    def _column(self, name: str) -> NDArray[Any]:
        if name not in self._columns:
            self._columns[name] = getattr(self.store, name)[self.indices]
        return self._columns[name]


class CopiedRecords(Records):
    """Few records out of all shards: they are read once, all of them when the first is asked for,
    and kept in memory, so that no shard needs to be at hand.
    """

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        return self._copies[index]

    @cached_property
    def _copies(self) -> list[tuple[NDArray[np.int32], NDArray[np.bool_]]]:
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self.store.copy, self.indices.tolist()))
