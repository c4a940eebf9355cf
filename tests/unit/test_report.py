"""The page of a finished run: complete, and true to the run's files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from report_runs import SIX, body_of, cells_of, fabricate_run, figures_of, write_results

from versatune_ray.report import build_report
from versatune_ray.report.read import read_run
from versatune_ray.report.training import figures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate_run(tmp_path_factory.mktemp("runs") / "first", guard=True)


def test_a_finished_run_gives_one_page_with_every_section_and_chart(run: Path) -> None:
    page = build_report(run)
    assert page == run / "report.html"
    assert sorted(path.name for path in run.glob("*.html")) == ["report.html"]
    body = body_of(page)
    ids = re.findall(r'<section id="(\w+)"', body)
    assert ids == [
        "summary",
        "outcome",
        "detection",
        "finetuning",
        "data",
        "generations",
        "answers",
        "settings",
        "timings",
    ]
    assert figures_of(body) == [
        *("before-after", "detected-0", "shares", "losses", "degrees", "guard")
    ]
    assert "not finished" not in body and 'class="missing"' not in body
    assert len(re.findall(r"<figcaption>[A-Z].+?</figcaption>", body)) == 6
    assert page.stat().st_size < 400_000


def test_the_first_screen_tells_the_verdict_the_numbers_and_the_shares(run: Path) -> None:
    body = body_of(build_report(run)).replace("\u202f", " ")
    first = body[: body.index('<section id="outcome"')]
    assert '<p class="lead">Better in every domain, beyond two standard errors.</p>' in first
    assert re.findall(r"<dt>(.*?)</dt>", first) == [
        *("held-out loss", "exact match", "least gained", "share moved", "time")
    ]
    assert first.count('class="bar d') == first.count('class="pale d') == 6
    assert "run=first-uniform mixture.policy=constant mixture.start=uniform" in first


def test_a_run_beside_it_with_equal_shares_is_shown_and_no_longer_asked_for(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path / "mine", ("law", "code"))
    other = fabricate_run(tmp_path / "mine-uniform", ("law", "code"), seed=1)
    page = body_of(build_report(folder))
    after = {
        one["domain"]: one["value"]
        for one in json.loads((other / "evaluation/results.json").read_text())["results"]
        if one["model"] == "tuned" and one["metric"] == "loss"
    }
    assert "equal shares</bdi></th>" in page and "run=mine-uniform" not in page
    assert cells_of(page, "outcome", "law")[3] == f"{after['law']:.3f}"
    assert f"against {sum(after.values()) / 2:.3f} with equal shares" in page


def test_the_baseline_of_a_study_stands_beside_its_trials(tmp_path: Path) -> None:
    trials = tmp_path / "study" / "trials"
    mine = fabricate_run(trials / "balanced-3", ("law", "code"))
    fabricate_run(trials / "equal-shares-3", ("law", "code"), seed=1)
    table = {"title": "t", "columns": [], "rows": {}, "of": "mean", "baseline": "equal shares!"}
    (tmp_path / "study" / "study").mkdir()
    (tmp_path / "study" / "study" / "tables.json").write_text(json.dumps([table]))
    assert "with equal shares!" in body_of(build_report(mine))


def test_only_settings_that_matter_to_the_policy_and_columns_that_say_something(
    tmp_path: Path,
) -> None:
    folder = fabricate_run(tmp_path / "mine", ("law", "code"))
    config = json.loads((folder / "config.yaml").read_text())
    config["mixture"] |= {"delta": 0.05, "epsilon": 1.0, "strength": 0.9}
    (folder / "config.yaml").write_text(json.dumps(config))
    data = json.loads((folder / "data.json").read_text())
    for row in data["domains"].values():
        row["failed"] = 0
    (folder / "data.json").write_text(json.dumps(data))
    page = body_of(build_report(folder))
    assert "<dt>σ</dt>" in page and not re.search("<dt>[δελ]</dt>", page)
    assert "<bdi>bad</bdi>" in page and "<bdi>failed</bdi>" not in page


def test_all_charts_over_time_have_one_x_axis(run: Path) -> None:
    plots = [plot for figure in figures(read_run(run)) for _, plot in figure.views]
    assert len(plots) >= 9 and {(plot.across.low, plot.across.high) for plot in plots} == {(0, 300)}
    assert {plot.log for plot in plots if plot.y.endswith("log axis")} == {True}


def test_numbers_before_and_after_are_those_of_the_results(tmp_path: Path) -> None:
    def item(model: str, domain: str, value: float, error: float | None, n: int) -> dict[str, Any]:
        kind = (
            {"benchmark": "held_out", "metric": "loss"}
            if error is None
            else {"benchmark": "questions", "metric": "exact_match"}
        )
        return {
            "model": model,
            "domain": domain,
            "unit": "",
            "value": value,
            "standard_error": error,
            "n": n,
        } | kind

    losses = [
        item("base", "law", 2.0, None, 10),
        item("tuned", "law", 1.5, None, 10),
        item("base", "code", 4.0, None, 30),
        item("tuned", "code", 4.5, None, 30),
    ]
    matches = [
        item("base", "law", 0.25, 0.03, 40),
        item("tuned", "law", 0.75, 0.04, 40),
        item("base", "code", 0.5, 0.03, 60),
        item("tuned", "code", 0.45, 0.03, 60),
    ]
    write_results(tmp_path, losses + matches)
    page = body_of(build_report(tmp_path))
    assert cells_of(page, "outcome", "law") == [
        "2.000",
        "1.500",
        "−25.0 %",
        "10",
        "25.0 % ± 3.0",
        "75.0 % ± 4.0",
        "+50.0",
        "40",
    ]
    assert cells_of(page, "outcome", "code") == [
        "4.000",
        "4.500",
        "+12.5 %",
        "30",
        "50.0 % ± 3.0",
        "45.0 % ± 3.0",
        "−5.0",
        "60",
    ]
    # Means (2+4)/2 = 3 and (1.5+4.5)/2 = 3; errors √(3²+3²)/2 = 2.12 and √(4²+3²)/2 = 2.5.
    assert cells_of(page, "outcome", "Mean over domains") == [
        "3.000",
        "3.000",
        "0.0 %",
        "40",
        "37.5 % ± 2.1",
        "60.0 % ± 2.5",
        "+22.5",
        "100",
    ]
    # 5 points are less than twice √(3²+3²) = 4.24: not called worse.
    assert "Better in law and worse in none" in page and "in code the change is within" in page


def test_the_first_kept_generations_of_each_domain_are_shown_and_cut(run: Path) -> None:
    detection = read_run(run).examples[0]
    table = pq.read_table(run / "detection/tiny-base/samples/0.parquet").to_pylist()
    law = [str(row["id"]) for row in table if max(SIX, key=lambda name: float(row[name])) == "law"][
        :3
    ]
    assert [item.id for item in detection.kept if item.domain == "law"] == law
    assert all(
        len(item.text) <= 402 and item.probabilities[0][0] == item.domain for item in detection.kept
    )


def test_long_runs_with_many_domains_stay_small(tmp_path: Path) -> None:
    folder = fabricate_run(
        tmp_path / "long", tuple(f"domain {i}" for i in range(50)), adjustments=100
    )
    page = build_report(folder)
    assert page.stat().st_size < 2_500_000
    body = body_of(page)
    assert "(60 of 101 rows)" in body
    (losses,) = (one for one in figures(read_run(folder)) if one.id == "losses")
    assert len(losses.views[0][1].quiet) == 50 - 12
    assert all(len(one.points) <= 160 for _, plot in losses.views for one in plot.series)


def test_what_of_the_records_was_not_read_stands_on_the_page(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path)
    data = json.loads((folder / "data.json").read_text())
    name = next(iter(data["domains"]))
    data["domains"][name] |= {"shapes": {"messages": 7}, "unused_fields": {"<source>": 1234}}
    (folder / "data.json").write_text(json.dumps(data))
    page = build_report(folder).read_text(encoding="utf-8")
    assert "field that is not read" in page and "&lt;source&gt;" in page and "1,234" in page
