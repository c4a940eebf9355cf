"""Stages on the page: their bands, and what each left and took away."""

from __future__ import annotations

import json
from pathlib import Path

from versatune_ray.report.build import build_report
from versatune_ray.report.data import Adjustment, RunData
from versatune_ray.report.figures import losses, passes
from versatune_ray.report.run_files import read_run
from versatune_ray.report.stages import Span, spans, stage_table, with_bands

MADE = (
    ("one", 0, 4.0, 2.0),
    ("one", 10, 2.0, 3.0),
    ("two", 10, 2.0, 3.0),
    ("two", 20, 2.5, 1.5),
    ("two", 30, 3.0, 0.9),
)
RUN = RunData(
    name="r",
    folder="r",
    domains=("law", "<b>"),
    adjustments=tuple(
        Adjustment(
            step=step,
            stage=name,
            loss={"law": law, "<b>": other},
            share={"law": 1, "<b>": 0},
            passes={"law": 1, "<b>": 1},
        )
        for name, step, law, other in MADE
    ),
)


def test_the_table_tells_what_each_stage_changed_and_what_is_lost_of_the_best() -> None:
    table = stage_table(RUN)
    assert table is not None and table.head == (
        "Domain",
        "before",
        "one",
        "two",
        "above its lowest",
    )
    law, other = ([(cell.text, cell.note, cell.tone) for cell in row][1:] for row in table.rows)
    # law: 4 → 2 is −50 %, 2 → 3 is +50 %, and 3 is 50 % above its lowest, 2. The other one's last
    # loss, 0.9, is its lowest.
    assert law == [
        ("4.000", "", ""),
        ("2.000", "−50.0\N{NARROW NO-BREAK SPACE}%", "better"),
        ("3.000", "+50.0\N{NARROW NO-BREAK SPACE}%", "worse"),
        ("+50.0\N{NARROW NO-BREAK SPACE}%", "", "worse"),
    ]
    assert [tone for _, _, tone in other] == ["", "worse", "better", ""]


def test_every_second_stage_is_shaded_and_each_is_named_as_text() -> None:
    figure = losses(RUN)
    assert figure is not None
    banded = with_bands(RUN, figure)
    assert [(shape["x0"], shape["x1"]) for shape in banded.layout["shapes"]] == [(10, 30)]
    assert [(note["text"], note["x"]) for note in banded.layout["annotations"]] == [
        ("one", 5),
        ("two", 20),
    ]
    assert "shapes" not in figure.layout, "the figure itself stays as it was"


def test_a_chart_over_something_else_and_a_run_without_stages_stay_as_they_are() -> None:
    bars = passes(RUN)
    assert bars is not None and with_bands(RUN, bars) is bars
    plain = RunData(
        name="r", folder="r", domains=("law",), adjustments=(Adjustment(step=0, loss={"law": 1.0}),)
    )
    assert stage_table(plain) is None


def test_a_stage_name_is_no_markup_for_plotly() -> None:
    one = Adjustment(
        step=0, stage="<i>x</i>", loss={"law": 1.0, "code": 1.0}, share={"law": 0.5, "code": 0.5}
    )
    run = RunData(
        name="r",
        folder="r",
        domains=("law", "code"),
        adjustments=(one, one.model_copy(update={"step": 10})),
    )
    figure = losses(run)
    assert figure is not None
    assert with_bands(run, figure).layout["annotations"][0]["text"] == "&lt;i&gt;x&lt;/i&gt;"


def test_the_end_of_a_stage_and_the_beginning_of_the_next_are_both_read_from_the_log(
    tmp_path: Path,
) -> None:
    lines = [
        {
            "step": step,
            "stage": stage,
            "loss": {"law": loss},
            "share": {"law": share, "code": 1 - share},
            "passes": {"law": 0.5},
        }
        for step, stage, loss, share in (
            (0, "s", 4.0, 1.0),
            (120, "s", 2.0, 1.0),
            (120, "g", 2.0, 0.0),
            (144, "g", 2.5, 0.0),
        )
    ]
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "adjustments.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    assert spans(read_run(tmp_path)) == [
        Span("s", 0, 120, {"law": 4.0}, {"law": 2.0}),
        Span("g", 120, 144, {"law": 2.0}, {"law": 2.5}),
    ]
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "It went through 2 stages: s and g." in page
    assert "hardly any sample" not in page, "law was never meant to be in the last stage"
