"""The tree search of CoFiTune as a user runs it, on a model of which one part alone can learn;
killed in the middle, and run again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import finish_job, kill_job, start_job
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

NAMES = ("law", "code")
LAYERS, MODULES = "training.trainable.layers", "training.trainable.modules"


@pytest.fixture
def planted(tiny_model: Path, tmp_path: Path) -> Path:
    """Four layers of which nothing but the third one's FFN works: elsewhere two matrices in a row
    are 0, and so are their gradients.
    """
    folder = tmp_path / "planted"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 4,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            **shape, max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.3
        )
    )
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            dead = [layer.self_attn.v_proj, layer.self_attn.o_proj]
            for module in dead if number == 2 else [*dead, layer.mlp.up_proj, layer.mlp.down_proj]:
                module.weight.zero_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def job(planted: Path, tmp_path: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    # every word is followed by the next of thirty, in a circle: the word before tells all
    for place, name in enumerate(NAMES):
        chains = [
            [3 + 30 * place + (first + step) % 30 for step in range(7)]
            for first in rng.integers(0, 30, 80)
        ]
        rows = [
            {"prompt": f"w{chain[0]}", "completion": " ".join(f"w{word}" for word in chain[1:])}
            for chain in chains
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        asked = [{"question": row["prompt"], "answer": row["completion"]} for row in rows[:5]]
        (tmp_path / f"{name}-asked.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in asked)
        )
    return {
        "run": "tree",
        "model": {"path": str(planted)},
        "data": {"max_length": 32},
        "domains": {
            name: {
                "train": str(tmp_path / f"{name}.jsonl"),
                "questions": str(tmp_path / f"{name}-asked.jsonl"),
            }
            for name in NAMES
        },
        "mixture": {"start": "uniform", "policy": "constant", "targets": ["law"]},
        "training": {
            "workers": 1,
            "epochs": 1,
            "samples_per_epoch": 320,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "metrics": [],
        },
        "sweep": {
            "objective": {
                "target_gain": 1.0,
                "forgetting": -1.0,
                "target_accuracy": 0.1,
                "other_accuracy": 0.1,
            }
        },
        "cofitune": {"general": ["code"], "records": 16, "concurrency": 2},
    }


def outcomes(run: Path) -> dict[str, float]:
    return {file.parent.name: file.stat().st_mtime for file in run.glob("trials/*/outcome.json")}


@pytest.mark.slow
def test_the_search_finds_the_only_part_that_can_learn_and_survives_a_kill(
    job: dict[str, Any], planted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "tree"
    printed = kill_job(start_job(job, "cofitune.py", tmp_path), lambda: len(outcomes(run)) >= 2)
    before = outcomes(run)
    assert 2 <= len(before) < 8, printed

    printed = finish_job(start_job(job, "cofitune.py", tmp_path))
    after = outcomes(run)
    assert len(after) == 8 and {name: after[name] for name in before} == before
    rows = pq.read_table(run / "sweep" / "results.parquet").to_pylist()
    table = {(row[LAYERS], *row[MODULES]): row["gain"] for row in rows}
    for row in rows:
        weighed = (
            row["target_gain"]
            - row["forgetting"]
            + 0.1 * row["target_accuracy"]
            + 0.1 * row["other_accuracy"]
        )
        assert row["score"] == pytest.approx(weighed)
    third = {key: gain for key, gain in table.items() if key[0] == "50%-75%"}
    assert all(gain == 0 for key, gain in table.items() if key not in third), (
        "what is dead has no gradient"
    )
    assert third.pop(("50%-75%", "attention")) == 0
    assert len(third) == 4 and all(gain > 0.3 for gain in third.values())
    assert (
        "layers: best is layers 50%-75%" in printed
        and "modules: best is layers 50%-75%, ffn" in printed
    )

    best = yaml.safe_load((run / "sweep" / "best.yaml").read_text())
    assert best["training"]["trainable"] == {
        key.rpartition(".")[2]: max(rows, key=lambda row: row["score"])[key]
        for key in (LAYERS, MODULES)
    }
    assert best["training"]["trainable"]["layers"] == "50%-75%"
    (file,) = best["training"]["soft_mask"]
    importance = load_file(file)
    assert set(importance) >= {"model.layers.2.mlp.up_proj", "model.layers.2.mlp.down_proj"}
    finish_job(start_job(best | {"run": "fine"}, "finetune.py", tmp_path))
    was, now = (
        load_file(folder / "model.safetensors")
        for folder in (planted, tmp_path / "runs" / "fine" / "finetune" / "model")
    )
    changed = {name for name in was if not torch.equal(was[name], now[name])}
    assert changed and all(name.startswith("model.layers.2.") for name in changed)
