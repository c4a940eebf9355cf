"""Records that say nearly what another says, of all domains together: MinHash over runs of five
tokens (Broder 1997, by ``datasketch``), of which bands find who might resemble whom (Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3), and the runs themselves say whether.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains.contamination import grams
from versatune_ray.domains.keys import identity
from versatune_ray.domains.loading import SIMILAR, DomainPaths
from versatune_ray.domains.store import TokenStore
from versatune_ray.runs.cache import cached

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT = 1
_RUN = 5  # tokens
_PERMUTATIONS = 128
# of what is looked at in vain, which costs time only as all are compared, and of what is missed
_WEIGHTS = (0.1, 0.9)
_BLOCK = 1 << 14  # records of a task
_FEW = 4 * _BLOCK  # records that this process is through with before Ray Data has begun

Bands = NDArray[np.uint64]


def mark(
    paths: Mapping[str, DomainPaths], similarity: float | None, cache: Path, distributed: bool
) -> dict[str, DomainPaths]:
    """Say of all training records which are to be left out: of records that resemble each other
    one stays, the one of the lowest content hash, and none where one of them is in a store of
    validation records.

    Args:
        similarity: of two records' runs of tokens, those of both over those of either (Jaccard);
            None: nothing is looked for.
    """
    if similarity is None:
        return dict(paths)
    held_out = [path.validation for path in paths.values() if path.validation is not None]
    folders = list(dict.fromkeys([path.train for path in paths.values()] + held_out))
    protected = [folder in held_out for folder in folders]
    known = [*zip(map(identity, folders), protected, strict=True)]
    parts = {"format": _FORMAT, "similarity": similarity, "stores": known}

    def build(work: Path) -> None:
        stores = [TokenStore(folder) for folder in folders]
        for number, marks in enumerate(similar(stores, protected, similarity, distributed)):
            (work / str(number)).mkdir()
            np.save(work / str(number) / SIMILAR, marks)

    found, _ = cached(cache, "near-duplicates", parts, build)
    return {
        name: path._replace(similar=found / str(folders.index(path.train)))
        for name, path in paths.items()
    }


def similar(
    stores: Sequence[TokenStore], protected: Sequence[bool], similarity: float, distributed: bool
) -> list[NDArray[np.bool_]]:
    """Of each store's records which are left out, bool [n]; ``protected`` ones never are."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sizes = [len(store) for store in stores]
    total = sum(sizes)
    bands = np.concatenate(list(_bands(stores, similarity, distributed and total > _FEW)))
    pairs = _alike(stores, np.cumsum([0, *sizes]), _candidates(bands), similarity)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (total, total))
    _, group = connected_components(graph, directed=False)
    safe = np.repeat(np.asarray(protected, dtype=bool), sizes)
    hashes = np.concatenate([store.hashes for store in stores])
    # of each group the first stays: one that is safe, or the lowest hash
    order = np.lexsort((hashes, ~safe, group))
    marks = np.ones(total, dtype=np.bool_)
    marks[order[np.flatnonzero(np.diff(group[order], prepend=-1))]] = False
    return np.split(marks & ~safe, np.cumsum(sizes)[:-1])


def _bands(stores: Sequence[TokenStore], similarity: float, distributed: bool) -> Iterator[Bands]:
    """Of all records in order, blocks of uint64 [n, bands]; two that have a band in common may be
    similar.
    """
    blocks = [
        (store.folder, start, min(start + _BLOCK, len(store)))
        for store in stores
        for start in range(0, len(store), _BLOCK)
    ]
    if not distributed:
        yield np.zeros((0, _layout(similarity)[0]), np.uint64)
        for block in blocks:
            yield _signed(*block, similarity)
        return
    import ray.data

    rows = [{"folder": str(folder), "start": start, "end": end} for folder, start, end in blocks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    dataset.context.execution_options.preserve_order = True
    signed = dataset.map_batches(
        _sign, batch_size=1, batch_format="pyarrow", fn_kwargs={"similarity": similarity}
    )
    for table in signed.iter_batches(batch_size=None, batch_format="pyarrow"):
        for content in table["bands"].to_pylist():
            yield np.frombuffer(content, np.uint64).reshape(-1, _layout(similarity)[0])


def _sign(table: pa.Table, similarity: float) -> pa.Table:
    """UDF: blocks of records → their bands."""
    found = [
        _signed(Path(row["folder"]), row["start"], row["end"], similarity)
        for row in table.to_pylist()
    ]
    return type(table).from_pydict({"bands": [one.tobytes() for one in found]})


def _signed(folder: Path, start: int, end: int, similarity: float) -> Bands:
    """The bands of some records; of one without a run of five tokens those of none other."""
    from datasketch import MinHash

    store, (bands, rows) = TokenStore(folder), _layout(similarity)
    empty = MinHash(_PERMUTATIONS, seed=1, hashfunc=int)
    values = np.zeros((end - start, bands, rows), np.int64)
    for place, record in enumerate(range(start, end)):
        runs = _runs(store, record)
        sketch = empty.copy()
        sketch.update_batch((runs >> np.uint64(32)).tolist())
        values[place] = sketch.hashvalues[: bands * rows].reshape(bands, rows)
        if not runs.size:
            values[place] = -1 - record
    # what is alike in all rows of a band, and in the number of the band, is alike in one number
    numbered = np.concatenate(
        [np.broadcast_to(np.arange(bands)[:, None], (end - start, bands, 1)), values], axis=2
    )
    return grams(numbered.reshape(-1), rows + 1)[:: rows + 1].reshape(end - start, bands)


@lru_cache
def _layout(similarity: float) -> tuple[int, int]:
    """Bands of a signature, and rows of each."""
    from datasketch import MinHashLSH

    found = MinHashLSH(similarity, _PERMUTATIONS, weights=_WEIGHTS)
    return int(found.b), int(found.r)


def _candidates(bands: Bands) -> NDArray[np.int64]:
    """Pairs of records with a band in common, int64 [pairs, 2]: each with the next of them, and
    with the first.
    """
    found = [np.zeros((0, 2), np.int64)]
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        same = band[order[1:]] == band[order[:-1]]
        first = np.maximum.accumulate(np.where(np.append(False, same), 0, np.arange(len(order))))
        later = np.flatnonzero(same) + 1
        found += [np.stack([order[one], order[later]], axis=1) for one in (later - 1, first[later])]
    return np.unique(np.concatenate(found), axis=0)


def _alike(
    stores: Sequence[TokenStore],
    begins: NDArray[np.int64],
    pairs: NDArray[np.int64],
    similarity: float,
) -> NDArray[np.int64]:
    """Those of the pairs whose runs are as similar as that."""

    @lru_cache(4096)
    def runs(record: int) -> NDArray[np.uint64]:
        store = int(np.searchsorted(begins, record, "right")) - 1
        return np.unique(_runs(stores[store], record - int(begins[store])))

    def jaccard(one: int, other: int) -> float:
        first, second = runs(one), runs(other)
        both = np.intersect1d(first, second, assume_unique=True).size
        return both / max(1, first.size + second.size - both)

    kept = [jaccard(one, other) >= similarity for one, other in pairs.tolist()]
    found: NDArray[np.int64] = pairs[np.array(kept, dtype=bool)]
    return found


def _runs(store: TokenStore, record: int) -> NDArray[np.uint64]:
    """A hash of every run of five tokens of a record."""
    return grams(store.tokens(record).astype(np.int64), _RUN)
