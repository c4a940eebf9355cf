"""Charts are drawn to scale, and what they leave out is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from versatune_ray.report import build_report
from versatune_ray.report.charts import Mark, Plot, Row, Rows, Series, log_ticks, thin, ticks
from versatune_ray.report.read import RunData, read_run
from versatune_ray.report.training import Span, figures, spans, stage_table
from versatune_ray.runs.artefacts import Adjustment, Guard

LINE = Series("law", [(0, 1.0), (10, 3.0), (20, None), (30, 2.0)], "d0")


def drawn(plot: Plot) -> list[str]:
    return [path for _, path, _ in plot.paths]


def test_a_line_lies_at_its_values_and_is_broken_where_one_is_missing() -> None:
    plot = Plot([LINE], "step", "loss", reach=(0, 40))
    # y spans 1 to 3 and a twentieth of that at both ends: 0.9 to 3.1
    assert (plot.up.low, plot.up.high) == pytest.approx((0.9, 3.1))
    # 1.0 is 0.1 / 2.2 above the bottom; 2.0 is in the middle
    assert drawn(plot) == ["M0 9545L2500 455M7500 5000"]
    assert plot.across.marks == [(0, "0"), (0.25, "10"), (0.5, "20"), (0.75, "30"), (1, "40")]


def test_a_value_holds_until_the_next_in_steps() -> None:
    plot = Plot([replace(LINE, points=[(0, 0.0), (10, 1.0)], stepped=True)], "s", "y", zero=True)
    across = [pair.split() for pair in drawn(plot)[0].strip("M").split("L")]
    assert across[0][1] == across[1][1] != across[2][1] and across[1][0] == across[2][0]


def test_a_log_axis_spaces_equal_ratios_equally_and_leaves_zeros_out() -> None:
    plot = Plot(
        [replace(LINE, points=[(0, 1.0), (1, 10.0), (2, 100.0), (3, 0.0)])], "s", "y", log=True
    )
    heights = [int(pair.split()[1]) for pair in drawn(plot)[0].strip("M").split("L")]
    assert len(heights) == 3 and heights[0] - heights[1] == heights[1] - heights[2] > 0
    assert [text for _, text in plot.up.marks] == ["1", "2", "5", "10", "20", "50", "100"]


def test_stacked_areas_reach_the_top_where_shares_sum_to_one() -> None:
    pair = [replace(LINE, points=[(0, part), (10, part)]) for part in (0.25, 0.75)]
    below, above = drawn(Plot(pair, "s", "share", stacked=True))
    assert {point.split()[1] for point in below.strip("MZ").split("L")} == {"10000", "7500"}
    assert {point.split()[1] for point in above.strip("MZ").split("L")} == {"7500", "0"}


def test_bars_and_intervals_lie_between_their_ends_on_an_axis_with_0() -> None:
    marks = [Mark("bar", 0.0, 0.5, "d0", "now"), Mark("interval", 0.25, 0.75, "text", "now")]
    rows = Rows([Row("law", marks), Row("code", [Mark("dot", -0.2, -0.2, "d1", "then")])], "share")
    axis = rows.across
    assert (
        axis.low < -0.2 and axis.high > 0.75 and axis.at(axis.low) == 0 and axis.at(axis.high) == 1
    )
    assert axis.at(0.5) - axis.at(0) == pytest.approx(0.5 / (axis.high - axis.low))
    texts = [text.replace("\u202f", " ") for _, text in axis.marks]
    assert texts == ["0 %", "25 %", "50 %", "75 %"]


def test_a_key_names_each_kind_of_mark_once_and_the_numbers_are_a_table() -> None:
    about = [
        Mark("bar", 0, 0.5, "d0", "now", "50 %"),
        Mark("interval", 0.4, 0.6, "text", "now", "±"),
    ]
    more = [
        Mark("bar", 0, 0.2, "d1", "now", "20 %"),
        Mark("square", 0.1, 0.1, "text", "then", "10 %"),
    ]
    rows = Rows([Row("law", about, swatch="d0"), Row("code", more)], "share")
    assert rows.key == [("muted", "bar", "now", ""), ("text", "square", "then", "")]
    table = rows.numbers("Shares", "Domain")
    assert table and table.head == ("Domain", "now", "then")
    shown = [[(cell.text, cell.note) for cell in row] for row in table.rows]
    assert shown == [
        [("law", ""), ("50 %", "±"), ("–", "")],
        [("code", ""), ("20 %", ""), ("10 %", "")],
    ]


def test_marks_of_an_axis_are_round() -> None:
    assert ticks(0.03, 0.97) == [0.2, 0.4, 0.6, 0.8]
    assert ticks(-0.11, 0.32) == [-0.1, 0.0, 0.1, 0.2, 0.3]
    assert log_ticks(0.0, 1.0) == [1, 2, 5, 10] and ticks(5.0, 5.0) == [5.0]


def test_a_long_line_keeps_its_ends_and_its_peaks() -> None:
    rows = [[0.5, 0.4]] * 1000
    rows[333], rows[777] = [0.5, 9.0], [-3.0, 0.4]
    kept = thin(rows, 50)
    assert len(kept) <= 50 and {0, 333, 777, 999} <= set(kept)
    assert list(thin(rows[:10], 50)) == list(range(10))


def test_of_many_lines_those_that_move_most_are_drawn_at_first() -> None:
    series = [replace(LINE, group=k, points=[(0, 0.0), (1, float(k))]) for k in range(14)]
    plot = Plot(series, "s", "y")
    assert len(plot.key) == 14 and plot.quiet == {"0", "1"}


SIDES = ((0.0, True), (0.1, True), (0.4, False), (0.2, True), (0.5, False))


def test_the_guard_shows_both_sides_and_when_it_was_open() -> None:
    lines = [
        Adjustment(step=10 * n, guard=Guard(open=is_open, forgetting=forgetting, bound=0.3))
        for n, (forgetting, is_open) in enumerate(SIDES, 1)
    ]
    run = RunData(name="r", adjustments=(Adjustment(step=0), *lines), domains=("a", "b"))
    (figure,) = figures(run)
    (_, plot) = figure.views[0]
    assert isinstance(plot, Plot) and [band[:2] for band in plot.bands] == [(10, 30), (40, 50)]
    forgetting, bound = plot.series
    assert [y for _, y in forgetting.points] == [0.0, 0.1, 0.4, 0.2, 0.5]
    assert [y for _, y in bound.points] == [0.3] * 5
    assert figure.facts == {"opened": 3, "decisions": 5}


STAGES = (("one", 0, 4.0), ("one", 10, 2.0), ("two", 10, 2.0), ("two", 20, 2.5), ("two", 30, 3.0))
STAGED = RunData(
    name="r",
    domains=("law", "<b>"),
    adjustments=tuple(
        Adjustment(step=step, stage=name, loss={"law": law, "<b>": 1.0}, share={"law": 1, "<b>": 0})
        for name, step, law in STAGES
    ),
)


def test_the_table_tells_what_each_stage_changed_and_what_is_lost_of_the_best() -> None:
    table = stage_table(STAGED)
    assert table and table.head == ("Domain", "before", "one", "two", "above its lowest")
    law = [(cell.text, cell.note, cell.tone) for cell in table.rows[0]][1:]
    # 4 → 2 is −50 %, 2 → 3 is +50 %, and 3 is 50 % above its lowest, 2
    assert law == [
        ("4.000", "", ""),
        ("2.000", "−50.0\u202f%", "better"),
        ("3.000", "+50.0\u202f%", "worse"),
        ("+50.0\u202f%", "", "worse"),
    ]


def test_stages_are_named_bands_behind_every_chart_over_time() -> None:
    for figure in figures(STAGED):
        for _, plot in figure.views:
            assert isinstance(plot, Plot)
            assert list(plot.bands) == [(0, 10, "one", False), (10, 30, "two", True)]


def test_the_end_of_a_stage_and_the_beginning_of_the_next_are_both_read_from_the_log(
    tmp_path: Path,
) -> None:
    lines = [
        {
            "step": step,
            "stage": stage,
            "loss": {"law": loss},
            "share": {"law": law, "code": 1 - law},
        }
        for step, stage, loss, law in (
            (0, "s", 4.0, 1.0),
            (120, "s", 2.0, 1.0),
            (120, "g", 2.0, 0.0),
            (144, "g", 2.5, 0.0),
        )
    ]
    (tmp_path / "finetune").mkdir()
    log = tmp_path / "finetune" / "adjustments.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert spans(read_run(tmp_path)) == [
        Span("s", 0, 120, {"law": 4.0}, {"law": 2.0}),
        Span("g", 120, 144, {"law": 2.0}, {"law": 2.5}),
    ]
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "It went through 2 stages: s and g." in page
    assert "hardly any sample" not in page, "law was never meant to be in the last stage"
