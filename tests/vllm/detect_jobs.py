"""What detection jobs read and leave: random models and judges, records of domains, distributions
and samples.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from processes import ROOT
from tiny import random_llama, word_tokenizer

# The first tokens of three names are the same, and one of them is the beginning of the others.
DOMAINS = ("law", "law contract", "law criminal", "medicine")
# of the classifier: another order, and one class too many
CLASSES = ("other", "Medicine", "law criminal", "law contract", "LAW")
JUDGE_WORDS = [
    "law",
    "contract",
    "criminal",
    "medicine",
    *"ABCD",
    "A.",
    "B.",
    "C.",
    "D.",
    "answer",
    "?",
]


def random_model(
    folder: Path,
    words: Sequence[str],
    seed: int,
    spread: float = 0.02,
    labels: Sequence[str] | None = None,
) -> Path:
    """An ordinary folder with a random Llama that knows ``words``; with ``labels``, a classifier.
    Heads of 32 suit vLLM on a CPU.
    """
    known = ["<s>", "</s>", "<pad>", "<unk>", *words]
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    shape = {"vocab_size": len(known), "max_position_embeddings": 256, "initializer_range": spread}
    random_llama(folder, seed, labels, **shape, **special)
    word_tokenizer(folder, known)
    return folder


def base_model(folder: Path, seed: int) -> Path:
    """A model that writes all words about equally often, and ends after 300 of them or so."""
    return random_model(folder, [f"w{i}" for i in range(300)], seed)


def judge_model(folder: Path) -> Path:
    """A judge of strong opinions that mean nothing."""
    return random_model(folder, [*JUDGE_WORDS, *(f"w{i}" for i in range(12))], 7, spread=0.3)


def classifier_model(folder: Path) -> Path:
    return random_model(folder, [f"w{i}" for i in range(300)], 8, spread=0.3, labels=CLASSES)


def write_domains(
    folder: Path, names: Sequence[str] = DOMAINS, count: int = 10
) -> dict[str, dict[str, str]]:
    """Records to train on, which detection does not read, and texts to measure the judge on."""
    found, rng = {}, np.random.default_rng(5)
    for name in names:
        train, labelled = folder / f"{name}.train.jsonl", folder / f"{name}.labelled.jsonl"
        train.write_text(json.dumps({"prompt": "w1", "completion": "w2"}) + "\n")
        texts = [
            " ".join(f"w{word}" for word in rng.integers(0, 300, rng.integers(5, 25)))
            for _ in range(count)
        ]
        labelled.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        found[name] = {"train": str(train), "labelled": str(labelled)}
    return found


def job(config: Path, *overrides: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of jobs/detect.py on a cluster of its own."""
    command = [
        sys.executable,
        str(ROOT / "jobs" / "detect.py"),
        "--config",
        str(config),
        *overrides,
    ]
    return command, os.environ | {"RAY_ADDRESS": "local"}


def run_job(config: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command, environment = job(config, *overrides)
    return subprocess.run(
        command, capture_output=True, text=True, cwd=config.parent, env=environment, check=False
    )


def distribution(storage: Path, run: str, model: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (storage / run / "detection" / model / "distribution.json").read_text()
    )
    return found


def samples(folder: Path) -> pa.Table:
    return pyarrow.dataset.dataset(folder).to_table().sort_by("id")


def assert_complete(table: pa.Table, found: dict[str, Any], count: int) -> None:
    """Every id is there once, with probabilities that sum to 1 or the reason why there are none."""
    assert table["id"].to_pylist() == list(range(count))
    assert table["repeat"].to_pylist() == [
        number % len(found["repeats"]) for number in range(count)
    ]
    judged = table.filter(table["discarded"].is_null())
    np.testing.assert_allclose(
        np.sum([judged[name].to_numpy() for name in found["domains"]], axis=0), 1, atol=1e-6
    )
    assert found["samples"] == count
    assert (
        found["discarded"]["total"]
        == count - judged.num_rows
        == sum(found["discarded"]["reasons"].values())
    )
    assert np.isclose(sum(found["share"]), 1)
