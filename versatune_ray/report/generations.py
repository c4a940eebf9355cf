"""The few generations shown on the page, read from the samples of a detection without loading them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from versatune_ray.report.writing import clean, cut

PER_DOMAIN = 3
CHARACTERS = 400


@dataclass(frozen=True)
class Generation:
    """One sequence that the base model wrote, and what the judge made of it (probability per domain)."""

    id: str
    domain: str
    text: str
    tokens: int | None
    probabilities: tuple[tuple[str, float], ...]


def read_generations(files: Sequence[Path], domains: Sequence[str]) -> tuple[tuple[Generation, ...], str]:
    """The first ``PER_DOMAIN`` kept samples by id of each most probable domain, and a sentence where there are none.

    Texts are cut at ``CHARACTERS``. Only the numbers of every sample are read; texts are read for the chosen rows alone.
    """
    if not files:
        return (), "No samples/*.parquet beside the distribution: example generations cannot be shown."
    try:
        # A file whose samples were all kept may type its empty `discarded` column as null.
        schema = pa.unify_schemas([pq.read_schema(file) for file in files], promote_options="permissive")
        return _choose(pads.dataset([str(file) for file in files], format="parquet", schema=schema), domains)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        return (), f"The samples could not be read: {clean(' '.join(str(error).split()))}."


def _choose(samples: pads.Dataset, domains: Sequence[str]) -> tuple[tuple[Generation, ...], str]:
    columns = {clean(name): name for name in samples.schema.names}
    missing = [name for name in ("id", "text", *domains) if name not in columns]
    if missing:
        raise ValueError(f"no column {missing[0]!r}")
    keys = [name for name in ("id", "repeat") if name in columns]
    kept = pads.field("discarded").is_null() if "discarded" in columns else None
    table = samples.to_table(columns=[*keys, *(columns[name] for name in domains)], filter=kept)
    if not table.num_rows:
        return (), "Every sample was discarded: there is no example generation to show."
    probabilities = np.column_stack([table[columns[name]].cast(pa.float64()).to_numpy() for name in domains])
    probabilities = np.where(np.isfinite(probabilities), probabilities, 0.0)
    best = probabilities.argmax(axis=1)
    ordered = table.append_column("row", pa.array(np.arange(table.num_rows))).sort_by([(name, "ascending") for name in keys])
    order = ordered["row"].to_numpy()
    chosen = np.concatenate([order[best[order] == index][:PER_DOMAIN] for index in range(len(domains))])
    identities = [tuple(table[name][int(row)].as_py() for name in keys) for row in chosen]
    texts = _texts(samples, keys, identities, "tokens" in columns)
    return tuple(
        Generation(
            id=str(clean(identity[0])),
            domain=domains[best[row]],
            text=cut(clean(texts[identity][0]), CHARACTERS),
            tokens=texts[identity][1],
            probabilities=tuple(sorted(zip(domains, probabilities[row].tolist(), strict=True), key=lambda pair: -pair[1])),
        )
        for row, identity in zip(chosen, identities, strict=True)
    ), ""


def _texts(
    samples: pads.Dataset, keys: list[str], identities: list[tuple[Any, ...]], with_tokens: bool
) -> dict[tuple[Any, ...], tuple[str, int | None]]:
    wanted = pads.field("id").isin(list({identity[0] for identity in identities}))
    rows = samples.to_table(columns=[*keys, "text", *(["tokens"] if with_tokens else [])], filter=wanted).to_pylist()
    return {
        tuple(row[key] for key in keys): (row["text"] or "", row["tokens"] if isinstance(row.get("tokens"), int) else None) for row in rows
    }
