"""The words and numbers of the page say what the run's files say."""

from __future__ import annotations

import pytest

from versatune_ray.report.data import Adjustment, Evaluation, Guard, Result, RunData
from versatune_ray.report.detections import Detection
from versatune_ray.report.doubts import warnings
from versatune_ray.report.outcome import outcomes
from versatune_ray.report.summary import summary
from versatune_ray.report.writing import (
    clean,
    count,
    cut,
    duration,
    interval,
    listing,
    ordinal,
    percent,
    signed_percent,
    significant,
)


def plain(text: str) -> str:
    return text.replace("\u202f", " ")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(12345), "12,345"),
        (percent(0.4128), "41.3 %"),
        (percent(None), "–"),
        (percent(float("nan")), "–"),
        (signed_percent(-0.1249), "−12.5 %"),
        (signed_percent(0.0001), "0.0 %"),
        (interval(0.401, 0.4256), "40.1–42.6 %"),
        (significant(0.012345), "0.0123"),
        (significant(1234.5), "1,230"),
        (significant(0.0), "0"),
        (duration(0.42), "0.4 s"),
        (duration(59.97), "1 min 00 s"),
        (duration(192), "3 min 12 s"),
        (duration(3600 * 2 + 300), "2 h 05 min"),
        (
            " ".join(map(ordinal, (1, 2, 3, 4, 11, 12, 13, 21, 112))),
            "1st 2nd 3rd 4th 11th 12th 13th 21st 112th",
        ),
        (listing(["a"]), "a"),
        (listing(["a", "b", "c"]), "a, b and c"),
        (listing(list("abcdefgh"), 4), "a, b, c and 5 more"),
        (cut("abcdef", 3), "abc …"),
        (clean("a\ud800b\x00\n"), "a\ufffdb\ufffd\n"),
    ],
)
def test_numbers_and_texts_are_written_for_people(shown: str, expected: str) -> None:
    assert plain(shown) == expected


def test_the_summary_names_what_was_found_given_and_forgotten() -> None:
    run = RunData(
        name="run",
        folder="run",
        config={"model": {"path": "org/base"}, "mixture": {"policy": "versatune"}},
        detections=(
            Detection(
                model="base",
                domains=["law", "code"],
                share=[0.4, 0.6],
                ci95=[(0.35, 0.45), (0.55, 0.65)],
                samples=1500,
            ),
        ),
        adjustments=(
            Adjustment(step=0, share={"law": 0.4, "code": 0.6}, loss={"law": 2.0, "code": 2.0}),
            Adjustment(
                step=20,
                epoch=1,
                share={"law": 0.5, "code": 0.5},
                forgetting_degree={"law": 0.0, "code": 0.0312},
            ),
        ),
        domains=("law", "code"),
    )
    text = plain(" ".join(summary(run, outcomes(run))))
    assert (
        "fine-tuned org/base on 2 domains (law and code), for 20 optimizer steps (1 epoch)" in text
    )
    assert "From 1,500 of its own generations" in text
    assert (
        "most of it is code with 60.0 % (95 % interval 55.0–65.0 %), least is law with 40.0 %"
        in text
    )
    assert "gave more to law (40.0 % → 50.0 %) and less to code (60.0 % → 50.0 %)" in text
    assert "a loss rise of 3.1 % in code, at step 20" in text


def test_a_loss_that_rises_everywhere_and_a_share_that_dies_are_pointed_out() -> None:
    results = [
        Result(model=model, domain=domain, benchmark="held_out", metric="loss", value=value)
        for domain in ("law", "code")
        for model, value in (("base", 2.0), ("tuned", 2.2))
    ]
    last = Adjustment(
        step=9,
        share={"law": 0.0005, "code": 0.9995},
        passes={"law": 1.0, "code": 11.5},
        guard=Guard(open=True),
    )
    first = Adjustment(step=0, share={"law": 0.5, "code": 0.5})
    run = RunData(
        name="r",
        folder="r",
        adjustments=(first, last),
        evaluation=Evaluation(results=results),
        domains=("law", "code"),
    )
    found = " ".join(warnings(run, outcomes(run)))
    assert "rose in every domain" in found
    assert "final share of law" in found
    assert "Records of code were repeated more than ten times" in found


def test_percentages_are_understood_as_shares() -> None:
    results = [
        Result(
            model=model,
            domain="law",
            benchmark="questions",
            metric="exact_match",
            unit="%",
            value=value,
            standard_error=2.0,
            n=50,
        )
        for model, value in (("base", 40.0), ("tuned", 50.0))
    ]
    row = outcomes(
        RunData(name="r", folder="r", evaluation=Evaluation(results=results), domains=("law",))
    ).domains[0]
    assert (row.accuracy_before, row.accuracy_after, row.error_after) == (0.4, 0.5, 0.02)
    assert row.accuracy_clear  # 10 points against twice √(2² + 2²) = 5.7
