"""The judge's answers as they lie on the disk, and what has yet to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from versatune_ray.detection.judge_spec import JUDGED, Array, JudgeSpec
from versatune_ray.detection.texts import TextFile, Texts
from versatune_ray.runs.parts import finished_ids, read_parts, read_rows

_PIECE = 1024  # requests that are read at once


class Answers(NamedTuple):
    """Answers about n texts by ``ids``: domain probabilities [n, k] (NaN where discarded), mass
    [n], what was written, reason.
    """

    ids: NDArray[np.int64]
    shares: Array
    mass: Array
    answer: list[str | None]
    discarded: list[str | None]


def read_answers(spec: JudgeSpec, folder: Path, count: int) -> Answers:
    """The complete answers about the first ``count`` texts."""
    table = read_rows(folder, JUDGED, ["id", "values", "mass", "answer", "discarded"])
    ids, each = table["id"].to_numpy(), spec.requests
    texts, asked = np.unique(ids // each, return_counts=True)
    complete = texts[(asked == each) & (texts < count)]
    table = table.filter(pa.array(np.isin(ids // each, complete)))
    width = max((len(node.children) for node in spec.nodes), default=len(spec.question.domains))
    listed = table["values"].combine_chunks()
    lengths = pc.list_value_length(listed).to_numpy()
    values = np.full((table.num_rows, width), np.nan)
    # row by row, as they are stored
    values[np.arange(width) < lengths[:, None]] = listed.flatten().to_numpy()
    reasons = table["discarded"].to_pylist()
    first = [
        next((reason for reason in reasons[at : at + each] if reason is not None), None)
        for at in range(0, len(reasons), each)
    ]
    mass = table["mass"].to_numpy().reshape(-1, each)[:, 0]
    written = table["answer"].to_pylist()[::each]
    return Answers(
        complete, spec.shares(complete, values.reshape(-1, each, width)), mass, written, first
    )


def unjudged(spec: JudgeSpec, store: int, texts: Texts) -> list[TextFile]:
    """The requests still to be made, in pieces of a file each."""
    each, answered = spec.requests, finished_ids(texts.judged)

    def wanted(file: Path) -> NDArray[np.int64]:
        table = pyarrow.parquet.read_table(file, columns=["id", "degenerate", "discarded"])
        counts = table["discarded"].is_null().to_numpy() & (table["id"].to_numpy() < texts.size)
        if texts.exclude_degenerate:
            counts &= ~table["degenerate"].to_numpy()
        ids = np.sort(table["id"].to_numpy()[counts])
        requests: NDArray[np.int64] = (ids[:, None] * each + np.arange(each)).ravel()
        return requests

    def look(files: Sequence[Path]) -> list[TextFile]:
        found = [wanted(file) for file in files]
        every = np.concatenate([np.zeros(0, np.int64), *found])
        left = np.zeros(len(every), dtype=bool)
        left[np.unique(every, return_index=True)[1]] = True  # two files may hold the same text
        left &= ~np.isin(every, answered)
        parts = np.split(left, np.cumsum([len(requests) for requests in found]))[:-1]
        return [
            TextFile(store, file, asked[start : start + _PIECE])
            for file, requests, part in zip(files, found, parts, strict=True)
            for asked in [requests[part]]
            for start in range(0, len(asked), _PIECE)
        ]

    return read_parts(texts.folder, look)
