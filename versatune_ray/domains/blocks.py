"""Encoded records on their way into a store, from wherever they were encoded."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from versatune_ray.domains.store_writer import Batch


@dataclass(frozen=True)
class Part:
    """Encoded records of one input of one store. bad: (number, problem) of each that is none;
    fatal: why the input cannot be read at all; left_out: reasons; accounts: shape and unused fields
    of the good ones, as JSON.

    Numbers count from 1 within a range of the input; lines: of the range, with its last part;
    whole: its ranges cannot be read apart.
    """

    store: int
    input: int
    lines: int = 0
    whole: bool = False
    fatal: str | None = None
    bad: list[tuple[int, str]] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)
    good: Batch | None = None
    accounts: Mapping[str, int] = field(default_factory=dict)
    too_long: int = 0


def part_of_rows(store: int, source: int, rows: list[dict[str, Any]], lines: int = 0) -> Part:
    """Rows that ``encoding.encode`` made."""
    good = [row for row in rows if not row["problem"]]
    return Part(
        store=store,
        input=source,
        lines=lines,
        fatal=next((row["problem"] for row in rows if row["fatal"]), None),
        bad=[
            (row["number"], row["problem"])
            for row in rows
            if row["problem"] and not row["left_out"]
        ],
        left_out=Counter(row["problem"] for row in rows if row["left_out"]),
        good=_batch(source, good) if good else None,
        accounts=Counter(row["account"] for row in good),
        too_long=sum(row["too_long"] for row in good),
    )


def _batch(source: int, rows: list[dict[str, Any]]) -> Batch:
    return Batch(
        # several times as fast as arrays of NumPy of each row
        tokens=np.frombuffer(b"".join([array("i", row["tokens"]) for row in rows]), np.int32),
        mask=np.frombuffer(b"".join([bytes(row["mask"]) for row in rows]), np.bool_),
        lengths=np.array([len(row["tokens"]) for row in rows], np.int64),
        hashes=np.array([row["hash"] for row in rows], np.uint64),
        prompts=np.array([row["prompt"] for row in rows], np.uint64),
        response_bytes=np.array([row["response_bytes"] for row in rows], np.int64),
        locations=np.array([(source, row["number"]) for row in rows], np.int64),
        weights=np.array([row["weight"] for row in rows], np.float32),
    )
