"""The study of a GPU machine, to its end on a tiny model: without a GPU, without Ray."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from tiny import random_llama, word_tokenizer, write_records

from versatune_ray.settings.loading import load

DOMAINS = ("law", "medicine", "finance", "science", "code", "general")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, whose folder is no package."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    for name in ("common", "study"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("study")
    for name in ("common", "study"):
        del sys.modules[name]


def test_its_sizes_with_a_gpu_are_those_it_says(study: Any, tmp_path: Path) -> None:
    files = [study.CONFIGS / "smollm2.yaml", study.CONFIGS / "study_smollm2.yaml"]
    training = load(files, [*study.SIZES[True].split(), *study.COMMON.split()]).training
    assert training.epochs * (training.samples_per_epoch or 0) / training.batch_size == 144
    assert training.batch_size == 64 and training.lora.rank is None
    absent = tmp_path / "distribution.json"
    listed = set(load(files).study.methods) | set(
        load([study.CONFIGS / "study_real.yaml"]).study.methods
    )
    with_gpu = study.methods(absent, True)
    assert list(with_gpu)[:2] == ["uniform", "balanced"] and set(with_gpu) < listed
    assert not any("detected" in str(one) or "trajectory" in str(one) for one in with_gpu.values())
    absent.write_text("{}")
    assert {"paper", "detected, σ = 1"} <= set(study.methods(absent, True))


def test_the_study_of_a_gpu_machine_comes_to_its_end(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_llama(tmp_path / "tiny", max_position_embeddings=128)
    word_tokenizer(tmp_path / "tiny", ["<s>", "</s>", "<pad>", *(f"w{i}" for i in range(3, 64))])
    data, out = tmp_path / "data", tmp_path / "out"
    for folder in (data / "sft", data / "eval", tmp_path / ".model"):
        folder.mkdir(parents=True)
    for place, name in enumerate(DOMAINS):
        rows = [
            {"instruction": f"w{3 + place} w{9 + n}", "input": "", "output": f"w{20 + place} w{n}"}
            for n in range(3, 50)
        ]
        write_records(data / "sft" / f"{name}.jsonl", rows)
    for name in ("medmcqa", "scieval", "hellaswag"):
        rows = [
            # which choice a number means is beyond doubt there: by its place
            {"question": f"w{n}", "choices": ["1", "2", "w3 w4", "0"], "answer": n % 4}
            for n in range(3, 13)
        ]
        write_records(data / "eval" / f"{name}.jsonl", rows)
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study, "model", lambda storage: tmp_path / "tiny")
    monkeypatch.setattr(sys, "argv", ["study.py", str(data)])
    monkeypatch.setenv("OUT", str(out))
    monkeypatch.chdir(tmp_path)
    assert study.main() == 0

    left = json.loads((out / "outcomes.json").read_text())
    assert left["chance"] == {"medicine": 0.25, "science": 0.25, "general": 0.25}
    assert list(left["found"]) == ["uniform", "balanced"]
    for seeds in left["found"].values():
        (outcome,) = seeds.values()
        assert list(outcome["after"]) == list(DOMAINS) and outcome["after"] != outcome["before"]
        assert outcome["choices"].keys() == left["chance"].keys() == left["base"].keys()
    tables = (out / "tables.md").read_text()
    assert "| uniform |" in tables and "| balanced |" in tables
    assert "**Multiple choice after training" in tables and "Not done" not in tables
