"""What a sweep, a study and a replay left is on the page: the right numbers, safely written, and
nothing where there is nothing.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_report import HOSTILE, assert_harmless, body_of, cells_of, fabricate_run, figures_of

from versatune_ray.report import build_report
from versatune_ray.report.charts import Plot, Series
from versatune_ray.report.read import read_run
from versatune_ray.report.searched import (
    by_setting,
    differences,
    replay_figure,
    score_map,
    trade_off,
)

Rows = list[dict[str, Any]]
COLUMNS = ("gain", "target_gain", "forgetting", "score", "pruned_at", "error")
EPSILON, DELTA = "mixture.epsilon", "mixture.delta"
# score = target_gain − forgetting; a, b and c are beaten by none, d by b, and e was stopped before
# it could tell.
GRID: Rows = [
    {
        "trial": "a",
        EPSILON: 0.5,
        DELTA: 0.1,
        "target_gain": 0.04,
        "forgetting": -0.01,
        "score": 0.05,
    },
    {"trial": "b", EPSILON: 0.5, DELTA: 0.2, "target_gain": 0.08, "forgetting": 0.0, "score": 0.08},
    {
        "trial": "c",
        EPSILON: 2.0,
        DELTA: 0.1,
        "target_gain": 0.1234,
        "forgetting": 0.0512,
        "score": 0.0722,
    },
    {
        "trial": "d",
        EPSILON: 2.0,
        DELTA: 0.2,
        "target_gain": 0.06,
        "forgetting": 0.03,
        "score": 0.03,
    },
    {
        "trial": "e",
        EPSILON: 8.0,
        DELTA: 0.1,
        "target_gain": 0.09,
        "forgetting": 0.005,
        "score": 0.085,
        "pruned_at": 40,
    },
    {"trial": "f", "error": "ValueError: the loss is no number\n at step 12"},
]


def put(folder: Path, name: str, tree: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(
        tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8"
    )


def put_sweep(
    folder: Path, rows: Rows = GRID, front: tuple[str, ...] = ("a", "b", "c"), best: bool = True
) -> Path:
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if key not in ("trial", *COLUMNS)
    ]
    objectives = [
        name
        for name in COLUMNS
        if name in ("pruned_at", "error") or any(name in row for row in rows)
    ]
    (folder / "sweep").mkdir(parents=True, exist_ok=True)
    table = {name: [row.get(name) for row in rows] for name in ("trial", *keys, *objectives)}
    pq.write_table(pa.table(table), folder / "sweep" / "results.parquet")
    put(folder, "sweep/pareto.json", [row for row in rows if row["trial"] in front])
    if best:
        put(folder, "sweep/best.yaml", "run: search-best\n")
    return folder


def mean(value: float, half: float, n: int = 5) -> dict[str, Any]:
    return {"mean": value, "half_width": half, "n": n}


def put_study(folder: Path, **changes: Any) -> Path:
    rows = {
        "uniform": {"law": mean(4.0, 0.01), "mean": mean(4.119, 0.012)},
        "σ = 1": {"law": mean(3.9, 0.02), "mean": mean(4.0987, 0.0204)},
        "σ = 2": {"law": mean(4.1, 0.02), "mean": mean(4.12, 0.0204)},
    }
    differences = {
        "uniform": None,
        "σ = 1": mean(-0.0203, 0.0144) | {"p": 0.017, "holm": 0.034},
        "σ = 2": mean(0.001, 0.002) | {"p": 0.4, "holm": 0.4},
    }
    table = {
        "title": "Held-out loss",
        "columns": ["law", "mean"],
        "rows": rows,
        "of": "mean",
        "baseline": "uniform",
    }
    put(folder, "study/tables.json", [table | {"differences": differences, "digits": 3} | changes])
    return folder


def put_replay(folder: Path, domains: tuple[str, ...] = ("law", "code")) -> Path:
    shares = {
        "recorded": [[0.5, 0.5], [0.6, 0.4]],
        "sigma=2": [[0.5, 0.5], [0.75, 0.25]],
        "sigma=0.5": [[0.5, 0.5], [0.55, 0.45]],
    }
    put(
        folder,
        "replay/trajectories.json",
        {"steps": [0, 10], "domains": list(domains), "shares": shares},
    )
    return folder


def sections_of(page: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', page)


def rows_of(page: str, section: str) -> list[str]:
    part = page[page.index(f'<section id="{section}"') :]
    return re.findall(r'<th scope="row"[^>]*><bdi>(.*?)</bdi>', part[: part.index("</table>")])


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


@pytest.mark.parametrize("make", [put_sweep, put_study, put_replay])
def test_a_run_that_only_compares_is_not_asked_for_what_it_never_makes(
    tmp_path: Path, make: Any
) -> None:
    make(tmp_path)
    put(
        tmp_path,
        "config.yaml",
        {"run": "mine", "mixture": {"policy": "expansion", "epsilon": 1.0, "delta": 0.05}},
    )
    put(tmp_path, "timings.json", {"steps": [], "finished": "2026-07-01T12:00:00+00:00"})
    page = body_of(build_report(tmp_path))
    part = make.__name__.removeprefix("put_")
    assert sections_of(page) == ["summary", part, "settings"]
    assert (
        'class="missing"' not in page
        and "not finished" not in page
        and "has not been fine-tuned" not in page
    )
    assert ("<dt>ε</dt>" in page) == (part != "sweep")  # what is searched has no one value


def test_a_run_without_them_has_no_such_section_and_one_with_both_keeps_its_own(
    tmp_path: Path,
) -> None:
    folder = fabricate_run(tmp_path / "run", adjustments=2)
    assert not {"sweep", "study", "replay"} & set(sections_of(body_of(build_report(folder))))
    put_replay(folder, ("law", "medicine"))
    page = body_of(build_report(folder))
    assert sections_of(page)[:5] == ["summary", "outcome", "detection", "finetuning", "replay"]
    for name in ("finetune/adjustments.jsonl", "evaluation/results.json"):
        (folder / name).unlink()
    assert not read_run(folder).detects_only and read_run(folder).compares


@pytest.mark.parametrize(
    "name",
    ["sweep/results.parquet", "sweep/pareto.json", "study/tables.json", "replay/trajectories.json"],
)
@pytest.mark.parametrize("damage", ["cut off", "wrong shape", "a number"])
def test_a_broken_file_becomes_one_sentence_and_the_rest_is_shown(
    tmp_path: Path, name: str, damage: str
) -> None:
    put_replay(put_study(put_sweep(tmp_path)))
    put(tmp_path, "config.yaml", {"run": "mine"})
    file = tmp_path / name
    file.write_bytes(
        {
            "cut off": file.read_bytes()[: file.stat().st_size // 2],
            "wrong shape": b'[[1], {"x": 2}]',
            "a number": b"7",
        }[damage]
    )
    page = body_of(build_report(tmp_path))
    assert sections_of(page) == ["summary", "sweep", "study", "replay", "settings"]
    told = re.findall(r'<p class="missing">(.*?)</p>', page)
    assert (
        len(told) == 1
        and told[0].startswith(name)
        and "\n" not in told[0]
        and str(tmp_path) not in told[0]
    )
    assert len(figures_of(page)) == {"sweep/results.parquet": 2, "sweep/pareto.json": 4}.get(
        name, 3
    )


@pytest.mark.parametrize(
    ("name", "tree", "told"),
    [
        (
            "study/tables.json",
            [{"title": "x", "columns": [], "rows": {}, "of": "a", "baseline": "b", "digits": 99}],
            "digits",
        ),
        (
            "replay/trajectories.json",
            {"steps": [0], "domains": ["a"], "shares": {"x": [[1.0], [1.0]]}},
            "shares.x has 2 rows for 1 steps",
        ),
        (
            "replay/trajectories.json",
            {"steps": [0], "domains": ["a"], "shares": {"x": [[0.5, 0.5]]}},
            "2 shares in a row for 1 domains",
        ),
    ],
)
def test_what_does_not_fit_together_is_told(
    tmp_path: Path, name: str, tree: Any, told: str
) -> None:
    put(tmp_path, name, tree)
    assert told in body_of(build_report(tmp_path))


def test_a_sweep_without_its_front_or_without_trials_says_so(tmp_path: Path) -> None:
    put_sweep(tmp_path)
    (tmp_path / "sweep/pareto.json").unlink()
    page = body_of(build_report(tmp_path))
    assert "sweep/pareto.json is not in the run folder" in page and "trade-off" in figures_of(page)
    put_sweep(tmp_path, [])
    assert "sweep/results.parquet holds no trials." in body_of(build_report(tmp_path))


def test_foreign_names_are_text_and_never_markup(tmp_path: Path) -> None:
    rows = [{**row, "trial": f"{HOSTILE}{row['trial']}", f"{HOSTILE}.x": HOSTILE} for row in GRID]
    rows[-1]["error"] = HOSTILE
    put_sweep(tmp_path, rows, tuple(row["trial"] for row in rows[:3]))
    one = mean(1.0, 0.1)
    named: dict[str, Any] = {
        "title": HOSTILE,
        "columns": [HOSTILE],
        "rows": {HOSTILE: {HOSTILE: one}, "b<i>": {HOSTILE: one}},
    }
    put_study(
        tmp_path, **named, of=HOSTILE, baseline="b<i>", differences={HOSTILE: one, "b<i>": None}
    )
    shares = {"recorded": [[0.5, 0.5]], HOSTILE: [[0.5, 0.5]]}
    put(
        tmp_path,
        "replay/trajectories.json",
        {"steps": [0], "domains": [HOSTILE, "b<i>"], "shares": shares},
    )
    page = build_report(tmp_path)
    assert_harmless(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body_of(page)


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
