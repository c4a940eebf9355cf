"""Stages on the page: their bands, and what each left and took away."""

from __future__ import annotations

from versatune_ray.report.data import Adjustment, RunData
from versatune_ray.report.figures import losses, passes
from versatune_ray.report.stages import stage_table, with_bands

MADE = (("one", 0, 4.0, 2.0), ("one", 10, 2.0, 3.0), ("two", 10, 2.0, 3.0), ("two", 20, 2.5, 1.5), ("two", 30, 3.0, 0.9))
RUN = RunData(
    name="r",
    folder="r",
    domains=("law", "<b>"),
    adjustments=tuple(
        Adjustment(step=step, stage=name, loss={"law": law, "<b>": other}, share={"law": 1, "<b>": 0}, passes={"law": 1, "<b>": 1})
        for name, step, law, other in MADE
    ),
)


def test_the_table_tells_what_each_stage_changed_and_what_is_lost_of_the_best() -> None:
    table = stage_table(RUN)
    assert table is not None and table.head == ("Domain", "before", "one", "two", "above its lowest")
    law, other = ([(cell.text, cell.note, cell.tone) for cell in row][1:] for row in table.rows)
    # law: 4 → 2 is −50 %, 2 → 3 is +50 %, and 3 is 50 % above its lowest, 2. The other one's last loss, 0.9, is its lowest.
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
    assert [(note["text"], note["x"]) for note in banded.layout["annotations"]] == [("one", 5), ("two", 20)]
    assert "shapes" not in figure.layout, "the figure itself stays as it was"


def test_a_chart_over_something_else_and_a_run_without_stages_stay_as_they_are() -> None:
    bars = passes(RUN)
    assert bars is not None and with_bands(RUN, bars) is bars
    plain = RunData(name="r", folder="r", domains=("law",), adjustments=(Adjustment(step=0, loss={"law": 1.0}),))
    assert stage_table(plain) is None


def test_a_stage_name_is_no_markup_for_plotly() -> None:
    one = Adjustment(step=0, stage="<i>x</i>", loss={"law": 1.0, "code": 1.0}, share={"law": 0.5, "code": 0.5})
    run = RunData(name="r", folder="r", domains=("law", "code"), adjustments=(one, one.model_copy(update={"step": 10})))
    figure = losses(run)
    assert figure is not None
    assert with_bands(run, figure).layout["annotations"][0]["text"] == "&lt;i&gt;x&lt;/i&gt;"
