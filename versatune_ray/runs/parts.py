"""Run a Ray Data plan and keep every finished batch as a Parquet part at once, so that a killed job
loses no finished row.

Ray Data's own job checkpointing does the same for plans from one read to one write, but it starts
an actor pool that reserves a gibibyte, and writes to one place; the judge's pass writes to a folder
per model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
from numpy.typing import NDArray

from versatune_ray.errors import DiskFull, is_disk_full
from versatune_ray.runs.cache import appear, set_aside, temporary_name
from versatune_ray.runs.storage import here, pull, push, remove

T = TypeVar("T")
_JOINED = "all-"  # begins the name of the file that was made of parts
_MANY = 300  # parts
_GROUP_ROWS, _GROUP_BYTES = 4096, 32 << 20
_REMOVALS = 8  # at once, from a storage behind a URI
# An engine that starts again, a cluster that grows, a batch of long answers: seconds without any
# finished one. Ray Data's own half hour is short for these.
_PATIENCE = 4 * 3600.0


def finished_ids(folder: Path) -> NDArray[np.int64]:
    """The ``id`` of every row already in ``folder``, int64 [n], but for those that say their
    request ``failed``: it is made again. So are the rows of a part that cannot be read, which is
    set aside.
    """
    pull(folder)

    def read(parts: Sequence[Path]) -> NDArray[np.int64]:
        found = [np.zeros(0, dtype=np.int64)]
        for part in parts:
            try:
                found.append(_finished(part))
            except (FileNotFoundError, PermissionError):  # whole, as far as anyone knows
                raise
            except (pa.ArrowException, OSError, KeyError) as error:
                set_aside(part, error)
        return np.unique(np.concatenate(found))

    return read_parts(folder, read)


def _finished(part: Path) -> NDArray[np.int64]:
    with pyarrow.parquet.ParquetFile(part) as file:
        names = file.schema_arrow.names
        rows = file.read(columns=[name for name in ("id", "failed") if name in names])
    if "failed" in names:
        rows = rows.filter(pc.invert(rows["failed"]))
    return np.asarray(rows["id"].to_numpy())


def read_parts(folder: Path, read: Callable[[Sequence[Path]], T]) -> T:
    """What ``read`` makes of the parts of ``folder``; again, where they became one file while it
    read them (``join_parts``).
    """
    while True:
        parts = sorted(folder.glob("*.parquet"))
        try:
            made = read(parts)
        except FileNotFoundError:
            if all(part.exists() for part in parts):
                raise
            continue
        if set(folder.glob(f"{_JOINED}*.parquet")) <= set(parts):
            return made


def read_rows(
    folder: Path,
    schema: Mapping[str, pa.DataType],
    columns: Sequence[str],
    where: pc.Expression | None = None,
) -> pa.Table:
    """``columns`` of all rows in ``folder`` (or those ``where`` something holds), each ``id`` once
    and in order; a request that failed gives way to its repetition.
    """

    def read(parts: Sequence[Path]) -> pa.Table:
        return pyarrow.dataset.dataset(
            list(map(str, parts)), pa.schema(list(schema.items())), format="parquet"
        ).to_table(columns=[*columns, "failed"], filter=where)

    table = read_parts(folder, read)
    table = table.sort_by([("id", "ascending"), ("failed", "ascending")])
    ids = table["id"].to_numpy()
    return table.filter(pa.array(np.diff(ids, prepend=-1) != 0)).drop_columns(
        [] if "failed" in columns else ["failed"]
    )


def join_parts(folder: Path, schema: Mapping[str, pa.DataType], *, whole: bool) -> None:
    """Make the parts of ``folder`` one file of many row groups, each ``id`` in it once, where the
    store is ``whole`` or has hundreds of them: fifty stores of small files are slow to list, and
    more than some file systems hold.

    The caller holds the folder's lock. The file is there before a part goes, so a kill leaves at
    worst both, which readers take once; a reader that meets a part that has gone looks again. A
    part that cannot be read is set aside, and where the disk is too full for a second copy, the
    parts stay.
    """
    count = len(list(folder.glob("*.parquet")))
    if count < 2 or not (whole or count > _MANY):
        return
    finished = finished_ids(folder)
    parts = sorted(folder.glob("*.parquet"))
    columns = {part: pyarrow.parquet.read_table(part, columns=["id"])["id"] for part in parts}
    ids = np.unique(np.concatenate([column.to_numpy() for column in columns.values()]))
    joined = folder / f"{_JOINED}{_digest(ids)}.parquet"
    done, written = np.isin(ids, finished), np.zeros(len(ids), dtype=bool)
    temporary, waiting = temporary_name(joined), []
    arrow = pa.schema(list(schema.items()))
    try:
        with pyarrow.parquet.ParquetWriter(temporary, arrow) as writer:
            # about in the order of the ids, so that the statistics of a row group tell which it has
            for part in sorted(parts, key=lambda part: pc.min(columns[part]).as_py() or 0):
                table = pyarrow.parquet.read_table(part, schema=arrow).sort_by("id")
                places = np.searchsorted(ids, table["id"].to_numpy())
                failed = table["failed"].to_numpy() if "failed" in schema else False
                kept = ~written[places] & ~(failed & done[places])
                kept[1:] &= np.diff(places) > 0
                written[places[kept]] = True
                waiting.append(table.filter(pa.array(kept)))
                if (
                    sum(table.num_rows for table in waiting) >= _GROUP_ROWS
                    or sum(table.nbytes for table in waiting) >= _GROUP_BYTES
                ):
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
            writer.write_table(pa.concat_tables([arrow.empty_table(), *waiting]))
        push(joined, temporary)
        appear(temporary, joined)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            return
        raise
    gone = [part for part in parts if part != joined]
    with ThreadPoolExecutor(_REMOVALS) as pool:
        list(pool.map(remove, gone))
    for part in gone:
        part.unlink()


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
    rows.context.execution_no_progress_timeout_s = _PATIENCE
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
    part = folder / f"{_digest(np.sort(table['id'].to_numpy()))}.parquet"
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


def _digest(ids: NDArray[np.int64]) -> str:
    return hashlib.sha256(ids.tobytes()).hexdigest()[:16]
