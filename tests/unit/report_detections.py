"""Detections that were never made, with every file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from report_runs import SIX

NAMES = ("Llama-2-7b", "Qwen2.5-7B", "gemma-2-9b", "tiny-base")


def fabricate_detections(
    folder: Path,
    names: tuple[str, ...],
    *,
    domains: tuple[str, ...] = SIX,
    text: str = "The statute sets a fine of 40 marks.",
    reason: str = "empty generation",
    failed: dict[str, str] | None = None,
    seed: int = 0,
) -> Path:
    """Write what a finished detection job leaves: configuration, timings, one folder per model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "run": folder.name,
        "seed": 7,
        "domains": {key: {} for key in domains},
        "mixture": {"policy": "versatune", "start": "detected"},
    }
    config |= {
        "detection": {
            "models": [{"path": name} for name in names],
            "samples": 400,
            "repeats": 5,
            "judge": {"path": "org/judge-7b"},
        }
    }
    (folder / "config.yaml").write_text(json.dumps(config, indent=1))
    steps = [{"name": "detection", "seconds": 1210.5, "cached": False}]
    (folder / "timings.json").write_text(
        json.dumps({"steps": steps, "finished": "2026-07-01T12:00:00+00:00"})
    )
    (folder / "detection").mkdir()
    (folder / "detection/failed.json").write_text(json.dumps(failed or {}))
    rng = np.random.default_rng(seed)
    for place, name in enumerate(names):
        inside = folder / "detection" / f"model-{place:02d}"
        (inside / "samples").mkdir(parents=True)
        (inside / "distribution.json").write_text(
            json.dumps(distribution(name, domains, rng, place))
        )
        pq.write_table(samples(domains, text, reason, rng), inside / "samples/part-0.parquet")
    return folder


def distribution(
    name: str, domains: tuple[str, ...], rng: np.random.Generator, place: int = 0
) -> dict[str, Any]:
    """A plausible ``distribution.json`` with every key; the first model is a published one, every
    third has a known mixture.
    """
    k, n = len(domains), 2000
    share = rng.dirichlet(np.linspace(1.2, 6, k))
    corrected = np.abs(share + rng.normal(0, 0.15 / k, k))
    corrected /= corrected.sum()
    half = 1.96 * np.sqrt(share * (1 - share) / n)
    confusion = 0.8 * np.eye(k) + 0.2 * np.random.default_rng(1).dirichlet(np.ones(k), k)
    known = np.abs(share + rng.normal(0, 0.1 / k, k))
    known /= known.sum()
    published = np.abs(share + rng.normal(0, 0.2 / k, k))
    published /= published.sum()
    found: dict[str, Any] = {
        "name": name,
        "model": f"/models/{name}",
        "domains": list(domains),
        "share": share.tolist(),
    }
    found |= {"ci95": np.clip(np.stack([share - half, share + half], 1), 0, 1).tolist()}
    found |= {
        "repeats": [(share + rng.normal(0, 0.03 / k, k)).tolist() for _ in range(5)],
        "repeats_differ": 0.42,
    }
    found |= {
        "samples": n,
        "tokens": 412_345,
        "discarded": {"total": 31, "reasons": {"empty generation": 20, "judging failed": 11}},
    }
    found |= {
        "generations": {
            "empty": 20,
            "degenerate": 14,
            "degenerate_excluded": False,
            "distinct": 1957,
        }
    }
    found |= {
        "tolerance": {"asked": 0.025, "reached": float(half.max()), "rounds": 3, "cap": 10_000},
        "judge": "org/judge-7b",
    }
    quality = {
        "records": [100] * k,
        "confusion": confusion.tolist(),
        "recall": np.diag(confusion).tolist(),
        "accuracy": 0.83,
    }
    found |= {
        "judge_quality": quality | {"log_loss": 0.52, "chance": float(np.log(k)), "mass": 0.94}
    }
    found |= {
        "positions": {"share": (np.ones(k) / k).tolist(), "standard_error": [0.004] * k},
        "used": "raw",
        "settings": {},
    }
    found |= {
        "corrected": {"share": corrected.tolist(), "total_variation": 0.031}
        | {
            "ci95": np.clip(
                np.stack([corrected - 2 * half, corrected + 2 * half], 1), 0, 1
            ).tolist()
        }
    }
    found |= {
        "published": {"model": "qwen2.5-7b", "share": published.tolist()} if place == 0 else None
    }
    found |= {
        "known": known.tolist() if place % 3 == 1 else None,
        "total_variation": 0.042 if place % 3 == 1 else None,
    }
    return found


def samples(domains: tuple[str, ...], text: str, reason: str, rng: np.random.Generator) -> pa.Table:
    """Forty rows; every fourth is discarded, for ``reason`` or because judging failed."""
    rows = 40
    probability = rng.dirichlet(np.full(len(domains), 0.4), rows)
    lost = [
        None if row % 4 else reason if row % 8 else "judging failed: answer is none of the options"
        for row in range(rows)
    ]
    table: dict[str, Any] = {
        "id": list(range(rows)),
        "repeat": [row % 5 for row in range(rows)],
        "tokens": [23] * rows,
        "discarded": lost,
    }
    table |= {
        "text": [
            "" if told == "empty generation" else text * (1 + row % 7)
            for row, told in enumerate(lost)
        ]
    }
    table |= {
        "answer": [
            f"I think {text}" if told and told.startswith("judging") else None for told in lost
        ]
    }
    return pa.table(
        table | {name: probability[:, index].tolist() for index, name in enumerate(domains)}
    )


def edited(folder: Path, model: int, **changes: Any) -> None:
    file = folder / f"detection/model-{model:02d}/distribution.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
