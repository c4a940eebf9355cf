"""Choices side by side in one row are as likely as each is by itself, the right ones count, and
what is read is what lm-evaluation-harness reads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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
    together = log_likelihoods(
        network, [part for one in ASKED for part in likely._tokens(tokenizer, one, 63)]
    )
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


def beginning_with_bos(model: Path, folder: Path) -> Path:
    """The model with a tokenizer that begins every text with BOS, as Llama's do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize(("bos", "metric"), [(False, "acc"), (True, "acc_norm")])
def test_tokens_and_accuracies_are_the_harness_own(
    tiny_model: Path, tmp_path: Path, bos: bool, metric: str
) -> None:
    """Through ``simple_evaluate``, on a model behind the harness's own tokenising of pairs, that
    takes 64 tokens as an engine does: one less, of the last ones.
    """
    api = pytest.importorskip("lm_eval.api.model")
    from transformers import AutoTokenizer

    from versatune_ray.evaluation.benchmarks import asked
    from versatune_ray.evaluation.catalogue import task_manager
    from versatune_ray.evaluation.harness import score

    folder = beginning_with_bos(tiny_model, tmp_path / "bos") if bos else tiny_model
    network = AutoModelForCausalLM.from_pretrained(folder).eval()
    read: list[list[int]] = []

    class Model(api.TemplateLM):  # type: ignore[misc, name-defined]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        eot_token_id, max_length = 1, 64

        def tok_encode(self, string: str, **_: Any) -> list[int]:
            return list(self.tokenizer(string).input_ids)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            found = []
            for _text, context, answer in requests:
                read.append((context + answer)[-63:])
                logs = network(torch.tensor([read[-1]])).logits[0].log_softmax(dim=1)
                size = len(read[-1])
                places = range(size - len(answer), size)
                found.append((sum(float(logs[at - 1, read[-1][at]]) for at in places), False))
            return found

        loglikelihood_rolling = generate_until = None

    Model.__abstractmethods__ = frozenset()
    rows = [
        {
            "question": " ".join(f"w{3 + (7 * n + 5 * word) % 60}" for word in range(size)),
            "choices": [" ".join([f"w{3 + (n + size + 11 * k) % 60}"] * (1 + k)) for k in range(4)],
            "answer": n % 4,
        }
        for n, size in enumerate((*range(1, 30), 59, 60, 61, 62, 63, 90))
    ]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exam = {"task": str(tmp_path / "exam.jsonl"), "choices": "texts", "metric": metric}
    benchmarks = json.dumps({"law": [exam]})
    config = load([], [f"evaluation.benchmarks={benchmarks}", f"storage={tmp_path}"])
    (one,) = asked(config, tmp_path / "cache")
    theirs = score(Model(), one, config, task_manager())
    choices = load_choices(config)
    tokenizer = load_tokenizer(str(folder))
    ours = [part for one in choices["law"][0] for part in likely._tokens(tokenizer, one, 63)]
    assert [part.question + answer for part in ours for answer in part.answers] == read
    assert theirs["metric"] == metric and 0 < theirs["value"] < 1
    assert likely_accuracy(str(folder), choices) == {"law": pytest.approx(theirs["value"])}


def test_own_multiple_choice_is_read_as_the_harness_asks_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exam = tmp_path / "exam.jsonl"
    rows = [{"question": f"Q{n}", "choices": ["a", "b", "c", "d"], "answer": n} for n in range(3)]
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = tmp_path / "written.jsonl"
    written.write_text(json.dumps({"question": "Q", "answer": "yes"}) + "\n")
    lettered, whole = {"task": str(exam)}, {"task": str(exam), "choices": "texts", "name": "t"}
    benchmarks = json.dumps({"law": [lettered, whole, "hellaswag"], "code": [str(written)]})
    config = load([], [f"evaluation.benchmarks={benchmarks}", "evaluation.limit=2"])
    found = load_choices(config)
    assert list(found) == ["law"]
    said = capsys.readouterr().out
    assert f"not measured here are law: hellaswag, code: {written}: only own multiple" in said
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
    # what it cannot ask so is not asked otherwise
    shown = load([], [f"evaluation.benchmarks.law=[{json.dumps(whole | {'shots': 5})}]"])
    chat = load([], [f"evaluation.benchmarks.law=[{json.dumps(lettered)}]", "evaluation.chat=true"])
    capsys.readouterr()
    assert load_choices(shown) == load_choices(chat) == {}
    assert capsys.readouterr().out.count("not measured here are law: ") == 2


def test_chance_is_the_mean_over_questions_and_benchmarks() -> None:
    two, four = Choices("", ("a", "b"), 0), Choices("", ("a", "b", "c", "d"), 0)
    assert chance([[two, four], [four]]) == pytest.approx((0.375 + 0.25) / 2)
