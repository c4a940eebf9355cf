"""The heap: records of any shape as rows of a table, and back as records of one shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from numpy.typing import NDArray

from versatune_ray.domains import records
from versatune_ray.domains.example import Example, packed, printable, unpacked
from versatune_ray.domains.fingerprint import By, fingerprint
from versatune_ray.domains.labelled import plain_text
from versatune_ray.domains.readers import read_records
from versatune_ray.domains.spec import Input, expand
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import cached
from versatune_ray.runs.parts import finished_ids, write_parts
from versatune_ray.runtime.progress import Bar
from versatune_ray.settings import Config

# A part of the heap. ``discarded``: why a record is none; ``degenerate`` is what a judge asks of
# texts. The id is the input's number × 2^40 + the record's.
HEAP = {
    "id": pa.int64(),
    "text": pa.string(),
    "example": pa.string(),
    "location": pa.string(),
    "discarded": pa.string(),
    "left_out": pa.bool_(),
    "degenerate": pa.bool_(),
    "failed": pa.bool_(),
}
_FORMAT = 1
_INPUT_BITS = 40
_LONGEST = 20_000  # characters of a text that are looked at
_ROWS = 1000

_TURN = {
    "role": pa.string(),
    "content": pa.string(),
    "train": pa.bool_(),
    "reasoning_content": pa.string(),
    "tool_calls": pa.string(),
    "name": pa.string(),
    "tool_call_id": pa.string(),
}
# what ``domains`` reads as turns or raw text, whatever shape the record had
RECORD = pa.schema(
    {
        "messages": pa.list_(pa.struct(list(_TURN.items()))),
        "text": pa.string(),
        "tools": pa.string(),
        "weight": pa.float64(),
    }
)


@dataclass(frozen=True)
class Source:
    """One input of the heap, the key that it stands under, and how its records are read."""

    key: str
    input: Input
    rules: records.Rules


def sources(config: Config) -> list[Source]:
    """The inputs of ``group.sources``, or those that the domains train on.

    Raises:
        UserError: none are named, or one is not there.
    """
    data, asked = config.data, config.group
    if asked.sources:
        rules = records.Rules(asked.fields, preference=data.preference)
        return [
            Source("group.sources", source, rules)
            for spec in asked.sources
            for source in expand(spec, "group.sources")
        ]
    found = [
        Source(
            f"domains.{name}.train",
            source,
            records.Rules(domain.fields, domain.allowed, data.preference),
        )
        for name, domain in config.domains.items()
        for spec in domain.specs("train")
        for source in expand(spec, f"domains.{name}.train")
    ]
    if not found:
        raise UserError(
            "group.sources: missing; name files of records, or domains to group their records anew"
        )
    return found


def read_heap(listed: Sequence[Source], cache: Path, by: By) -> tuple[Path, bool]:
    """The folder of parts (``HEAP``) of all records of the heap, and whether it was there. A job
    that was killed goes on. ``by``: how changed sources are noticed (``data.fingerprint``).

    Raises:
        UserError: a file cannot be read as a whole.
    """
    parts = {
        "format": _FORMAT,
        "content": fingerprint([source.input for source in listed], by),
        "inputs": [
            [source.input.label, asdict(source.rules), source.input.format] for source in listed
        ],
    }
    items = [
        {"number": number, "source": json.dumps([asdict(one.input), asdict(one.rules), one.key])}
        for number, one in enumerate(listed)
    ]

    def build(work: Path) -> None:
        import ray.data

        done = finished_ids(work)

        def read(batch: pa.Table) -> Iterator[pa.Table]:
            for item in batch.to_pylist():
                for rows in _rows(item["number"], item["source"]):
                    table = pa.Table.from_pylist(rows, pa.schema(list(HEAP.items())))
                    yield table.filter(pa.array(~np.isin(table["id"].to_numpy(), done)))

        rows = ray.data.from_items(items, override_num_blocks=min(len(items), 256)).map_batches(
            read, batch_size=1, batch_format="pyarrow"
        )
        with Bar("reading", 0, "record") as bar:
            write_parts(rows, [work], HEAP, bar.to)

    return cached(cache, "heap", parts, build)


def rows_of(heap: Path, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
    """``columns`` of the heap's rows; of an empty heap none."""
    parts, schema = sorted(map(str, heap.glob("*.parquet"))), pa.schema(list(HEAP.items()))
    rows = pyarrow.dataset.dataset(parts, schema, format="parquet")
    return rows.to_table(columns=list(columns), filter=where)


def _rows(number: int, source: str) -> Iterator[list[dict[str, Any]]]:
    given, rules, key = json.loads(source)
    rows: list[dict[str, Any]] = []
    made = records.Rules(**rules)
    try:
        for item in read_records(Input(**given)):
            if len(rows) == _ROWS:
                yield rows
                rows = []
            rows.append(
                {
                    "id": (number << _INPUT_BITS) + item.number,
                    "location": printable(item.location),
                    "degenerate": False,
                    "failed": False,
                }
                | _content(item.record, item.problem, made)
            )
    except UserError as error:
        raise UserError(f"{error} ({key})") from None
    yield rows


def _content(
    record: Mapping[str, Any] | None, problem: str | None, rules: records.Rules
) -> dict[str, Any]:
    found = {"text": "", "example": "", "discarded": problem, "left_out": False}
    if record is None:
        return found | {"discarded": printable(problem or "")}
    try:
        example = records.to_example(record, rules)
        content = packed(example)
    except records.BadRecord as error:
        left_out = isinstance(error, records.LeftOut)
        return found | {"discarded": printable(str(error)), "left_out": left_out}
    return found | {"text": plain_text(example)[:_LONGEST], "example": content, "discarded": None}


def as_record(example: Example) -> dict[str, Any]:
    """A record of ``RECORD`` that is read as this very example."""
    return {
        "messages": None
        if example.text is not None
        else [
            _turn(dict(message), trains)
            for message, trains in zip(example.messages, example.trains, strict=True)
        ],
        "text": example.text,
        "tools": json.dumps(example.tools, ensure_ascii=False) if example.tools else None,
        "weight": None if example.weight == 1 else example.weight,
    }


def _turn(message: Mapping[str, Any], trains: bool) -> dict[str, Any]:
    calls = message.get("tool_calls")
    found = {name: message.get(name) for name in _TURN}
    return found | {
        "tool_calls": json.dumps(calls, ensure_ascii=False) if calls else None,
        "train": False if message["role"] == "assistant" and not trains else None,
    }


def records_of(examples: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.Table:
    """Packed examples of some rows as records of ``RECORD``."""
    chosen = examples.take(pa.array(rows)).to_pylist()
    return pa.Table.from_pylist([as_record(unpacked(one)) for one in chosen], RECORD)
