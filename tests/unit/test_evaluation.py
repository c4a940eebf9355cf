"""Exact match and the before/after table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from versatune_ray.domains.records import Question
from versatune_ray.evaluation.questions import exact_match, is_match
from versatune_ray.evaluation.results import results


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


def test_before_is_the_first_line_and_after_the_last(tmp_path: Path) -> None:
    log = tmp_path / "adjustments.jsonl"
    log.write_text("".join(json.dumps({"loss": {"law": loss}}) + "\n" for loss in (3.0, 2.5, 2.0)))
    answers = {"base": {"law": ["no"]}, "tuned": {"law": ["yes"]}}
    found = results({"law": [Question("is it?", "yes")]}, answers, log, {"law": 7}, "nats/token")
    losses = {
        row["model"]: (row["value"], row["n"])
        for row in found["results"]
        if row["metric"] == "loss"
    }
    assert losses == {"base": (3.0, 7), "tuned": (2.0, 7)}
    assert found["answers"] == [
        {"domain": "law", "question": "is it?", "expected": "yes", "base": "no", "tuned": "yes"}
    ]
