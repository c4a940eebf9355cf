"""Detections on the page: one model or many, what makes them doubtful, and nothing that a model
wrote is obeyed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_detections import NAMES, edited, fabricate_detections
from report_runs import HOSTILE, SIX, assert_harmless, body_of, cells_of, figures_of

from versatune_ray.report import build_report
from versatune_ray.report.detected import compared, detected
from versatune_ray.report.read import RunData, read_run
from versatune_ray.report.verdict import verdict
from versatune_ray.runs.artefacts import Corrected, Detection, JudgeQuality, Published


def two_models() -> RunData:
    """a: law 25 %, code 75 %, published as 50 % and 50 %; b: law 40 %, code 60 %, but corrected to
    30 % and 70 %.
    """
    law, code = (0.2, 0.3), (0.7, 0.8)
    published = Published(model="p", share=[0.5, 0.5])
    corrected = Corrected(share=[0.7, 0.3], ci95=[(0.5, 0.9), (0.1, 0.5)])
    first = Detection(
        model="a",
        domains=["law", "code"],
        share=[0.25, 0.75],
        ci95=[law, code],
        samples=300,
        published=published,
    )
    second = Detection(
        model="b",
        domains=["code", "law"],
        share=[0.6, 0.4],
        used="corrected",
        corrected=corrected,
        known=[0.9, 0.1],
    )
    return RunData(name="r", detections=(first, second), domains=("law", "code"))


def test_a_detection_job_of_many_models_gives_a_page_of_what_it_did_and_no_more(
    tmp_path: Path,
) -> None:
    body = body_of(build_report(fabricate_detections(tmp_path / "run", NAMES)))
    assert re.findall(r'<section id="(\w+)"', body) == [
        "summary",
        "detection",
        "generations",
        "settings",
        "timings",
        "absent",
    ]
    assert re.findall(r'<a href="#(\w+)"', body) == [
        "detection",
        "generations",
        "settings",
        "timings",
    ]
    assert (
        "This run detected what 4 base models know of 6 domains" in body
        and "not finished" not in body
    )
    assert (
        "policy versatune" not in body
        and "<dt>policy</dt>" not in body
        and "<dt>judge</dt>" in body
    )
    assert figures_of(body) == [f"detected-{number}" for number in range(4)]
    assert len(re.findall('class="heat"', body[body.index('class="compare"') :])) >= 4 * 6


def test_one_model_is_compared_with_nothing(tmp_path: Path) -> None:
    body = body_of(build_report(fabricate_detections(tmp_path / "run", NAMES[:1])))
    assert figures_of(body) == ["detected-0"] and 'class="model"' not in body
    assert "This run detected what Llama-2-7b knows of 6 domains" in body


@pytest.mark.parametrize(("count", "collapsed"), [(3, 0), (4, 2 * 4)])
def test_sections_of_more_than_three_models_are_closed_at_first(
    tmp_path: Path, count: int, collapsed: int
) -> None:
    body = body_of(build_report(fabricate_detections(tmp_path / "run", NAMES[:count])))
    assert body.count('<details class="model">') == collapsed
    assert body.count('<h3 class="model">') == 2 * count


def test_the_table_of_models_says_how_far_each_is_from_what_is_published_or_known() -> None:
    table = compared(two_models())
    assert table
    rows = [[f"{cell.text} {cell.note}".strip() for cell in row] for row in table.rows]
    assert rows[0] == ["a", "300", "25.0 ± 5.0", "75.0 ± 5.0", "–", ""]
    # (|25 − 50| + |75 − 50|) / 2
    assert rows[1] == ["published for p", "", "50.0", "50.0", "", "25.0"]
    assert rows[2] == ["b", "–", "30.0 ± 20.0", "70.0 ± 20.0", "–", ""]
    # (|30 − 10| + |70 − 90|) / 2
    assert rows[3] == ["known mixture", "", "10.0", "90.0", "", "20.0"]


def test_the_summary_of_many_models_names_the_domain_in_which_they_differ_most(
    tmp_path: Path,
) -> None:
    run = read_run(fabricate_detections(tmp_path / "run", NAMES[:2]))
    first, second = (np.array(item.share) for item in run.detections)
    widest = SIX[int(np.abs(first - second).argmax())]
    assert f"They differ most in {widest}: from" in " ".join(verdict(run).sentences)


def test_a_corrected_distribution_stands_beside_the_raw_one_and_what_counts_is_full() -> None:
    run = two_models()
    figure = detected(run, run.detections[1], 0)
    code, law = figure.views[0][1].rows  # as judged: code 60 %, law 40 %
    assert [mark[:3] for mark in law.marks] == [
        ("pale", 0.0, 0.4),
        ("bar", 0.0, 0.3),
        ("interval", 0.1, 0.5),
        ("diamond", 0.1, 0.1),
    ]
    assert law.value == "30.0\u202f%" and code.swatch == "d1"
    assert [text for _, _, text, _ in figure.key] == [
        *("as judged", "corrected", "known pre-training mixture")
    ]
    only = RunData(name="r", detections=run.detections[1:], domains=run.domains)
    assert "most of all code (70.0\u202f%)" in " ".join(verdict(only).sentences)
    assert "corrected by the judge’s measured confusions" in " ".join(verdict(only).sentences)


def test_what_a_judge_says_that_knows_nothing_is_not_told_as_a_finding() -> None:
    run = two_models()
    one = run.detections[1]
    for log_loss, told in ((2.19, True), (0.52, False)):
        quality = JudgeQuality(
            records=[5, 5], confusion=[[1, 0], [0, 1]], log_loss=log_loss, chance=1.79
        )
        judged = one.model_copy(update={"judge_quality": quality})
        only = RunData(name="r", detections=(judged,), domains=run.domains)
        said = " ".join(verdict(only).sentences)
        assert ("says a judge that is no better than chance" in said) is told


def test_a_correction_that_could_not_be_had_says_why(tmp_path: Path) -> None:
    folder = fabricate_detections(tmp_path / "run", NAMES[:1])
    edited(folder, 0, corrected={"problem": "the judge tells law and code apart too badly."})
    body = body_of(build_report(folder))
    assert (
        "could not be corrected by the judge’s confusions: <bdi>the judge tells law and code apart "
        "too badly." in body
    )
    assert body.count('class="bar d') == 6 and 'class="pale d' not in body


def test_the_judges_confusions_are_shaded_and_shown_once_for_all_models_that_it_read(
    tmp_path: Path,
) -> None:
    folder = fabricate_detections(tmp_path / "run", NAMES)
    confusion = np.eye(6) * 0.75 + 0.25 * np.roll(np.eye(6), 1, axis=1)
    quality = {
        "records": [50] * 6,
        "confusion": confusion.tolist(),
        "recall": [0.9] * 6,
        "accuracy": 0.9,
    }
    for model in range(4):
        edited(
            folder, model, judge_quality=quality | {"log_loss": 0.5, "chance": 1.79, "mass": 0.8}
        )
    body = body_of(build_report(folder))
    assert body.count("How well the judge knows the domains") == 1
    part = body[body.index('class="judge"') :]
    assert '<td class="heat" style="--heat:0.750"><bdi>75\u202f%</bdi></td>' in part
    assert "right for 90.0\u202f% of 300 records. Log loss 0.50 nats against 1.79 by chance" in part
    assert "On average 80\u202f% of its raw probability" in part
    edited(folder, 0, judge_quality=quality | {"log_loss": 0.6, "chance": 1.79, "mass": 0.8})
    assert body_of(build_report(folder)).count("How well the judge knows the domains") == 2


def test_numbers_that_were_not_measured_leave_no_gap(tmp_path: Path) -> None:
    folder = fabricate_detections(tmp_path / "run", NAMES[:2])
    kept = {"model": "m", "domains": list(SIX), "share": [1 / 6] * 6}
    absent = dict.fromkeys(
        (
            "name",
            "judge_quality",
            "positions",
            "corrected",
            "published",
            "tolerance",
            "generations",
            "repeats_differ",
        )
    )
    (folder / "detection/model-00/distribution.json").write_text(json.dumps(kept))
    edited(folder, 1, **{key: value for key, value in absent.items() if key != "name"})
    body = body_of(build_report(folder))
    # the folder's name stands in
    assert cells_of(body, "detection", "model-00")[:2] == ["–", "16.7"]
    assert (
        "could not" not in body
        and "probability by place" not in body
        and 'class="judge"' not in body
    )


def test_counts_that_explain_a_detection_are_said(tmp_path: Path) -> None:
    body = body_of(build_report(fabricate_detections(tmp_path / "run", NAMES[:1])))
    told = re.sub("</?bdi>", "", body)
    assert "2,000 generations in 5 repeats, 412,345 tokens, judged by org/judge-7b." in told
    assert "points after 3 rounds of generating; ± 2.50 points were asked for." in told
    assert (
        "20 empty, 14 of few tokens repeated (counted in the shares), 1,957 different texts" in told
    )
    assert "31 generations were discarded (empty generation: 20, judging failed: 11)." in told


def test_the_first_discarded_generations_of_each_reason_are_shown_with_what_the_judge_wrote(
    tmp_path: Path,
) -> None:
    folder = fabricate_detections(tmp_path / "run", NAMES[:1])
    shown = [(item.reason, item.id) for item in read_run(folder).examples[0].discarded]
    assert shown == [("judging failed", id) for id in ("0", "8", "16")] + [
        ("empty generation", id) for id in ("4", "12", "20")
    ]
    body = body_of(build_report(folder))
    assert (
        "answer is none of the options" in body
        and "I think The statute" in body
        and "No visible text." in body
    )
    assert "<h4><bdi>judging failed</bdi> <small>11 in all</small></h4>" in body


def test_a_detection_with_wrong_sizes_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    folder = fabricate_detections(tmp_path / "run", NAMES[:3])
    edited(folder, 0, positions={"share": [0.5, 0.5], "standard_error": None})
    edited(folder, 1, published={"model": "m"})
    body = body_of(build_report(folder))
    assert (
        "model-00/distribution.json is not as expected: top level: positions.share has 2 entries "
        "for 6 domains." in body
    )
    assert "model-01/distribution.json is not as expected: published.share: Field required." in body
    assert figures_of(body) == ["detected-0"]


def test_models_that_could_not_be_detected_are_listed_with_the_reason(tmp_path: Path) -> None:
    folder = fabricate_detections(
        tmp_path / "run", NAMES[:2], failed={"/models/lost": "no config.json in it"}
    )
    body = body_of(build_report(folder))
    assert "<strong><bdi>…/models/lost</bdi></strong>: <bdi>no config.json in it</bdi>" in body
    (folder / "detection/failed.json").write_text("[1]")
    assert (
        "detection/failed.json is not as expected: top level: Input should be a valid dictionary."
        in body_of(build_report(folder))
    )


def test_hostile_names_texts_reasons_and_answers_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    names = ("plain", HOSTILE, "b<i>", "\u202eevil", "x" * 300)
    folder = fabricate_detections(
        tmp_path / "run",
        names,
        domains=(HOSTILE, "b<i>", "c"),
        text=HOSTILE,
        reason=HOSTILE,
        failed={HOSTILE: HOSTILE},
    )
    edited(
        folder,
        0,
        published={"model": HOSTILE, "share": [0.2, 0.3, 0.5]},
        judge=HOSTILE,
        corrected={"problem": HOSTILE},
    )
    edited(folder, 2, discarded={"total": 400, "reasons": {HOSTILE: 400}})
    page = build_report(folder)
    assert_harmless(page)
    assert "I think &lt;script&gt;" in body_of(page)
