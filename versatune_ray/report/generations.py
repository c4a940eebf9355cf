"""The few generations shown on the page, read from the samples of a detection without loading them
all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from versatune_ray.detection.generate import GENERATED
from versatune_ray.detection.texts import stored_texts
from versatune_ray.report.writing import clean, cut, one_line
from versatune_ray.runs.parts import read_rows

PER_DOMAIN = PER_REASON = 3
MOST_REASONS = 8
CHARACTERS = 400
Identity = tuple[Any, ...]  # (id, repeat), or (id,) where samples have no repeat


@dataclass(frozen=True)
class Generation:
    """One sequence that the base model wrote. A kept one has the judge's ``probabilities``, largest
    first; one set aside a ``reason``, its ``detail``, and what the judge wrote, where it wrote.
    """

    id: str
    text: str
    tokens: int | None
    probabilities: tuple[tuple[str, float], ...] = ()
    reason: str = ""
    detail: str = ""
    answer: str = ""

    @property
    def domain(self) -> str:
        return self.probabilities[0][0]


@dataclass(frozen=True)
class Examples:
    """``problem`` says why there are no kept ones."""

    kept: tuple[Generation, ...] = ()
    discarded: tuple[Generation, ...] = ()
    problem: str = ""


def read_examples(
    files: Sequence[Path], domains: Sequence[str], store: tuple[Path, str | None] | None = None
) -> Examples:
    """The first ``PER_DOMAIN`` kept samples by id of each most probable domain, and the first
    ``PER_REASON`` discarded ones of each of the first ``MOST_REASONS`` reasons; texts are cut at
    ``CHARACTERS``, and read for these rows alone. Where the samples
    have no texts, these are in the ``store`` that a file names.
    """
    if not files:
        absent = "No samples/*.parquet beside the distribution"
        return Examples(problem=f"{absent}: example generations cannot be shown.")
    try:
        texts = stored_texts(store[0], store[1]) if store is not None and store[1] else None
        samples = _Samples(files, domains, texts)
        kept = samples.kept()
        lost = "Every sample was discarded: there is no judged generation to show."
        return Examples(kept, samples.discarded(), "" if kept else lost)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        return Examples(problem=f"The samples could not be read: {one_line(error)}.")


class _Samples:
    def __init__(self, files: Sequence[Path], domains: Sequence[str], store: Path | None):
        # A file whose samples were all kept may type its empty `discarded` column as null.
        schema = pa.unify_schemas(
            [pq.read_schema(file) for file in files], promote_options="permissive"
        )
        self.samples = pads.dataset([str(file) for file in files], format="parquet", schema=schema)
        self.domains = domains
        self.columns, self.store = {clean(name): name for name in schema.names}, store
        missing = [name for name in ("id", *domains) if name not in self.columns]
        if missing:
            raise ValueError(f"no column {missing[0]!r}")
        if "text" not in self.columns and store is None:
            raise ValueError("their texts are no longer in the storage's .cache/generated")
        self.keys = [name for name in ("id", "repeat") if name in self.columns]

    def kept(self) -> tuple[Generation, ...]:
        condition = pads.field("discarded").is_null() if "discarded" in self.columns else None
        table = self._table([self.columns[name] for name in self.domains], condition)
        if not table.num_rows:
            return ()
        columns = [table[self.columns[name]].cast(pa.float64()) for name in self.domains]
        found = np.column_stack([column.to_numpy() for column in columns])
        found = np.where(np.isfinite(found), found, 0.0)
        best = found.argmax(axis=1)
        places = [np.flatnonzero(best == k)[:PER_DOMAIN] for k in range(len(self.domains))]
        chosen = np.concatenate(places).tolist()
        made = []
        for place, row in zip(chosen, self._rows(table, chosen), strict=True):
            pairs = zip(self.domains, found[place].tolist(), strict=True)
            ranked = tuple(sorted(pairs, key=lambda pair: -pair[1]))
            made.append(Generation(*_told(row), probabilities=ranked))
        return tuple(made)

    def discarded(self) -> tuple[Generation, ...]:
        if "discarded" not in self.columns:
            return ()
        table = self._table(["discarded"], pads.field("discarded").is_valid())
        places: dict[str, list[int]] = {}
        for place, told in enumerate(table["discarded"].to_pylist()):
            reason = _parted(told)[0]
            if reason in places or len(places) < MOST_REASONS:
                places.setdefault(reason, []).append(place)
        chosen = [place for group in places.values() for place in group[:PER_REASON]]
        made = []
        for row in self._rows(table, chosen):
            reason, detail = _parted(row["discarded"])
            detail, answer = cut(detail, CHARACTERS), _shown(row.get("answer"))
            made.append(Generation(*_told(row), reason=reason, detail=detail, answer=answer))
        return tuple(made)

    def _table(self, columns: Sequence[str], condition: Any) -> pa.Table:
        """Some columns of the samples that meet ``condition``, in the order of their ids."""
        table = self.samples.to_table(columns=[*self.keys, *columns], filter=condition)
        return table.sort_by([(name, "ascending") for name in self.keys])

    def _rows(self, table: pa.Table, places: Iterable[int]) -> list[dict[str, Any]]:
        """The texts of some rows of ``table``."""
        wanted: list[Identity] = [
            tuple(table[name][place].as_py() for name in self.keys) for place in places
        ]
        ids = pads.field("id").isin(list({identity[0] for identity in wanted}))
        texts = [name for name in ("text", "tokens", "discarded", "answer") if name in self.columns]
        found = self.samples.to_table(columns=[*self.keys, *texts], filter=ids)
        rows = {tuple(row[key] for key in self.keys): row for row in found.to_pylist()}
        if "text" not in self.columns and self.store is not None and wanted:
            stored = read_rows(self.store, GENERATED, ["id", "text"], ids)
            by_id = dict(zip(stored["id"].to_pylist(), stored["text"].to_pylist(), strict=True))
            for row in rows.values():
                row["text"] = by_id[row["id"]]
        return [rows[identity] for identity in wanted]


def _parted(told: Any) -> tuple[str, str]:
    """``"reason: detail"`` in its two halves; a reason is short, so that it can head a group."""
    reason, _, detail = str(clean(str(told))).partition(":")
    return cut(" ".join(reason.split()), 80) or "no reason given", detail.strip()


def _told(row: dict[str, Any]) -> tuple[str, str, int | None]:
    tokens = row.get("tokens")
    shown = tokens if isinstance(tokens, int) else None
    return str(clean(str(row["id"]))), _shown(row["text"]), shown


def _shown(text: Any) -> str:
    return cut(clean(str(text)), CHARACTERS) if text else ""
