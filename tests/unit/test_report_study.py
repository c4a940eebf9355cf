"""What a study and a replay left is on the page: intervals, differences, other shares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from report_runs import body_of, cells_of
from report_searches import mean, put_replay, put_study

from versatune_ray.report import build_report
from versatune_ray.report.charts import Plot
from versatune_ray.report.read import read_run
from versatune_ray.report.searched import differences, replay_figure


def test_study_cells_differences_and_bold_ones(tmp_path: Path) -> None:
    page = body_of(build_report(put_study(tmp_path)))
    assert (
        "Means over 5 seeds with 95 % intervals (Student’s t); differences are paired by seed"
        in page
    )
    assert "<bdi>mean − uniform</bdi>" in page
    assert cells_of(page, "study", "uniform") == ["4.000 ± 0.010", "4.119 ± 0.012", "baseline"]
    assert cells_of(page, "study", "σ = 1") == [
        "3.900 ± 0.020",
        "4.099 ± 0.020",
        "−0.020 ± 0.014 †",
    ]
    assert cells_of(page, "study", "σ = 2")[-1] == "+0.001 ± 0.002"
    assert re.findall(r'<td class="clear"><bdi>(.*?)</bdi>', page) == ["−0.020"]
    figure = differences(read_run(tmp_path).study[0], 0)
    assert figure and [text for _, _, text, _ in figure.key] == [
        *("interval leaves 0 out", "interval holds 0")
    ]
    rows = figure.views[0][1]
    assert not isinstance(rows, Plot) and [row.name for row in rows.rows] == ["σ = 1", "σ = 2"]
    interval, dot = rows.rows[0].marks
    assert interval[1:4] == (pytest.approx(-0.0347), pytest.approx(-0.0059), "accent")
    assert dot[1] == -0.0203 and rows.rows[1].marks[0][3] == "muted"
    assert (
        "compared 3 methods over 5 seeds. Held-out loss: “σ = 1” is clearly below “uniform”."
        in page
    )


def test_a_difference_that_holds_by_itself_alone_is_bold_without_the_second_mark(
    tmp_path: Path,
) -> None:
    one = mean(-0.02, 0.014) | {"p": 0.02, "holm": 0.24}
    missing = ["other shares no measured seed with uniform."]
    page = body_of(build_report(put_study(tmp_path, differences={"σ = 1": one}, missing=missing)))
    assert cells_of(page, "study", "σ = 1")[-1] == "−0.020 ± 0.014"
    assert 'class="clear"><bdi>−0.020' in page and missing[0] in page
    assert "Held-out loss: no method is clearly apart from “uniform”." in page


def test_one_seed_has_no_intervals_and_nothing_bold(tmp_path: Path) -> None:
    nan = float("nan")
    rows = {"uniform": {"mean": mean(4.0, nan, 1)}, "other": {"mean": mean(3.0, nan, 1)}}
    page = body_of(
        build_report(
            put_study(
                tmp_path,
                columns=["mean"],
                rows=rows,
                differences={"uniform": None, "other": mean(-1.0, nan, 1)},
            )
        )
    )
    assert cells_of(page, "study", "other") == ["3.000", "−1.000"]
    assert 'class="clear"' not in page and "From one seed, so there are no intervals" in page
    figure = differences(read_run(tmp_path).study[0], 0)
    assert figure and [text for _, _, text, _ in figure.key] == ["one seed, no interval"]


def test_methods_with_different_numbers_of_seeds_say_so(tmp_path: Path) -> None:
    rows = {"uniform": {"mean": mean(4.0, 0.1, 5)}, "other": {"mean": mean(3.0, 0.1, 3)}}
    page = body_of(
        build_report(
            put_study(
                tmp_path, columns=["mean"], rows=rows, differences={"other": mean(-1.0, 0.5, 3)}
            )
        )
    )
    assert "Means over 3 to 5 seeds" in page and cells_of(page, "study", "other") == [
        "3",
        "3.000 ± 0.100",
        "−1.000 ± 0.500",
    ]


def test_a_replay_has_one_view_per_setting_over_the_faint_recorded_shares(tmp_path: Path) -> None:
    page = body_of(build_report(put_replay(tmp_path)))
    figure = replay_figure(read_run(tmp_path))
    assert figure and [label for label, _ in figure.views] == ["sigma=2", "sigma=0.5"]
    plot = figure.views[0][1]
    assert isinstance(plot, Plot)
    drawn = {(one.name, one.look): [y for _, y in one.points] for one in plot.series}
    assert drawn["law", "line"] == [0.5, 0.75] and drawn["code", "faint"] == [0.5, 0.4]
    assert "training under other shares would have measured others" in page
    assert cells_of(page, "replay", "sigma=2") == ["75.0 %", "25.0 %"]
