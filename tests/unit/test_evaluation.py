"""Exact match and the before/after table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from versatune_ray.domains.records import Question
from versatune_ray.errors import UserError
from versatune_ray.evaluation.questions import exact_match, is_match
from versatune_ray.evaluation.results import results
from versatune_ray.evaluation.scores import metric_of
from versatune_ray.runs.training_log import read_log


@pytest.mark.parametrize(
    ("answer", "expected", "match"),
    [
        (" Blue  Mint.", "blue mint", True),
        ("blue mint\nUser: next", "blue mint", True),
        ("blue mint and sage", "blue mint", False),
        ("", "blue mint", False),
        ("a\nb", "a\nb", True),
        ("a", "a\nb", False),
        ("<think>\n\n</think>\n\nOstra.", "Ostra", True),
        ("<think>\nOstra", "Ostra", False),
        ("**Ostra**", "Ostra", True),
        ("\n$$\\boxed{\\text{Ostra}}$$.\nAs asked.", "Ostra", True),
        ("\\(x^{2}\\)", "\\boxed{x^{2}}", True),
        ("Ｏｓｔｒａ。", "Ostra", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("1,234,567.5", "1234567.5", True),
        ("12\u202f345", "１２，３４５", True),
        ("1,23", "123", False),
        ("0,125", "0125", False),
        ("$5 or $6", "5 or $6", False),
        ("**a** or **b**", "a** or **b", False),
        ("", "...", False),
        ("-5", "5", False),
        ("blue", ["red", "Blue"], True),
        ("blue", ["red", "green"], False),
    ],
)
def test_exact_match(answer: str, expected: str | list[str], match: bool) -> None:
    assert is_match(answer, expected) is match


def test_the_standard_error_is_the_binomial_one() -> None:
    row = exact_match(["a", "a", "b", "a"], [Question("?", "a")] * 4)
    assert (row["value"], row["n"]) == (0.75, 4)
    assert row["standard_error"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)


def test_of_none_or_all_right_the_error_is_wilsons_and_not_0() -> None:
    # half of Wilson's interval of 0 of 4, [0, 3.84146 / 7.84146], in units of 1.959964
    for answer in ("a", "b"):
        row = exact_match([answer] * 4, [Question("?", "a")] * 4)
        assert row["standard_error"] == pytest.approx(3.84146 / 7.84146 / 2 / 1.959964, abs=1e-6)


NUMBERS = {
    "alias": "exam",
    "brier,none": 0.1,
    "brier_stderr,none": 0.01,
    "acc_norm,none": 0.7,
    "acc,none": 0.6,
    "acc_stderr,none": 0.02,
}


def test_a_metric_is_taken_by_name() -> None:
    better = {"brier": False, "acc_norm": True, "acc": True}
    assert metric_of(NUMBERS, better, None, "exam") == "acc,none"
    assert metric_of(NUMBERS, better, "acc_norm", "exam") == "acc_norm,none"
    assert metric_of({"mcc,none": 0.4}, {"mcc": True}, None, "exam") == "mcc,none"
    filters = {"exact_match,flexible-extract": 0.9, "exact_match,strict-match": 0.3}
    assert metric_of(filters, {}, None, "sums") == "exact_match,strict-match"
    named = "exact_match,flexible-extract"
    assert metric_of(filters, {}, named, "sums") == named


@pytest.mark.parametrize(
    ("numbers", "wanted", "told"),
    [
        ({}, None, "exam: the harness gave no number for it"),
        (NUMBERS, "acc_nrm", "exam: no metric 'acc_nrm'; write {task: …, metric: …} with one of"),
        (NUMBERS, "brier", "exam: brier: less is better, and of a score more is better; write"),
        ({"bleu,none": 0.1, "rouge,none": 0.2}, None, "exam: it counts several things; write"),
        ({"acc,a": 0.1, "acc,b": 0.2}, None, "exam: it counts several things; write"),
        ({"odd,none": 0.1}, None, "exam: odd: its direction is not known, and of a score more is"),
        ({"f1,none": 63.0}, None, "exam: f1: 63 is not within 0 and 1, as a score is; write"),
    ],
)
def test_a_metric_that_is_no_score_is_refused(
    numbers: dict[str, Any], wanted: str | None, told: str
) -> None:
    better = {"brier": False, "bleu": True, "rouge": True, "f1": True}
    with pytest.raises(UserError, match=re.escape(told)):
        metric_of(numbers, better, wanted, "exam")


@pytest.mark.parametrize(("exported", "after"), [(None, 2.0), (4, 1.5)])
def test_before_is_the_first_line_and_after_that_of_the_model_left(
    tmp_path: Path, exported: int | None, after: float
) -> None:
    folder = tmp_path / "finetune"
    folder.mkdir()
    rows = ((0, 3.0), (4, 1.5), (8, 2.0))
    lines = (json.dumps({"step": step, "loss": {"law": loss}}) for step, loss in rows)
    (folder / "adjustments.jsonl").write_text("\n".join(lines) + "\n")
    if exported is not None:
        (folder / "exported.json").write_text(json.dumps({"step": exported}))
    log = read_log(tmp_path)
    answers = {"base": {"law": ["no"]}, "tuned": {"law": ["yes"]}}
    found = results({"law": [Question("is it?", "yes")]}, answers, log, {"law": 7}, "nats/token")
    losses = {
        row["model"]: (row["value"], row["n"])
        for row in found["results"]
        if row["metric"] == "loss"
    }
    assert losses == {"base": (3.0, 7), "tuned": (after, 7)}
    assert found["answers"] == [
        {"domain": "law", "question": "is it?", "expected": "yes", "base": "no", "tuned": "yes"}
    ]
