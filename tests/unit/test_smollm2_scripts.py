"""The scripts beside SmolLM2's configurations, on a tiny model: the judge that is tuned there
learns and judges, and multiple choice is counted.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import ROOT
from tiny import write_records
from transformers import AutoModelForCausalLM

from versatune_ray.detection.judge_classifier import Classifier, class_of
from versatune_ray.domains.chat import load_tokenizer
from versatune_ray.domains.labelled import text_hash
from versatune_ray.settings import Config
from versatune_ray.settings.loading import load

WORDS = {"law": [f"w{number}" for number in range(3, 20)], "code": ["w40", "w41", "w42"]}


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "jobs" / "configs" / "smollm2" / f"{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configuration(folder: Path, model: Path) -> Config:
    rng = np.random.default_rng(0)
    keys = [f"model.path={model}", f"storage={folder}", "base.held_out=0.3", "seed=1"]
    for name, words in WORDS.items():
        rows = [{"text": " ".join(rng.choice(words, 30))} for _ in range(20)]
        file = write_records(folder / f"{name}.jsonl", rows)
        keys += [f"base.corpora.{name}={file}", f"domains.{name}.train={file}"]
    return load([], keys)


def test_a_judge_is_tuned_on_texts_that_do_not_measure_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = script("classifier")
    monkeypatch.setattr(classifier, "LAYERS", 1)
    monkeypatch.setattr(classifier, "PIECES", 960)
    config = configuration(tmp_path, tiny_model)
    below = int(0.3 * 2.0**64)
    read = [text for _, text in classifier.read_texts([str(tmp_path / "law.jsonl")])]
    apart = [text for text in read if text_hash(text) < below]
    assert 0 < len(apart) < 20
    found = classifier.pieces(config, np.random.default_rng(0))
    assert sorted(label for _, label in found) == [0] * 480 + [1] * 480
    assert not any(piece in text for piece, label in found if label == 0 for text in apart)

    monkeypatch.setattr(
        "sys.argv",
        ["classifier.py", "--save", str(tmp_path / "judge"), f"model.path={tiny_model}"]
        + [f"base.corpora.{name}={tmp_path}/{name}.jsonl" for name in WORDS]
        + [f"domains.{name}.train={tmp_path}/{name}.jsonl" for name in WORDS]
        + ["base.held_out=0.3"],
    )
    classifier.main()
    judge = Classifier(str(tmp_path / "judge"), [0, 1], 48, gpu=False, trust_remote_code=False)
    labels = judge._model.config.id2label
    assert [class_of(name, name, labels) for name in WORDS] == [0, 1]
    texts = [" ".join(WORDS["law"]), "w40 w42 w41 w41"]
    answered = judge(pa.table({"id": [0, 1], "text": texts, "store": ["a", "a"]}))
    values = answered["values"].to_pylist()
    assert values[0][0] > values[1][0] + 0.02  # of thirty steps on random layers


def test_what_is_missing_is_told_in_one_line(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    classifier = script("classifier")
    domains = [f"domains.{name}.train={tmp_path}/{name}.jsonl" for name in WORDS]
    corpora = [f"base.corpora.{name}={tmp_path}/{name}.jsonl" for name in WORDS]
    for given, told in (
        ([], "error: model.path and domains: name a model"),
        ([f"model.path={tiny_model}", *domains], "error: base.corpora.law: no texts"),
        ([f"model.path={tiny_model}", *domains, *corpora], "law.jsonl"),
    ):
        monkeypatch.setattr(
            "sys.argv", ["classifier.py", "--save", str(tmp_path / "judge"), *given]
        )
        with pytest.raises(SystemExit) as ended:
            classifier.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and said.count("\n") == 1 and told in said


@torch.no_grad()
def test_multiple_choice_is_counted_set_by_set(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers of one token: the likeliest next one is the model's answer."""
    tokenizer = load_tokenizer(str(tiny_model), None, False)
    network = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    choices = [f"w{number}" for number in range(40, 44)]
    ids = [tokenizer.encode(one, add_special_tokens=False)[0] for one in choices]
    questions = [f"w{3 + number % 20} w{5 + number % 7} w{9 + number % 11}" for number in range(40)]
    rng, wanted = np.random.default_rng(3), {"easy": 0, "hard": 0}
    for name in wanted:
        rows = []
        for question in questions:
            prompt = tokenizer.encode(f"{question}\nAnswer:", add_special_tokens=False)
            likely = int(network(torch.tensor([prompt])).logits[0, -1, ids].argmax())
            answer = likely if name == "easy" and rng.random() < 0.8 else int(rng.integers(4))
            wanted[name] += answer == likely
            rows.append({"question": question, "choices": choices, "answer": "ABCD"[answer]})
        write_records(tmp_path / f"{name}.jsonl", rows)
    assert 0 < wanted["hard"] < wanted["easy"] < 40
    sets = {name: [{"task": f"{tmp_path}/{name}.jsonl", "choices": "texts"}] for name in wanted}
    asked = [f"model.path={tiny_model}", f"evaluation.benchmarks={json.dumps(sets)}"]
    monkeypatch.setattr("sys.argv", ["multiple_choice.py", *asked])
    script("multiple_choice").main()
    _, _, *lines = capsys.readouterr().out.strip().splitlines()
    for (name, right), line in zip(wanted.items(), lines, strict=True):
        accuracy = right / 40
        error = (accuracy * (1 - accuracy) / 40) ** 0.5
        assert line == (
            f"| {name} | 40 | {accuracy:.1%} ± {error:.1%} | 25.0% "
            f"| {(accuracy - 0.25) / error:+.1f} |"
        )

    monkeypatch.setattr("sys.argv", ["multiple_choice.py", f"model.path={tiny_model}"])
    with pytest.raises(SystemExit) as ended:
        script("multiple_choice").main()
    assert ended.value.code == 2
    assert "name a model and multiple choice" in capsys.readouterr().err
