"""Run a Ray Data plan and keep every finished batch as a Parquet part at once, so that a killed job
loses no finished row.

Ray Data's own job checkpointing does the same for plans from one read to one write, but it starts
an actor pool that reserves a gibibyte, and writes to one place; the judge's pass writes to a folder
per model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
from numpy.typing import NDArray

from versatune_ray.errors import DiskFull, is_disk_full
from versatune_ray.runs.cache import appear, set_aside, temporary_name
from versatune_ray.runs.storage import here, pull, push


def finished_ids(folder: Path) -> NDArray[np.int64]:
    """The ``id`` of every row already in ``folder``, int64 [n], but for those that say their
    request ``failed``: it is made again. So are the rows of a part that cannot be read, which is
    set aside.
    """
    pull(folder)
    found = [np.zeros(0, dtype=np.int64)]
    for part in sorted(folder.glob("*.parquet")):
        try:
            found.append(_finished(part))
        except (FileNotFoundError, PermissionError):  # whole, as far as anyone knows
            raise
        except (pa.ArrowException, OSError, KeyError) as error:
            set_aside(part, error)
    return np.unique(np.concatenate(found))


def _finished(part: Path) -> NDArray[np.int64]:
    with pyarrow.parquet.ParquetFile(part) as file:
        names = file.schema_arrow.names
        rows = file.read(columns=[name for name in ("id", "failed") if name in names])
    if "failed" in names:
        rows = rows.filter(pc.invert(rows["failed"]))
    return np.asarray(rows["id"].to_numpy())


def read_rows(folder: Path, schema: Mapping[str, pa.DataType], columns: Sequence[str]) -> pa.Table:
    """``columns`` of all rows in ``folder``, each ``id`` once and in order; a request that failed
    gives way to its repetition.
    """
    files = sorted(map(str, folder.glob("*.parquet")))
    table = pyarrow.dataset.dataset(
        files, pa.schema(list(schema.items())), format="parquet"
    ).to_table(columns=[*columns, "failed"])
    table = table.sort_by([("id", "ascending"), ("failed", "ascending")])
    ids = table["id"].to_numpy()
    return table.filter(pa.array(np.diff(ids, prepend=-1) != 0)).drop_columns(
        [] if "failed" in columns else ["failed"]
    )


def write_parts(
    rows: Any,
    folders: Sequence[Path],
    schema: Mapping[str, pa.DataType],
    written: Callable[[int], None],
) -> int:
    """Execute the Ray Data plan ``rows`` and write its rows to parts; ``written`` is told how many
    are.

    A row has an ``id``, and where there are several folders, the number of its own in ``store``. A
    part is named by the ids in it and appears whole or not at all: a batch that Ray computes twice
    is there once. Returns the number of rows written.

    Raises:
        DiskFull: what is written stays.
    """
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("*.tmp"):  # half-written when an earlier run was killed
            stale.unlink()
    arrow = pa.schema(list(schema.items()))

    def write(batch: pa.Table) -> dict[str, Any]:
        store = (
            batch["store"].to_numpy()
            if "store" in batch.column_names
            else np.zeros(batch.num_rows, dtype=np.int64)
        )
        for place in np.unique(store):
            _write_part(
                batch.filter(pa.array(store == place)).select(arrow.names).cast(arrow),
                folders[place],
            )
        return {"rows": np.array([batch.num_rows])}

    # or a UserError of a worker arrives as Ray's own advice
    rows.context.raise_original_map_exception = True
    done = 0
    for counts in rows.map_batches(write, batch_format="pyarrow", batch_size=None).iter_batches(
        batch_size=None, prefetch_batches=0
    ):
        done += int(counts["rows"].sum())
        written(done)
    for folder in folders:  # of what was written on other machines
        pull(folder)
    return done


def _write_part(table: pa.Table, folder: Path) -> None:
    folder = here(folder)
    folder.mkdir(parents=True, exist_ok=True)
    part = (
        folder
        / f"{hashlib.sha256(np.sort(table['id'].to_numpy()).tobytes()).hexdigest()[:16]}.parquet"
    )
    temporary = temporary_name(part)  # readers of the folder take *.parquet
    try:
        pyarrow.parquet.write_table(table, temporary)
        push(part, temporary)
        appear(temporary, part)
    except OSError as error:
        with suppress(OSError):
            # makes room for what still has to be written, such as logs
            temporary.unlink(missing_ok=True)
        # with one argument: Ray adds advice of its own to an exception's arguments
        if is_disk_full(error):
            raise DiskFull(
                f"{folder}: no space left on this disk; free some, and the same command goes on "
                f"from here"
            ) from None
        raise
