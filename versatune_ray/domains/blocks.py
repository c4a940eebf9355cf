"""Encoded records on their way into a store: Arrow tables between tasks, lists in one process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from versatune_ray.domains.store_writer import Batch

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Part:
    """Encoded records of one store. bad: (input, number, problem) of each that is none; fatal: why
    its file cannot be read at all; left_out: reasons; accounts: shape and unused fields of the good
    ones, as JSON.
    """

    store: int
    fatal: str | None
    bad: list[tuple[int, int, str]]
    left_out: Mapping[str, int]
    good: Batch | None
    accounts: Mapping[str, int]
    too_long: int


def part_of_rows(store: int, rows: list[dict[str, Any]]) -> Part:
    """Without pyarrow, which a bare training machine lacks."""
    good = [row for row in rows if not row["problem"]]
    return Part(
        store=store,
        fatal=next((row["problem"] for row in rows if row["fatal"]), None),
        bad=[
            (row["input"], row["number"], row["problem"])
            for row in rows
            if row["problem"] and not row["left_out"]
        ],
        left_out=Counter(row["problem"] for row in rows if row["left_out"]),
        good=_batch(good) if good else None,
        accounts=Counter(row["account"] for row in good),
        too_long=sum(row["too_long"] for row in good),
    )


def _batch(rows: list[dict[str, Any]]) -> Batch:
    return Batch(
        tokens=np.concatenate([np.asarray(row["tokens"], np.int32) for row in rows]),
        mask=np.concatenate([row["mask"] for row in rows]).view(np.bool_),
        lengths=np.array([len(row["tokens"]) for row in rows], np.int64),
        hashes=np.array([row["hash"] for row in rows], np.uint64),
        prompts=np.array([row["prompt"] for row in rows], np.uint64),
        response_bytes=np.array([row["response_bytes"] for row in rows], np.int64),
        locations=np.array([(row["input"], row["number"]) for row in rows], np.int64),
        weights=np.array([row["weight"] for row in rows], np.float32),
    )


def parts_of(table: pa.Table) -> Iterator[Part]:
    """A block by store; it holds several where inputs are small."""
    store = table["store"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(store)) + 1), len(store)]
    for start, end in pairwise(starts):
        if end > start:
            yield _part_of(int(store[start]), table.slice(start, end - start))


def _part_of(store: int, table: pa.Table) -> Part:
    import pyarrow.compute as pc

    fatal = table.filter(table["fatal"])
    left_out = table.filter(table["left_out"])
    bad = table.filter(pc.and_not(pc.not_equal(table["problem"], ""), table["left_out"]))
    bad = bad.select(["input", "number", "problem"])
    rejected = [(row["input"], row["number"], row["problem"]) for row in bad.to_pylist()]
    good = table.filter(pc.equal(table["problem"], "")).combine_chunks()
    batch = None
    if good.num_rows:
        tokens, mask = good["tokens"].combine_chunks(), good["mask"].combine_chunks()
        batch = Batch(
            tokens=tokens.flatten().to_numpy(),
            mask=mask.flatten().to_numpy().view(np.bool_),
            lengths=pc.list_value_length(tokens).to_numpy().astype(np.int64),
            hashes=good["hash"].to_numpy(),
            prompts=good["prompt"].to_numpy(),
            response_bytes=good["response_bytes"].to_numpy(),
            locations=np.stack([good["input"].to_numpy(), good["number"].to_numpy()], axis=1),
            weights=good["weight"].to_numpy(),
        )
    return Part(
        store,
        fatal["problem"][0].as_py() if fatal.num_rows else None,
        rejected,
        _counted(left_out["problem"]),
        batch,
        _counted(good["account"]),
        int(pc.sum(good["too_long"]).as_py() or 0),
    )


def _counted(column: Any) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}


def schemas() -> tuple[pa.Schema, pa.Schema]:
    """Of blocks that are read, and that are encoded."""
    import pyarrow as pa

    where = [
        ("store", pa.int32()),
        ("input", pa.int32()),
        ("number", pa.int64()),
        ("problem", pa.string()),
        ("fatal", pa.bool_()),
        ("left_out", pa.bool_()),
        ("account", pa.string()),
    ]
    encoded = [
        ("tokens", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.uint8())),
        ("hash", pa.uint64()),
        ("prompt", pa.uint64()),
        ("response_bytes", pa.int64()),
        ("too_long", pa.bool_()),
        ("weight", pa.float32()),
    ]
    return pa.schema([*where, ("example", pa.string())]), pa.schema([*where, *encoded])
