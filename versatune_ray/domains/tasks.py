"""Inputs → shards of stores, in the order of the inputs: by tasks of Ray Data, or in this process.

A task takes a shard: some small inputs, or a range of a large one; it reads, encodes and writes it.
What cannot be read in ranges (compressed files, datasets of the hub) is read by one task, which
hands its records on to others, each the records of a shard. Only what a store has to know of its
shards comes back.
"""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from versatune_ray.domains.encoding import Encoding, Item, Read, read
from versatune_ray.domains.ranges import BREAKS, in_one_piece, ranges, size_of, step_for
from versatune_ray.domains.records import Rules
from versatune_ray.domains.shards import Report, Shard, write
from versatune_ray.domains.spec import Input

if TYPE_CHECKING:
    import pyarrow as pa

# bytes of records that are read apart and make a shard: half a minute of encoding, so that one
# file keeps all CPUs busy
_APART = 32 << 20
_BLOCKS = 4096


def items(store: int, inputs: Sequence[Input], rules: Rules) -> list[Item]:
    """The work for a store, in order: it depends on its inputs and on nothing else."""
    sizes = [size_of(source) for source in inputs]
    step = step_for(sum(size or 0 for size in sizes))
    found: list[Item] = []
    for number, (source, size) in enumerate(zip(inputs, sizes, strict=True)):
        item = Item(store, number, source, rules, None, size is None or size > step)
        parts = ranges(source, size or 0, step)
        reason = in_one_piece(source) if parts else None
        if parts and reason is None:
            found += [
                replace(item, part=part, apart=False, size=part.end - part.start) for part in parts
            ]
        else:
            found.append(replace(item, breaks=reason == BREAKS, size=size or 0))
    return found


def shards(work: Sequence[Item], folder: Path) -> list[Shard]:
    """Items of a store in a row make a shard together as long as they are no larger than the
    largest of them may be.
    """
    step = step_for(sum(item.size for item in work))
    groups: list[list[Item]] = []
    room = 0
    for item in work:
        if not groups or item.apart or item.size > room or groups[-1][0].apart:
            groups.append([])
            room = step
        groups[-1].append(item)
        room -= item.size
    return [
        Shard(group[0].store, folder, number, tuple(group)) for number, group in enumerate(groups)
    ]


def alone(work: Sequence[Shard], encoding: Encoding) -> Generator[tuple[int, Report]]:
    """Write shards in this process, without pyarrow where it is not their format, which a bare
    training machine lacks. Yields the number of a store and the report of one of its shards.
    """
    for shard in work:
        for one, found in _chunks(shard):
            yield one.store, write(one, encoding, found)


def by_ray(work: Sequence[Shard], encoding: Encoding) -> Generator[tuple[int, Report]]:
    """``alone``, by Ray Data."""
    import ray.data

    rows = [{"work": pickle.dumps((shard, None))} for shard in work]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), _BLOCKS))
    # A dataset owns a copy of the process-wide context, and what follows it shares that copy:
    # nothing leaks out of here.
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = _APART
    # Different CPU requests keep Ray Data from fusing the two steps, which would leave each input
    # to one task.
    if any(shard.apart for shard in work):
        dataset = dataset.map_batches(
            _read_apart, batch_size=1, batch_format="pyarrow", num_cpus=0.5
        )
    dataset = dataset.map_batches(
        _write,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
        fn_kwargs={"encoding": encoding},
    )
    for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for content in table["report"].to_pylist():
            yield pickle.loads(content)


def _chunks(shard: Shard) -> Iterator[tuple[Shard, list[Read] | None]]:
    """A shard; of an input that is read apart one after another, with what was read."""
    if not shard.apart:
        yield shard, None
        return
    found: list[Read] = []
    number = size = 0
    for one in read(shard.items[0]):
        found.append(one)
        size += len(pickle.dumps(one))
        if size >= _APART:
            yield replace(shard, chunk=number), found
            found, number, size = [], number + 1, 0
    yield replace(shard, chunk=number), found


def _read_apart(table: pa.Table) -> Iterator[pa.Table]:
    """UDF: shards → the same; of an input that is read apart several, with what was read."""
    for content in table["work"].to_pylist():
        for one in _chunks(pickle.loads(content)[0]):
            yield type(table).from_pydict({"work": [pickle.dumps(one)]})


def _write(table: pa.Table, encoding: Encoding) -> Iterator[pa.Table]:
    """UDF: shards, perhaps with what was read → their reports."""
    for content in table["work"].to_pylist():
        shard, found = pickle.loads(content)
        report = pickle.dumps((shard.store, write(shard, encoding, found)))
        yield type(table).from_pydict({"report": [report]})
