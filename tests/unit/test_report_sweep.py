"""What a sweep left is on the page: trials by score, the trade-off, the map of settings."""

from __future__ import annotations

import html
import re
from pathlib import Path

from report_runs import body_of, cells_of, figures_of
from report_searches import DELTA, EPSILON, put, put_sweep, rows_of, sections_of

from versatune_ray.report import build_report
from versatune_ray.report.charts import Plot, Series
from versatune_ray.report.read import read_run
from versatune_ray.report.searched import by_setting, score_map, trade_off


def series_of(folder: Path) -> dict[tuple[str, str], Series]:
    """The trade-off of a sweep: (name, look) → what is drawn."""
    sweep = read_run(folder).sweep
    figure = trade_off(sweep) if sweep else None
    assert figure
    ((_, plot),) = figure.views
    assert isinstance(plot, Plot)
    return {(one.name, one.look): one for one in plot.series}


def test_trials_stand_by_score_with_what_became_of_them(tmp_path: Path) -> None:
    page = body_of(build_report(put_sweep(tmp_path)))
    assert sections_of(page) == ["summary", "sweep", "absent"]
    assert rows_of(page, "sweep") == ["b", "c", "a", "d", "e", "f"]
    assert re.findall(r'<th scope="row" class="better"><bdi>(.*?)</bdi>', page) == ["b"]
    assert cells_of(page, "sweep", "b") == [
        "0.5",
        "0.2",
        "8.00 %",
        "0.00 %",
        "8.00 %",
        "best, beaten by none",
    ]
    assert cells_of(page, "sweep", "c") == [
        "2.0",
        "0.1",
        "12.34 %",
        "5.12 %",
        "7.22 %",
        "beaten by none",
    ]
    assert cells_of(page, "sweep", "d")[-1] == ""
    assert cells_of(page, "sweep", "e")[-1] == "stopped early at step 40"
    assert cells_of(page, "sweep", "f") == [
        "–",
        "–",
        "–",
        "–",
        "–",
        "failed: ValueError: the loss is no number at step 12",
    ]
    text = html.unescape(page).replace("\u202f", " ")
    assert (
        "searched mixture.epsilon and mixture.delta in 6 trials. The best had ε 0.5, δ 0.2, with a "
        "score of 8.00 %." in text
    )
    assert "1 of 6 trials failed; its error is in the table" in text
    assert "ε is mixture.epsilon and δ is mixture.delta." in text
    place = "/".join(tmp_path.parts[-2:])
    assert f"versatune finetune --config {place}/sweep/best.yaml" in text


def test_the_front_is_a_line_from_little_to_much_forgetting(tmp_path: Path) -> None:
    drawn = series_of(put_sweep(tmp_path))
    front = [(-0.01, 0.04), (0.0, 0.08), (0.0512, 0.1234)]
    assert drawn["beaten by none", "line"].points == front and len(drawn) == 5
    assert drawn["best score", "square"].points == [(0.0, 0.08)]
    assert drawn["stopped early", "open"].points == [(0.005, 0.09)]
    assert drawn["other trials", "dots"].points == [(0.03, 0.06)]
    (tip,) = drawn["best score", "square"].tips
    assert tip.replace("\u202f", " ").startswith("ε 0.5, δ 0.2 · target gain 8.00 %")


def test_a_front_of_three_aims_is_not_joined(tmp_path: Path) -> None:
    drawn = series_of(put_sweep(tmp_path, front=("a", "b", "c", "d")))
    assert ("beaten by none", "line") not in drawn


def test_the_map_has_every_score_in_its_place_and_marks_the_best(tmp_path: Path) -> None:
    sweep = read_run(put_sweep(tmp_path)).sweep
    table = score_map(sweep) if sweep else None
    # Fewer values go across: δ; ε goes up. Nothing was tried at (δ 0.2, ε 8).
    assert table and table.head == ("ε", "0.1", "0.2")
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["0.5", "5.00", "8.00"],
        ["2.0", "7.22", "3.00"],
        ["8.0", "(8.50)", ""],
    ]
    assert [cell.text for row in table.rows for cell in row if cell.tone == "best"] == ["8.00"]
    assert table.rows[2][1].heat == 1 and "numbers in brackets" in body_of(build_report(tmp_path))


def test_each_setting_has_a_view_of_the_score_over_it(tmp_path: Path) -> None:
    sweep = read_run(put_sweep(tmp_path)).sweep
    figure = by_setting(sweep) if sweep else None
    assert figure and [label for label, _ in figure.views] == ["ε", "δ"]
    drawn = {(one.name, *point) for one in figure.views[1][1].series for point in one.points}
    assert drawn == {
        *(("finished", 0.1, 0.0722), ("finished", 0.1, 0.05), ("finished", 0.2, 0.03)),
        *(("finished", 0.2, 0.08), ("best score", 0.2, 0.08), ("stopped early", 0.1, 0.085)),
    }


def test_without_targets_or_numbers_there_is_a_table_alone(tmp_path: Path) -> None:
    rows = [
        {"trial": "a", "mixture.start": "uniform", "gain": 0.04, "score": 0.04},
        {"trial": "b", "mixture.start": "inverse", "gain": 0.05, "score": 0.05},
    ]
    page = body_of(build_report(put_sweep(tmp_path, rows, ("b",), best=False)))
    assert (
        figures_of(page) == []
        and rows_of(page, "sweep") == ["b", "a"]
        and "finetune.py" not in page
    )
    lists = [
        row | {"mixture.start": None, "mixture.targets": [["law", "code"], ["law"]][place]}
        for place, row in enumerate(rows)
    ]
    page = body_of(build_report(put_sweep(tmp_path, lists, ("b",))))
    assert cells_of(page, "sweep", "a")[:2] == ["–", "law, code"]


def test_a_best_value_at_the_end_of_a_list_is_pointed_out_but_not_of_a_range(
    tmp_path: Path,
) -> None:
    put_sweep(tmp_path)
    assert "ε = 0.5 is the smallest tried" in body_of(build_report(tmp_path))
    put(tmp_path, "config.yaml", {"sweep": {"space": {EPSILON: {"min": 0.5, "max": 8.0}}}})
    assert "smallest tried" not in body_of(build_report(tmp_path))


def test_a_sweep_without_its_front_or_without_trials_says_so(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    (tmp_path / "sweep/pareto.json").unlink()
    page = body_of(build_report(tmp_path))
    assert "sweep/pareto.json is not in the run folder" in page and "trade-off" in figures_of(page)
    put_sweep(tmp_path, [])
    assert "sweep/results.parquet holds no trials." in body_of(build_report(tmp_path))


def test_a_large_sweep_shows_the_best_and_stays_small(tmp_path: Path) -> None:
    rows = [
        {
            "trial": f"t{i}",
            EPSILON: 1 + i / 7,
            DELTA: 0.1 + i / 9000,
            "target_gain": i / 1e4,
            "forgetting": 0.0,
            "score": i / 1e4,
        }
        for i in range(900)
    ]
    page = build_report(put_sweep(tmp_path, rows, ("t899",)))
    body = body_of(page)
    assert (
        len(rows_of(body, "sweep")) == 200
        and "200 of 900; all are in sweep/results.parquet" in body
    )
    assert 'class="map"' not in body and page.stat().st_size < 400_000
    sweep = read_run(tmp_path).sweep
    figure = by_setting(sweep) if sweep else None
    assert figure and len(figure.views[0][1].series[0].points) == 200
