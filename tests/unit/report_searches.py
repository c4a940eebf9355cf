"""A sweep, a study and a replay that were never made, and what to read off their page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
COLUMNS = ("gain", "target_gain", "forgetting", "score", "pruned_at", "error")
EPSILON, DELTA = "mixture.epsilon", "mixture.delta"
# score = target_gain − forgetting; a, b and c are beaten by none, d by b, and e was stopped before
# it could tell.
GRID: Rows = [
    {
        "trial": "a",
        EPSILON: 0.5,
        DELTA: 0.1,
        "target_gain": 0.04,
        "forgetting": -0.01,
        "score": 0.05,
    },
    {"trial": "b", EPSILON: 0.5, DELTA: 0.2, "target_gain": 0.08, "forgetting": 0.0, "score": 0.08},
    {
        "trial": "c",
        EPSILON: 2.0,
        DELTA: 0.1,
        "target_gain": 0.1234,
        "forgetting": 0.0512,
        "score": 0.0722,
    },
    {
        "trial": "d",
        EPSILON: 2.0,
        DELTA: 0.2,
        "target_gain": 0.06,
        "forgetting": 0.03,
        "score": 0.03,
    },
    {
        "trial": "e",
        EPSILON: 8.0,
        DELTA: 0.1,
        "target_gain": 0.09,
        "forgetting": 0.005,
        "score": 0.085,
        "pruned_at": 40,
    },
    {"trial": "f", "error": "ValueError: the loss is no number\n at step 12"},
]


def put(folder: Path, name: str, tree: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(
        tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8"
    )


def put_sweep(
    folder: Path, rows: Rows = GRID, front: tuple[str, ...] = ("a", "b", "c"), best: bool = True
) -> Path:
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key not in ("trial", *COLUMNS)
    ]
    objectives = [
        name
        for name in COLUMNS
        if name in ("pruned_at", "error") or any(name in row for row in rows)
    ]
    (folder / "sweep").mkdir(parents=True, exist_ok=True)
    table = {name: [row.get(name) for row in rows] for name in ("trial", *keys, *objectives)}
    pq.write_table(pa.table(table), folder / "sweep" / "results.parquet")
    put(folder, "sweep/pareto.json", [row for row in rows if row["trial"] in front])
    if best:
        put(folder, "sweep/best.yaml", "run: search-best\n")
    return folder


def mean(value: float, half: float, n: int = 5) -> dict[str, Any]:
    return {"mean": value, "half_width": half, "n": n}


def put_study(folder: Path, **changes: Any) -> Path:
    rows = {
        "uniform": {"law": mean(4.0, 0.01), "mean": mean(4.119, 0.012)},
        "σ = 1": {"law": mean(3.9, 0.02), "mean": mean(4.0987, 0.0204)},
        "σ = 2": {"law": mean(4.1, 0.02), "mean": mean(4.12, 0.0204)},
    }
    differences = {
        "uniform": None,
        "σ = 1": mean(-0.0203, 0.0144) | {"p": 0.017, "holm": 0.034},
        "σ = 2": mean(0.001, 0.002) | {"p": 0.4, "holm": 0.4},
    }
    table = {
        "title": "Held-out loss",
        "columns": ["law", "mean"],
        "rows": rows,
        "of": "mean",
        "baseline": "uniform",
    }
    put(folder, "study/tables.json", [table | {"differences": differences, "digits": 3} | changes])
    return folder


def put_replay(folder: Path, domains: tuple[str, ...] = ("law", "code")) -> Path:
    shares = {
        "recorded": [[0.5, 0.5], [0.6, 0.4]],
        "sigma=2": [[0.5, 0.5], [0.75, 0.25]],
        "sigma=0.5": [[0.5, 0.5], [0.55, 0.45]],
    }
    put(
        folder,
        "replay/trajectories.json",
        {"steps": [0, 10], "domains": list(domains), "shares": shares},
    )
    return folder


def sections_of(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page)


def rows_of(page: str, section: str) -> list[str]:
    part = page[page.index(f'<section id="{section}"') :]
    return re.findall(r'<th scope="row"[^>]*><bdi>(.*?)</bdi>', part[: part.index("</table>")])
