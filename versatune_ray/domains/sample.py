"""Some records of sources that are too large to read for a look."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from random import Random

from versatune_ray.domains.delimited import NotByLines
from versatune_ray.domains.ranges import Range, in_one_piece, ranges, read_range, size_of
from versatune_ray.domains.readers import Located, read_records
from versatune_ray.domains.spec import Input

_WHOLE = 64 << 20  # bytes of sources that are read through
_PIECE = {"parquet": 64 << 20}  # bytes; row groups are large
_LINES = 256 << 10
_PIECES = 1 << 16
_RECORDS = 20_000  # of a source that cannot be read in pieces


def not_read_through(inputs: Sequence[Input]) -> bool:
    """Whether they are large, or nobody knows how large."""
    sizes = [size_of(source) for source in inputs]
    return None in sizes or sum(filter(None, sizes)) > _WHOLE


def some_records(inputs: Sequence[Input]) -> Iterator[Located]:
    """All records of small sources, in order. Of larger ones those of pieces from all over them, in
    an order that looks random and is always the same: read as many as you need. Of what has no
    pieces (compressed files, datasets of the hub) the first 20,000. Numbers of lines are those
    within a piece.

    Raises:
        UserError: a source cannot be read.
    """
    if not not_read_through(inputs):
        for source in inputs:
            yield from read_records(source)
        return
    pieces = [_pieces(source, size_of(source) or 0) for source in inputs]
    ends = list(accumulate(len(parts) or 1 for parts in pieces))
    for place in Random(0).sample(range(ends[-1]), min(ends[-1], _PIECES)):
        number = bisect_right(ends, place)
        source, parts = inputs[number], pieces[number]
        if not parts:
            yield from islice(read_records(source), _RECORDS)
            continue
        try:
            yield from read_range(source, parts[place - ends[number] + len(parts)])
        except NotByLines:  # a piece may begin within a field; others do not
            continue


def _pieces(source: Input, size: int) -> Sequence[Range]:
    step = _PIECE.get(source.format, _LINES)
    found = ranges(source, size, step)
    return found if found and in_one_piece(source) is None else ()
