"""Run a Ray Data plan and keep every finished batch as a Parquet part at once, so that a killed job loses no finished row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
from numpy.typing import NDArray

from versatune_ray.progress import Bar


def finished_ids(folder: Path) -> NDArray[np.int64]:
    """The ``id`` of every row already in ``folder``."""
    parts = [np.asarray(pyarrow.parquet.read_table(part, columns=["id"])["id"].to_numpy()) for part in folder.glob("*.parquet")]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])


def write_parts(rows: Any, folder: Path, schema: Mapping[str, pa.DataType], name: str, total: int) -> None:
    """Execute the Ray Data plan ``rows`` and write its rows, which have an ``id``, to ``folder``; a bar counts up to ``total``.

    A part is named by the ids in it and appears whole or not at all: a batch that Ray computes twice is there once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.tmp"):  # half-written when an earlier run was killed
        stale.unlink()
    arrow = pa.schema(list(schema.items()))

    def write(batch: pa.Table) -> dict[str, Any]:
        ids = batch["id"].to_numpy()
        part = folder / f"{hashlib.sha256(np.sort(ids).tobytes()).hexdigest()[:16]}.parquet"
        temporary = part.with_suffix(".tmp")  # readers of the folder take *.parquet
        pyarrow.parquet.write_table(batch.select(arrow.names).cast(arrow), temporary)
        temporary.replace(part)
        return {"rows": np.array([len(ids)])}

    done = 0
    with Bar(name, total, "row") as bar:
        bar.to(0, "starting the engine")
        for counts in rows.map_batches(write, batch_format="pyarrow", batch_size=None).iter_batches(batch_size=None, prefetch_batches=0):
            done += int(counts["rows"].sum())
            bar.to(done)
