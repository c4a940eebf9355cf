"""Replay against forgetting: texts that the base model wrote itself, from its start token alone, as
a part of a domain's records. They are detection's sequences; what is missing of them is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from versatune_ray.detection.generate import GENERATED
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import cached
from versatune_ray.runs.parts import read_rows
from versatune_ray.settings import Domain, Source


def written_texts(
    sequences: Path, count: int, cache: Path, where: Mapping[str, Sequence[Any]] | None = None
) -> Path:
    """A file of the texts among the first ``count`` of a store of sequences: without those that
    failed, are empty, or repeat a token or a short cycle of them.

    Args:
        where: column → values of the domain's records (``domains.NAME.where``), which these texts
            get, or they would be left out of it.

    Raises:
        UserError: none is left.
    """

    def build(work: Path) -> None:
        table = read_rows(sequences, GENERATED, ["id", "text", "degenerate", "discarded"])
        good = pc.and_(table["discarded"].is_null(), pc.invert(table["degenerate"]))
        texts = table.filter(pc.and_(good, pc.less(table["id"], count)))["text"].to_pylist()
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise UserError(
                f"training.keep.replay: none of the {count} sequences that the base model wrote is "
                f"a text to learn from; leave it out"
            )
        marks = {column: [value] * len(texts) for column, value in chosen.items()}
        pyarrow.parquet.write_table(pa.table(marks | {"text": texts}), work / "written.parquet")

    chosen = {column: values[0] for column, values in (where or {}).items()}
    parts = {"sequences": sequences.name, "count": count} | ({"where": chosen} if chosen else {})
    return cached(cache, "written", parts, build)[0] / "written.parquet"


def with_written(
    domains: Mapping[str, Domain], replay: Mapping[str, float], files: Mapping[str, Path]
) -> dict[str, Domain]:
    """The domains, of which those in ``replay`` take that part of their samples from their one of
    ``files``; what their own sources give keeps its proportions.
    """
    return {
        name: domain.model_copy(update={"train": _sources(domain, replay[name], files[name])})
        if replay.get(name)
        else domain
        for name, domain in domains.items()
    }


def _sources(domain: Domain, part: float, file: Path) -> list[str | Source]:
    own = domain.weights or [1.0] * len(domain.train)
    total = sum(own)
    weighed = [
        Source(path=spec, weight=(1 - part) * weight / total, hold_out=held_out)
        for spec, weight, held_out in zip(domain.specs("train"), own, domain.held_out, strict=True)
    ]
    return [*weighed, Source(path=str(file), weight=part, hold_out=False)]
