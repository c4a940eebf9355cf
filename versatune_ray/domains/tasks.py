"""Inputs → encoded parts, in the order of the inputs: by tasks of Ray Data, or in this process.

A task takes an input or a range of a large one, reads and encodes it. What cannot be read in ranges
(compressed files, datasets of the hub) is read by one task, which hands its records on in small
blocks to others that encode.
"""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from versatune_ray.domains.blocks import Part
from versatune_ray.domains.encoding import Encoding, Item, encoded, read
from versatune_ray.domains.ranges import BREAKS, in_one_piece, ranges, size_of, step_for
from versatune_ray.domains.records import Rules
from versatune_ray.domains.spec import Input

if TYPE_CHECKING:
    import pyarrow as pa

# of what travels between tasks: a second or two of encoding, so that one file keeps all CPUs busy
_BLOCK_BYTES = 2 << 20
_BLOCKS = 4096


def items(stores: Sequence[tuple[Sequence[Input], Rules]]) -> list[Item]:
    """The work for some stores, in order: it depends on the inputs and on nothing else."""
    sizes = {
        (store, number): size_of(source)
        for store, (inputs, _) in enumerate(stores)
        for number, source in enumerate(inputs)
    }
    step = step_for(sum(size or 0 for size in sizes.values()))
    found: list[Item] = []
    for (store, number), size in sizes.items():
        inputs, rules = stores[store]
        item = Item(store, number, inputs[number], rules, None, size is None or size > step)
        parts = ranges(item.source, size or 0, step)
        reason = in_one_piece(item.source) if parts else None
        if parts and reason is None:
            found += [replace(item, part=part, apart=False) for part in parts]
        else:
            found.append(replace(item, breaks=reason == BREAKS))
    return found


def alone(work: Sequence[Item], encoding: Encoding) -> Generator[Part]:
    """In this process, and without pyarrow, which a bare training machine lacks."""
    for item in work:
        for found in read(item):
            yield encoded(item, found, encoding)


def by_ray(work: Sequence[Item], encoding: Encoding) -> Generator[Part]:
    """By Ray Data."""
    import ray.data

    rows = [{"work": pickle.dumps((item, None))} for item in work]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
    # A dataset owns a copy of the process-wide context, and what follows it shares that copy:
    # nothing leaks out of here.
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = _BLOCK_BYTES
    # Different CPU requests keep Ray Data from fusing the two steps, which would leave each input
    # to one task.
    if any(item.apart for item in work):
        dataset = dataset.map_batches(
            _read_apart, batch_size=1, batch_format="pyarrow", num_cpus=0.5
        )
    dataset = dataset.map_batches(
        _encode,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        fn_kwargs={"encoding": encoding},
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for content in table["part"].to_pylist():
            yield pickle.loads(content)


def _read_apart(table: pa.Table) -> Iterator[pa.Table]:
    """UDF: items → the same, those that are read apart with their rows."""
    for content in table["work"].to_pylist():
        item, _ = pickle.loads(content)
        if not item.apart:
            yield type(table).from_pydict({"work": [content]})
            continue
        for found in read(item):
            yield type(table).from_pydict({"work": [pickle.dumps((item, found))]})


def _encode(table: pa.Table, encoding: Encoding) -> Iterator[pa.Table]:
    """UDF: items or their rows → encoded parts."""
    for content in table["work"].to_pylist():
        item, rows = pickle.loads(content)
        for found in read(item) if rows is None else (rows,):
            part = pickle.dumps(encoded(item, found, encoding))
            yield type(table).from_pydict({"part": [part]})
