"""Records in columns: Parquet, Arrow, and datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from versatune_ray.domains.spec import Input, reason_of
from versatune_ray.errors import UserError

Row = tuple[int, dict[str, Any] | None, str | None]


@dataclass(frozen=True)
class Unreadable:
    """Stands for a value that a file holds and Python cannot, such as a date in the year 290000:
    only a record that needs it is bad.
    """

    reason: str


def read_parquet(file: IO[bytes], source: Input) -> Iterator[Row]:
    """Rows of a Parquet file."""
    from pyarrow.parquet import ParquetFile

    table = ParquetFile(file)
    _no_twice(table.schema_arrow.names, source)
    yield from _numbered(table.iter_batches(batch_size=1024))


class ParquetRange:
    """The row groups that begin in bytes ``[start, end)`` of a Parquet file; ``count``: rows."""

    def __init__(self, file: IO[bytes], source: Input, start: int, end: int) -> None:
        from pyarrow.parquet import ParquetFile

        self._table = ParquetFile(file)
        _no_twice(self._table.schema_arrow.names, source)
        groups = [self._table.metadata.row_group(n) for n in range(self._table.num_row_groups)]
        self._groups = [n for n, group in enumerate(groups) if start <= _begin(group) < end]
        self.count = sum(groups[number].num_rows for number in self._groups)

    def rows(self) -> Iterator[Row]:
        if self._groups:
            batches = self._table.iter_batches(batch_size=1024, row_groups=self._groups)
            yield from _numbered(batches)


def _begin(group: Any) -> int:
    column = group.column(0)
    return int(column.dictionary_page_offset or column.data_page_offset)


def read_arrow(file: IO[bytes], source: Input) -> Iterator[Row]:
    """Rows of an Arrow file, as a stream (``save_to_disk`` writes those) or with a footer."""
    import pyarrow as pa

    try:
        batches: Any = pa.ipc.open_stream(file)
        names = batches.schema.names
    except pa.ArrowInvalid:
        file.seek(0)
        footed = pa.ipc.open_file(file)
        names = footed.schema.names
        batches = (footed.get_batch(number) for number in range(footed.num_record_batches))
    _no_twice(names, source)
    yield from _numbered(batches)


def read_hub(source: Input) -> Iterator[Row]:
    """Rows of a split; a part of one (``train[:10%]``) or several are downloaded, a whole one is
    streamed.
    """
    import datasets

    rows = datasets.load_dataset(
        source.path,
        source.config,
        split=source.split,
        revision=source.revision,
        streaming=source.split.replace("_", "").replace("-", "").replace(".", "").isalnum(),
    )
    for number, row in enumerate(rows, 1):
        yield number, dict(row), None


def _numbered(batches: Any) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for row in _rows(batch):
            number += 1
            yield number, row, None


def _rows(batch: Any) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    # dates, times, text and decimals each fail in their own way
    except Exception:
        columns = [_values(column) for column in batch.columns]
        return [
            dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)
        ]


def _values(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
        return values
    except Exception:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Unreadable("invalid UTF-8")
    except Exception as error:
        return Unreadable(reason_of(error))


def _no_twice(names: list[str], source: Input) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{source.label}: two columns are named {twice!r}")
