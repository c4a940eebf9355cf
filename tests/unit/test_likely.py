"""Choices side by side in one row are as likely as each is by itself, and the right ones count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from versatune_ray.domains.chat import load_tokenizer
from versatune_ray.domains.choices import Choices
from versatune_ray.errors import UserError
from versatune_ray.evaluation import likely
from versatune_ray.evaluation.choices import chance, load_choices
from versatune_ray.evaluation.likely import likely_accuracy, log_likelihoods
from versatune_ray.settings.loading import load

ASKED = [
    Choices("w3 w4 w5", ("w6", "w7 w8", "w9 w10 w11"), 0),
    Choices("w12", ("w13 w14", "w15"), 1),
    Choices("w20 w21 w22 w23", ("w24", "w25", "w26 w27"), 2),
]


def one_by_one(network: torch.nn.Module, tokenizer, one: Choices) -> list[float]:
    """log p of every answer, from a forward pass for each."""
    found = []
    for answer in one.answers:
        question = tokenizer.encode(one.question, add_special_tokens=False)
        whole = tokenizer.encode(f"{one.question} {answer}", add_special_tokens=False)
        logs = network(torch.tensor([whole])).logits[0].log_softmax(dim=1)
        found.append(sum(float(logs[at - 1, whole[at]]) for at in range(len(question), len(whole))))
    return found


@torch.no_grad()
def test_each_choice_is_as_likely_as_alone(tiny_model: Path, monkeypatch) -> None:
    tokenizer = load_tokenizer(str(tiny_model), None, False)
    network = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    alone = [one_by_one(network, tokenizer, one) for one in ASKED]
    together = log_likelihoods(network, [likely._tokens(tokenizer, one) for one in ASKED])
    for found, expected in zip(together, alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)

    best = [row.index(max(row)) for row in alone]
    right = [one._replace(right=place) for one, place in zip(ASKED, best, strict=True)]
    wrong = [one._replace(right=(place + 1) % 2) for one, place in zip(ASKED, best, strict=True)]
    for most in (256, 5):  # one row, and a row for each
        monkeypatch.setattr(likely, "_TOKENS", most)
        asked = {"known": [right], "half": [right, wrong], "none": [wrong]}
        assert likely_accuracy(str(tiny_model), asked) == {"known": 1, "half": 0.5, "none": 0}

    # per character of the answer: "w7 w8" has five
    best = [
        max(range(len(row)), key=lambda place: row[place] / len(one.answers[place]))
        for one, row in zip(ASKED, alone, strict=True)
    ]
    assert best != [row.index(max(row)) for row in alone]
    known = [
        one._replace(right=place, per_character=True)
        for one, place in zip(ASKED, best, strict=True)
    ]
    assert likely_accuracy(str(tiny_model), {"known": [known]}) == {"known": 1}


def test_own_multiple_choice_is_read_as_the_harness_asks_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exam = tmp_path / "exam.jsonl"
    rows = [{"question": f"Q{n}", "choices": ["a", "b", "c", "d"], "answer": n} for n in range(3)]
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = tmp_path / "written.jsonl"
    written.write_text(json.dumps({"question": "Q", "answer": "yes"}) + "\n")
    lettered, whole = (
        {"task": str(exam)},
        {"task": str(exam), "choices": "texts", "name": "t", "shots": 5},
    )
    benchmarks = json.dumps({"law": [lettered, whole, "hellaswag"], "code": [str(written)]})
    config = load([], [f"evaluation.benchmarks={benchmarks}", "evaluation.limit=2"])
    found = load_choices(config)
    assert list(found) == ["law"]
    said = capsys.readouterr().out
    assert f"{exam}: asked without its 5 examples" in said
    assert f"no multiple choice of your own: hellaswag, {written}; jobs/evaluate.py" in said
    letters, texts = found["law"]
    question = "Q1\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    assert letters[1] == Choices(question, ("A", "B", "C", "D"), 1)
    assert texts == [Choices(f"Q{n}\nAnswer:", ("a", "b", "c", "d"), n) for n in range(2)]
    per_character = load([], [f"evaluation.benchmarks.law=[{json.dumps(whole)}]"])
    (one,) = per_character.evaluation.benchmarks["law"]
    per_character.evaluation.benchmarks["law"] = [one.model_copy(update={"metric": "acc_norm"})]
    assert load_choices(per_character)["law"][0][0].per_character
    per_character.evaluation.benchmarks["law"] = [one.model_copy(update={"metric": "f1"})]
    with pytest.raises(UserError, match=r"law\.metric: 'f1' is not counted .*valid: acc, acc_norm"):
        load_choices(per_character)


def test_chance_is_the_mean_over_questions_and_benchmarks() -> None:
    two, four = Choices("", ("a", "b"), 0), Choices("", ("a", "b", "c", "d"), 0)
    assert chance([[two, four], [four]]) == pytest.approx((0.375 + 0.25) / 2)
