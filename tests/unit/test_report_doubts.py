"""A doubtful detection is pointed out, a sound one is not; what fine-tuning warned of is shown."""

from __future__ import annotations

from typing import Any

import pytest

from versatune_ray.report.doubts import doubts, of_adjustments, warnings
from versatune_ray.report.outcome import outcomes
from versatune_ray.report.read import RunData
from versatune_ray.runs.artefacts import Adjustment, Detection

QUALITY = {
    "records": [50, 50],
    "confusion": [[0.9, 0.1], [0.1, 0.9]],
    "recall": [0.9, 0.9],
    "accuracy": 0.9,
}
QUALITY |= {"log_loss": 0.3, "chance": 0.693, "mass": 0.9}
SOUND: dict[str, Any] = {
    "model": "m",
    "domains": ["law", "code"],
    "share": [0.4, 0.6],
    "ci95": [[0.37, 0.43], [0.57, 0.63]],
    "repeats_differ": 0.2,
    "samples": 1000,
    "discarded": {"total": 50, "reasons": {"empty generation": 50}},
    "generations": {"empty": 50, "degenerate": 50, "degenerate_excluded": False, "distinct": 900},
    "tolerance": {"asked": 0.03, "reached": 0.03, "rounds": 2, "cap": 2000},
    "judge_quality": QUALITY,
    "corrected": {"share": [0.35, 0.65], "ci95": [[0.3, 0.4], [0.6, 0.7]]},
    "positions": {"share": [0.519, 0.481], "standard_error": [0.001, 0.001]},
}


def detection(name: str = "m", **changes: Any) -> Detection:
    return Detection.model_validate(SOUND | {"name": name} | changes)


def test_a_sound_detection_and_an_old_one_without_the_numbers_raise_no_doubt() -> None:
    assert doubts([detection()], {}) == []
    assert doubts([Detection(model="m", domains=["law", "code"], share=[0.4, 0.6])], {}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"judge_quality": QUALITY | {"log_loss": 0.63}},
            "The judge is hardly better than chance (log loss 0.63 nats, chance 0.69)",
        ),
        (
            {"judge_quality": QUALITY | {"mass": 0.31}},
            "The judge puts only 31 % of its probability on the options",
        ),
        ({"repeats_differ": 0.0009}, "differ more than chance allows: m (p < 0.001)"),
        ({"discarded": {"total": 51, "reasons": {}}}, "discarded: m (5.1 %)"),
        (
            {"generations": {"degenerate": 80}},
            "only repeat a few tokens: m (8.0 %, counted in the shares)",
        ),
        ({"generations": {"degenerate": 80, "degenerate_excluded": True}}, "m (8.0 %, left out)"),
        ({"generations": {"distinct": 812}}, "m (812 different texts in 1,000)"),
        (
            {"positions": {"share": [0.44, 0.56], "standard_error": [0.01, 0.01]}},
            "m (place 2 gets 56.0 % instead of 50.0 %)",
        ),
        (
            {"corrected": {"share": [0.3, 0.7], "ci95": [[0.25, 0.36], [0.64, 0.75]]}},
            "m (law 40.0 % → 30.0 % and code 60.0 % → 70.0 %)",
        ),
        (
            {"tolerance": {"asked": 0.01, "reached": 0.03, "rounds": 4, "cap": 2000}},
            "m (± 3.00 points instead of ± 1.00)",
        ),
    ],
)
def test_each_sign_of_a_doubtful_detection_is_told_with_its_number(
    changes: dict[str, Any], said: str
) -> None:
    (sentence,) = doubts([detection(**changes)], {})
    assert said in sentence.replace("\u202f", " ")


@pytest.mark.parametrize(
    "changes",
    [
        {"samples": 99, "generations": {"distinct": 20}, "discarded": None},
        # 6 points, but only two standard errors
        {"positions": {"share": [0.44, 0.56], "standard_error": [0.03, 0.03]}},
        # 15 standard errors, but less than 2 points
        {"positions": {"share": [0.485, 0.515], "standard_error": [0.001, 0.001]}},
        {"positions": {"share": [0.44, 0.56], "standard_error": None}},
        {"corrected": {"problem": "singular"}},
        {"corrected": {"share": [0.1, 0.9], "ci95": None}},
        {"tolerance": {"asked": None, "reached": 0.3, "rounds": 1, "cap": 10}},
    ],
)
def test_what_may_be_chance_or_was_not_measured_is_no_doubt(changes: dict[str, Any]) -> None:
    assert doubts([detection(**changes)], {}) == []


def test_models_with_the_same_doubt_share_one_sentence_and_a_judge_is_told_off_once() -> None:
    bad = {"judge_quality": QUALITY | {"mass": 0.2}, "repeats_differ": 1e-6}
    found = doubts(
        [detection("a", **bad), detection("b", **bad), detection("c", judge_quality=None)],
        {"/lost": "why"},
    )
    assert len(found) == 3
    assert found[0].startswith("/lost could not be detected")
    assert found[1].startswith("The judge puts only")
    assert "a (p < 0.001) and b (p < 0.001)" in found[2]


def test_warnings_of_fine_tuning_are_merged_by_kind_with_their_last_values() -> None:
    repeat = "records repeat in {}; beyond 4 passes they teach less than new ones: add records"
    lines = (
        Adjustment(step=0),
        Adjustment(step=1000, warnings=[repeat.format("law (4.1 passes)"), "code\nwent"]),
        Adjustment(step=2000, warnings=[repeat.format("code (5.0 passes)")]),
        Adjustment(step=3000, warnings=[repeat.format("law (9.5 passes) and code (6.1 passes)")]),
    )
    expected = [
        "Records repeat in law (9.5 passes) and code (6.1 passes); beyond 4 passes they teach less "
        "than new ones: add records (said 3 times from step 1,000 to 3,000).",
        "Code went (said at step 1,000).",
    ]
    assert of_adjustments(lines) == expected
    run = RunData(name="r", adjustments=lines)
    assert warnings(run, outcomes(run)) == expected
