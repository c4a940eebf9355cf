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

from versatune_ray.report.reading import one_line
from versatune_ray.report.writing import clean, cut

PER_DOMAIN = 3
PER_REASON = 3
MOST_REASONS = 8
CHARACTERS = 400
Identity = tuple[Any, ...]  # (id, repeat), or (id,) where samples have no repeat


@dataclass(frozen=True)
class Generation:
    """One sequence that the base model wrote, and what the judge made of it (probability per
    domain).
    """

    id: str
    domain: str
    text: str
    tokens: int | None
    probabilities: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class SetAside:
    """One sequence that counts for no domain: why, and what the judge wrote about it, where it
    wrote.
    """

    id: str
    reason: str
    detail: str
    text: str
    tokens: int | None
    answer: str


def read_generations(
    files: Sequence[Path], domains: Sequence[str]
) -> tuple[tuple[Generation, ...], tuple[SetAside, ...], str]:
    """The first ``PER_DOMAIN`` kept samples by id of each most probable domain, the first
    ``PER_REASON`` discarded ones of each of the first ``MOST_REASONS`` reasons, and a sentence
    where there are none.

    Texts are cut at ``CHARACTERS``. Only the numbers and reasons of every sample are read; texts
    are read for the chosen rows alone.
    """
    if not files:
        return (
            (),
            (),
            "No samples/*.parquet beside the distribution: example generations cannot be shown.",
        )
    try:
        # A file whose samples were all kept may type its empty `discarded` column as null.
        schema = pa.unify_schemas(
            [pq.read_schema(file) for file in files], promote_options="permissive"
        )
        samples = _Samples(
            pads.dataset([str(file) for file in files], format="parquet", schema=schema), domains
        )
        kept = samples.kept()
        return (
            kept,
            samples.discarded(),
            "" if kept else "Every sample was discarded: there is no judged generation to show.",
        )
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        return (), (), f"The samples could not be read: {one_line(error)}."


class _Samples:
    def __init__(self, samples: pads.Dataset, domains: Sequence[str]):
        self.samples, self.domains = samples, domains
        self.columns = {clean(name): name for name in samples.schema.names}
        missing = [name for name in ("id", "text", *domains) if name not in self.columns]
        if missing:
            raise ValueError(f"no column {missing[0]!r}")
        self.keys = [name for name in ("id", "repeat") if name in self.columns]

    def kept(self) -> tuple[Generation, ...]:
        condition = pads.field("discarded").is_null() if "discarded" in self.columns else None
        table = self._table([self.columns[name] for name in self.domains], condition)
        if not table.num_rows:
            return ()
        probabilities = np.column_stack(
            [table[self.columns[name]].cast(pa.float64()).to_numpy() for name in self.domains]
        )
        probabilities = np.where(np.isfinite(probabilities), probabilities, 0.0)
        best = probabilities.argmax(axis=1)
        chosen = np.concatenate(
            [np.flatnonzero(best == index)[:PER_DOMAIN] for index in range(len(self.domains))]
        ).tolist()
        identities = self._identities(table, chosen)
        rows = self._rows(identities)
        return tuple(
            Generation(
                id=str(clean(identity[0])),
                domain=self.domains[best[place]],
                text=_shown(rows[identity]["text"]),
                tokens=_whole(rows[identity].get("tokens")),
                probabilities=tuple(
                    sorted(
                        zip(self.domains, probabilities[place].tolist(), strict=True),
                        key=lambda pair: -pair[1],
                    )
                ),
            )
            for place, identity in zip(chosen, identities, strict=True)
        )

    def discarded(self) -> tuple[SetAside, ...]:
        if "discarded" not in self.columns:
            return ()
        table = self._table(["discarded"], pads.field("discarded").is_valid())
        places: dict[str, list[int]] = {}
        for place, told in enumerate(table["discarded"].to_pylist()):
            reason = _parted(told)[0]
            if reason in places or len(places) < MOST_REASONS:
                places.setdefault(reason, []).append(place)
        chosen = [place for group in places.values() for place in group[:PER_REASON]]
        identities = self._identities(table, chosen)
        rows = self._rows(identities)
        made = []
        for identity in identities:
            row = rows[identity]
            reason, detail = _parted(row["discarded"])
            text, answer = _shown(row["text"]), _shown(row.get("answer"))
            made.append(
                SetAside(
                    str(clean(identity[0])),
                    reason,
                    cut(detail, CHARACTERS),
                    text,
                    _whole(row.get("tokens")),
                    answer,
                )
            )
        return tuple(made)

    def _table(self, columns: Sequence[str], condition: Any) -> pa.Table:
        """Some columns of the samples that meet ``condition``, in the order of their ids."""
        table = self.samples.to_table(columns=[*self.keys, *columns], filter=condition)
        return table.sort_by([(name, "ascending") for name in self.keys])

    def _identities(self, table: pa.Table, places: Iterable[int]) -> list[Identity]:
        return [tuple(table[name][place].as_py() for name in self.keys) for place in places]

    def _rows(self, identities: Sequence[Identity]) -> dict[Identity, dict[str, Any]]:
        wanted = pads.field("id").isin(list({identity[0] for identity in identities}))
        columns = [
            name for name in ("text", "tokens", "discarded", "answer") if name in self.columns
        ]
        found = (
            self.samples.to_table(columns=[*self.keys, *columns], filter=wanted).to_pylist()
            if identities
            else []
        )
        return {tuple(row[key] for key in self.keys): row for row in found}


def _parted(told: Any) -> tuple[str, str]:
    """``"reason: detail"`` in its two halves; a reason is short, so that it can head a group."""
    reason, _, detail = str(clean(str(told))).partition(":")
    return cut(" ".join(reason.split()), 80) or "no reason given", detail.strip()


def _shown(text: Any) -> str:
    return cut(clean(str(text)), CHARACTERS) if text else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None
