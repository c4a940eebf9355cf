"""The words and numbers of the page say what the run's files say."""

from __future__ import annotations

import pytest

from versatune_ray.report.doubts import warnings
from versatune_ray.report.outcome import outcomes
from versatune_ray.report.read import RunData
from versatune_ray.report.verdict import verdict
from versatune_ray.report.writing import (
    change,
    clean,
    count,
    cut,
    duration,
    interval,
    listing,
    percent,
    significant,
    without_places,
)
from versatune_ray.runs.artefacts import (
    Adjustment,
    CurvePoint,
    Evaluation,
    Guard,
    Reference,
    ReferenceDomain,
    Result,
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
        (change(-0.1249), "−12.5 %"),
        (change(0.0001), "0.0 %"),
        (interval(0.401, 0.4256), "40.1–42.6 %"),
        (significant(0.012345), "0.0123"),
        (significant(1234.5), "1,230"),
        (significant(0.0), "0"),
        (duration(0.42), "0.4 s"),
        (duration(59.97), "1 min 00 s"),
        (duration(192), "3 min 12 s"),
        (duration(3600 * 2 + 300), "2 h 05 min"),
        (listing(["a"]), "a"),
        (listing(["a", "b", "c"]), "a, b and c"),
        (listing(list("abcdefgh"), 4), "a, b, c and 5 more"),
        (cut("abcdef", 3), "abc …"),
        (clean("a\ud800b\x00\n"), "a\ufffdb\ufffd\n"),
    ],
)
def test_numbers_and_texts_are_written_for_people(shown: str, expected: str) -> None:
    assert plain(shown) == expected


def test_the_verdict_names_what_was_tuned_given_and_forgotten() -> None:
    run = RunData(
        name="run",
        config={"model": {"path": "org/base"}, "mixture": {"policy": "versatune"}},
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
    told = plain(" ".join([verdict(run).opening, *verdict(run).sentences]))
    assert (
        "fine-tuned org/base on 2 domains (law and code), for 20 optimizer steps (1 epoch)" in told
    )
    assert "gave more to law (40.0 % → 50.0 %) and less to code (60.0 % → 50.0 %)" in told
    assert "a loss rise of 3.1 % in code, at step 20" in told


def measured(**pairs: tuple[float, float, float]) -> RunData:
    """Exact match before and after with one standard error for both."""
    results = [
        Result(
            model=model,
            domain=domain,
            benchmark="questions",
            metric="exact_match",
            value=value,
            standard_error=error,
        )
        for domain, (before, after, error) in pairs.items()
        for model, value in (("base", before), ("tuned", after))
    ]
    return RunData(name="r", evaluation=Evaluation(results=results), domains=tuple(pairs))


def test_the_verdict_counts_only_what_is_beyond_two_standard_errors() -> None:
    # twice √(3² + 3²) is 8.5 points
    found = verdict(measured(law=(0.2, 0.4, 0.03), code=(0.5, 0.3, 0.03), art=(0.5, 0.57, 0.03)))
    assert found.sentences[0] == (
        "Better in law and worse in code, beyond two standard errors; "
        "in art the change is within the error."
    )
    # mean: (0.2 + 0.5 + 0.5) / 3 = 40 %, (0.4 + 0.3 + 0.57) / 3 = 42.3 %, error √(6 · 3²) / 3
    assert [plain(" | ".join(one)) for one in found.numbers] == [
        "exact match | +2.3 points | ± 2.4, 40.0 % → 42.3 %"
    ]
    nothing = verdict(measured(law=(0.2, 0.21, 0.03)))
    assert nothing.sentences[0] == "No domain changed by more than two standard errors."


def test_places_on_a_machine_are_cut_to_what_tells_them_apart() -> None:
    told = {"/home/me/models/tiny": ["s3://bucket/a/b", "nats/token", "x: /data/law.jsonl, 3"]}
    assert without_places(told) == {
        "…/models/tiny": ["s3://bucket/a/b", "nats/token", "x: …/data/law.jsonl, 3"]
    }
    assert without_places("/x/.cache/tiny-judge/b6686c6d89cccd4d/tiny-judge") == "…/tiny-judge"


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
        adjustments=(first, last),
        evaluation=Evaluation(results=results),
        domains=("law", "code"),
    )
    found = " ".join(warnings(run, outcomes(run)))
    assert "rose in every domain" in found
    assert "final share of law" in found
    assert "Records were repeated in code (11.5 times)" in found


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
        RunData(name="r", evaluation=Evaluation(results=results), domains=("law",))
    ).domains[0]
    assert (row.exact.before, row.exact.after, row.exact.error_after) == (0.4, 0.5, 0.02)
    assert row.exact.beyond == pytest.approx(0.1)  # 10 points against twice √(2² + 2²) = 5.7


def test_what_a_domain_can_learn_alone_is_told() -> None:
    curve = [CurvePoint(epoch=0, held_out=2.0), CurvePoint(epoch=1, held_out=1.5)]
    domains = {
        "law": ReferenceDomain(curve=curve, loss=1.5),
        "code": ReferenceDomain(curve=curve[:1], loss=2.0),
    }
    run = RunData(name="run", reference=Reference(domains=domains), domains=("law", "code"))
    assert (
        "Alone, a domain’s loss can fall by so much: 25.0 % in law (2.000 → 1.500) and "
        "0.0 % in code (2.000 → 2.000)." in plain(" ".join(verdict(run).sentences))
    )
