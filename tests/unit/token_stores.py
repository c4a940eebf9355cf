"""Token stores of a few records whose hashes are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from versatune_ray.domains import Batch, Input, TokenStore, TokenStoreWriter

INPUTS = [
    Input("/data/a.jsonl", "a.jsonl", "jsonl"),
    Input("/data/b.parquet", "b.parquet", "parquet"),
]
QUARTER = 2**62  # a quarter of the range of hashes


def batch(rows: Sequence[Sequence[int]], hashes: Sequence[int], first: int = 1) -> Batch:
    """Records whose last two tokens carry loss, at lines ``first``, ``first + 1``, … of the first
    input.
    """
    masks = [[place >= len(row) - 2 for place in range(len(row))] for row in rows]
    return Batch(
        tokens=np.array([token for row in rows for token in row], np.int32),
        mask=np.array([loss for mask in masks for loss in mask], np.bool_),
        lengths=np.array([len(row) for row in rows], np.int64),
        hashes=np.array(hashes, np.uint64),
        response_bytes=np.array([10 * len(row) for row in rows], np.int64),
        locations=np.array([(0, first + number) for number in range(len(rows))], np.int64),
    )


def store(folder: Path, hashes: Sequence[int], bad: int = 0) -> TokenStore:
    with TokenStoreWriter(folder, INPUTS) as writer:
        writer.append(batch([[number, 7, 7] for number in range(len(hashes))], hashes))
        for number in range(bad):
            writer.reject(0, 100 + number, "no answer")
    return TokenStore(folder)
