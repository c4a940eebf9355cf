"""Lines on the page mean what their shape says, and thinning a long run loses no peak."""

from __future__ import annotations

from versatune_ray.report.data import Adjustment, RunData
from versatune_ray.report.figures import shares
from versatune_ray.report.traces import label, peaks


def test_thinned_lines_keep_their_ends_and_their_peaks() -> None:
    spiky: list[float | None] = [0.0] * 5000
    spiky[1234], spiky[4321], spiky[77] = 9.0, -9.0, None
    kept = peaks(spiky, 100)
    assert len(kept) <= 100
    assert {0, 1234, 4321, 4999} <= set(kept)


def test_a_drawn_share_covers_the_time_before_its_adjustment_a_requested_one_that_after() -> None:
    even = {"a": 0.5, "b": 0.5}
    first, second = (
        Adjustment(step=0, share=even),
        Adjustment(step=10, share={"a": 0.7, "b": 0.3}, share_achieved=even),
    )
    figure = shares(RunData(name="r", folder="r", adjustments=(first, second), domains=("a", "b")))
    assert figure is not None
    traces = {(trace["meta"]["set"], trace["name"]): trace for trace in figure.traces}
    requested, drawn = traces["requested", "a"], traces["samples", "a"]
    assert (requested["x"], requested["y"], requested["line"]["shape"]) == (
        [0, 10],
        [0.5, 0.7],
        "hv",
    )
    assert (drawn["x"], drawn["y"], drawn["line"]["shape"]) == ([0, 10], [0.5, 0.5], "vh")


def test_a_label_is_short_and_holds_no_markup_for_plotly() -> None:
    assert label("<b>x</b> & y") == "&lt;b&gt;x&lt;/b&gt; &amp; y"
    assert label("n" * 40) == "n" * 28 + " …"
