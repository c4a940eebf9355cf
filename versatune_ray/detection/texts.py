"""What detection hands from step to step: texts to judge, and what is known of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from numpy.typing import NDArray

from versatune_ray.detection.distribution_file import Distribution
from versatune_ray.detection.generate import GENERATED, Generator
from versatune_ray.errors import UserError
from versatune_ray.runs.parts import read_rows
from versatune_ray.runs.storage import fetch, here, pull
from versatune_ray.settings.location import mirrored

Array = NDArray[np.float64]

_STORE = r"\.cache/generated/[0-9a-f]{16}"  # the only place that a file may name


class Texts(NamedTuple):
    """Texts to be judged: the folder of their parts, the first ``size`` of them, and the folder of
    the answers.
    """

    folder: Path
    size: int
    judged: Path
    exclude_degenerate: bool = False


class TextFile(NamedTuple):
    """A file of texts, the number of its store, and requests to be made about it, sorted int64
    [r].
    """

    store: int
    file: Path
    ids: NDArray[np.int64]


class Sequences(NamedTuple):
    """The first n sequences of a model with what the judge made of them; ``shares`` [n, k] is NaN
    where there is a reason instead.
    """

    ids: NDArray[np.int64]
    tokens: NDArray[np.int64]
    text_hash: NDArray[np.int64]
    degenerate: NDArray[np.bool_]
    shares: Array
    mass: Array
    answer: list[str | None]
    discarded: list[str | None]

    @property
    def kept(self) -> NDArray[np.bool_]:
        return np.array([reason is None for reason in self.discarded], dtype=bool)


class Labelled(NamedTuple):
    """Texts whose domain is known: the folder of their parts, the domain of each, int [m], and the
    folder of the answers.
    """

    folder: Path
    truth: NDArray[np.int64]
    judged: Path

    @property
    def texts(self) -> Texts:
        return Texts(self.folder, len(self.truth), self.judged)


@dataclass
class Detected:
    """One model on its way: how many of its sequences are there, where the judge's answers about
    them are, and at the end its distribution.
    """

    source: Generator
    judged: Path
    count: int = 0
    rounds: int = 0
    work: dict[str, int] = field(default_factory=lambda: {"generated": 0, "judged": 0})
    distribution: Distribution = field(init=False)

    def texts(self, *, exclude_degenerate: bool) -> Texts:
        """Its sequences, as the judge takes them."""
        return Texts(self.source.folder, self.count, self.judged, exclude_degenerate)


def read_texts(file: Path, first: int, last: int) -> pa.Table:
    """``id`` and ``text`` of the rows ``first`` to ``last`` of a file of texts, in the order of
    their ids.
    """
    between = (pc.field("id") >= first) & (pc.field("id") <= last)
    try:
        table = pyarrow.parquet.read_table(fetch(file), columns=["id", "text"], filters=between)
    except (FileNotFoundError, UserError):  # it has become a part of another since it was listed
        folder = here(file.parent)
        pull(folder)
        table = read_rows(folder, GENERATED, ["id", "text"], between)
    return table.sort_by("id")


def stored_texts(file: Path, store: str) -> Path | None:
    """The folder of a detected model's texts, by its ``distribution.json`` and the ``texts`` in
    it; None where it is no longer there.
    """
    if re.fullmatch(_STORE, store) is None:
        return None
    for storage in file.parents:
        folder = storage / store
        if (found := mirrored(folder)) is not None and found[1] == store:
            pull(folder)
        if folder.is_dir():
            return folder
    return None
