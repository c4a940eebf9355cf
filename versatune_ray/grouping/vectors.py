"""The heap's vectors, by Ray Data: kept in parts as they come, so that a killed job makes the
missing ones only, and another number of groups makes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
from numpy.typing import NDArray

from versatune_ray.grouping.clusters import Groups, Vectors
from versatune_ray.grouping.embedding import Embed, HiddenStates, Sentences, Words
from versatune_ray.grouping.heap import rows_of
from versatune_ray.runs.cache import cached
from versatune_ray.runs.parts import finished_ids, write_parts
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.models import model_fingerprint
from versatune_ray.runtime.progress import engine_bar
from versatune_ray.settings.grouping import Group

Ids = NDArray[np.int64]

VECTORS = {"id": pa.int64(), "vector": pa.list_(pa.float32()), "failed": pa.bool_()}
_MOST_PARTS = 2000


class _Embedder:
    """UDF of Ray Data, loaded once per worker."""

    def __init__(self, make: Any):
        self._embed: Embed = make()

    def __call__(self, batch: pa.Table) -> pa.Table:
        vectors = self._embed(batch["text"].to_pylist())
        return pa.table(
            {
                "id": batch["id"],
                "vector": pa.array(list(vectors), pa.list_(pa.float32())),
                "failed": np.zeros(batch.num_rows, bool),
            }
        )


def embed(
    heap: Path,
    texts: Sequence[str],
    count: int,
    settings: Group,
    model: str | None,
    seed: int,
    cache: Path,
    *,
    gpu: bool,
    trust_remote_code: bool,
) -> Path:
    """The folder of the vectors (``VECTORS``) of all ``count`` good records of ``heap``.

    Args:
        texts: of the sample, from which the weights of words are learned.
        model: of base and sentences.
    """
    import ray.data

    on_gpu = gpu and settings.embedding != "words"
    options: dict[str, Any] = {"gpu": on_gpu, "trust_remote_code": trust_remote_code}
    made: Any
    of: dict[str, Any]
    if settings.embedding == "words":
        kept = ray.put(Words(texts, settings.dimensions, seed))
        made = partial(ray.get, kept)
        of = {"dimensions": settings.dimensions, "sample": settings.sample, "seed": seed}
    elif settings.embedding == "base":
        tokens = settings.max_tokens
        made = partial(HiddenStates, model or "", settings.depth, tokens, settings.cpus, **options)
        of = {"depth": settings.depth, "max_tokens": tokens, "gpu": gpu}
    else:
        made = partial(Sentences, model or "", settings.cpus, **options)
        of = {"gpu": gpu}
    identity = {} if model is None else {"model": model_fingerprint(model)}
    parts = {"heap": heap.name, "embedding": settings.embedding} | of | identity

    def build(work: Path) -> None:
        rows = texts_of(heap, finished_ids(work)).repartition(
            target_num_rows_per_block=max(settings.batch_size, -(-count // _MOST_PARTS))
        )
        embedded = rows.map_batches(
            _Embedder,
            fn_constructor_args=(made,),
            batch_size=settings.batch_size,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=settings.workers),
            num_cpus=settings.cpus,
            num_gpus=1 if on_gpu else 0,
        )
        with engine_bar("embedding", count) as bar:
            write_parts(embedded, [work], VECTORS, bar.to)

    return cached(cache, "vectors", parts, build)[0]


def texts_of(heap: Path, done: Ids) -> Any:
    """A Ray dataset of id and text of the good records that are not ``done``."""
    import ray.data

    def read(batch: pa.Table) -> pa.Table:
        tables = [
            pyarrow.parquet.read_table(fetch(file), columns=["id", "text", "discarded"])
            for file in batch["file"].to_pylist()
        ]
        table = pa.concat_tables(tables)
        table = table.filter(table["discarded"].is_null()).select(["id", "text"])
        return table.filter(pa.array(~np.isin(table["id"].to_numpy(), done)))

    files = [{"file": str(file)} for file in sorted(heap.glob("*.parquet"))]
    return ray.data.from_items(files, override_num_blocks=min(len(files), 256)).map_batches(
        read, batch_size=1, batch_format="pyarrow"
    )


def good_ids(heap: Path) -> Ids:
    """The records of the heap that are some, in order."""
    table = rows_of(heap, ["id"], pc.field("discarded").is_null())
    return np.unique(table["id"].to_numpy())


def column_of(folder: Path, name: str, ids: Ids) -> list[Any]:
    """A column of the rows ``ids`` (sorted), in their order."""
    table = pyarrow.dataset.dataset(sorted(map(str, folder.glob("*.parquet")))).to_table(
        columns=["id", name], filter=pc.field("id").isin(ids)
    )
    _, first = np.unique(table["id"].to_numpy(), return_index=True)
    found: list[Any] = table[name].take(pa.array(first)).to_pylist()
    return found


def vectors_of(folder: Path, ids: Ids) -> Vectors:
    """The vectors of the rows ``ids`` (sorted), [n, d]."""
    return np.array(column_of(folder, "vector", ids), dtype=np.float32)


def assign(folder: Path, groups: Groups) -> tuple[Ids, Ids, NDArray[np.float64]]:
    """Ids of all vectors in ``folder``, sorted, the group of each, and how near it is: the cosine
    to the centre.
    """
    import ray.data

    def nearest(batch: pa.Table) -> pa.Table:
        tables = [pyarrow.parquet.read_table(fetch(file)) for file in batch["file"].to_pylist()]
        table = pa.concat_tables(tables)
        vectors = np.array(table["vector"].to_pylist(), dtype=np.float32)
        group, near = groups.assign(vectors)
        return pa.table({"id": table["id"], "group": group, "near": near})

    files = [{"file": str(file)} for file in sorted(folder.glob("*.parquet"))]
    rows = ray.data.from_items(files, override_num_blocks=min(len(files), 64))
    tables = list(
        rows.map_batches(nearest, batch_size=16, batch_format="pyarrow").iter_batches(
            batch_size=None, batch_format="pyarrow"
        )
    )
    table = pa.concat_tables(tables)
    ids, first = np.unique(table["id"].to_numpy(), return_index=True)
    return ids, table["group"].to_numpy()[first], table["near"].to_numpy()[first]
