"""What a sweep, a study and a replay left is on the page: the right numbers, safely written, and
nothing where there is nothing.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_report import HOSTILE, body_of, cells_of, fabricate_run, figures_of

from versatune_ray.report import build_report
from versatune_ray.report.data import Adjustment, Guard, RunData
from versatune_ray.report.guard import guard
from versatune_ray.report.replay import CAVEAT
from versatune_ray.report.run_files import read_run

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


def trace(figure: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(trace for trace in figure["traces"] if trace.get("name") == name)
    return found


def test_trials_stand_by_score_with_what_became_of_them(tmp_path: Path) -> None:
    page = body_of(build_report(put_sweep(tmp_path)))
    assert sections_of(page) == ["summary", "sweep", "absent"]
    assert rows_of(page, "sweep") == ["b", "c", "a", "d", "e", "f"]
    assert re.findall(r'<th scope="row" class="better"><bdi>(.*?)</bdi>', page) == ["b"]
    plain = page.replace('<th scope="row" class="better">', '<th scope="row">')
    assert cells_of(plain, "sweep", "b") == [
        "0.5",
        "0.2",
        "8.00 %",
        "0.00 %",
        "8.00 %",
        "best, beaten by none",
    ]
    assert cells_of(plain, "sweep", "c") == [
        "2.0",
        "0.1",
        "12.34 %",
        "5.12 %",
        "7.22 %",
        "beaten by none",
    ]
    assert cells_of(plain, "sweep", "d")[-1] == ""
    assert cells_of(plain, "sweep", "e")[-1] == "stopped early at step 40"
    assert cells_of(plain, "sweep", "f") == [
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
    assert f"python jobs/finetune.py --config {tmp_path}/sweep/best.yaml" in text


def test_the_front_is_a_line_from_little_to_much_forgetting(tmp_path: Path) -> None:
    figure = figures_of(body_of(build_report(put_sweep(tmp_path))))["trade-off"]
    front = trace(figure, "beaten by none")
    assert (front["x"], front["y"]) == ([-0.01, 0.0, 0.0512], [0.04, 0.08, 0.1234])
    assert (front["mode"], front["line"]["shape"]) == ("lines+markers", "hv")
    assert trace(figure, "best score")["x"] == [0.0] and trace(figure, "stopped early")["x"] == [
        0.005
    ]
    assert trace(figure, "other trials")["y"] == [0.06]


def test_a_front_of_three_aims_is_not_joined(tmp_path: Path) -> None:
    figure = figures_of(body_of(build_report(put_sweep(tmp_path, front=("a", "b", "c", "d")))))[
        "trade-off"
    ]
    assert trace(figure, "beaten by none")["mode"] == "markers"


def test_the_map_has_every_score_in_its_place_and_marks_the_best(tmp_path: Path) -> None:
    page = body_of(build_report(put_sweep(tmp_path)))
    figure = figures_of(page)["score-map"]
    cells, frame = figure["traces"]
    # Fewer values go across: δ; ε goes up. Nothing was tried at (δ 0.2, ε 8).
    assert figure["layout"]["xaxis"]["ticktext"] == ["0.1", "0.2"] and figure["layout"]["yaxis"][
        "ticktext"
    ] == ["0.5", "2.0", "8.0"]
    assert cells["z"] == [[0.05, 0.08], [0.0722, 0.03], [0.085, None]]
    assert cells["text"] == [["5.00", "8.00"], ["7.22", "3.00"], ["(8.50)", ""]]
    assert (min(frame["x"]), max(frame["x"]), min(frame["y"]), max(frame["y"])) == (
        0.5,
        1.5,
        -0.5,
        0.5,
    )
    assert "Numbers in brackets" in page


def test_parallel_lines_run_through_every_setting_and_objective(tmp_path: Path) -> None:
    figure = figures_of(body_of(build_report(put_sweep(tmp_path))))["parallel"]
    assert figure["layout"]["xaxis"]["ticktext"] == [
        "ε",
        "δ",
        "target<br>gain",
        "forgetting",
        "score",
    ]
    assert (
        len(figure["traces"]) == 5
    )  # all but the failed one; the best is on top, stopped ones below
    lowest, highest = figure["traces"][0], figure["traces"][-1]
    assert lowest["meta"]["mix"] == 0 and figure["traces"][-2]["meta"]["mix"] == 0.75
    # e, stopped early: ε is the third of three values, δ the first of two; b is the best.
    assert lowest["y"][:2] == [1.0, 0.0] and highest["y"][:2] == [0.0, 1.0]
    assert [trace["meta"] for trace in figure["traces"] if trace["line"]["width"] == 4] == [
        {"tone": "better"}
    ]


def test_without_targets_or_numbers_there_is_a_table_alone(tmp_path: Path) -> None:
    rows = [
        {"trial": "a", "mixture.start": "uniform", "gain": 0.04, "score": 0.04},
        {"trial": "b", "mixture.start": "inverse", "gain": 0.05, "score": 0.05},
    ]
    page = body_of(build_report(put_sweep(tmp_path, rows, ("b",), best=False)))
    assert (
        figures_of(page) == {}
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
    figure = figures_of(page)["study-0"]
    clear, unclear = trace(figure, "interval leaves 0 out"), trace(figure, "interval holds 0")
    assert (clear["x"], clear["error_x"]["array"], unclear["x"]) == ([-0.0203], [0.0144], [0.001])
    names = figure["layout"]["yaxis"]["ticktext"]
    assert (
        names[clear["y"][0]] == "σ = 1"
        and names[unclear["y"][0]] == "σ = 2"
        and figure["layout"]["xaxis"]["zeroline"]
    )
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
    assert [trace["name"] for trace in figures_of(page)["study-0"]["traces"]] == [
        "one seed, no interval"
    ]


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
    figure = figures_of(page)["replay"]
    assert [view["label"] for view in figure["views"]] == ["sigma=2", "sigma=0.5"]
    assert all(
        "recorded" in view["show"] and view["faint"] == ["recorded"] for view in figure["views"]
    )
    shown = {(trace["meta"]["set"], trace["name"]): trace["y"] for trace in figure["traces"]}
    assert shown[figure["views"][0]["show"][1], "law"] == [0.5, 0.75] and shown[
        "recorded", "code"
    ] == [0.5, 0.4]
    assert CAVEAT in page and cells_of(page, "replay", "sigma=2") == ["75.0 %", "25.0 %"]


def test_every_chart_is_valid_plotly(tmp_path: Path) -> None:
    page = body_of(build_report(put_replay(put_study(put_sweep(tmp_path)))))
    assert set(figures_of(page)) == {"trade-off", "score-map", "parallel", "study-0", "replay"}
    for figure in figures_of(page).values():
        go.Figure(data=figure["traces"], layout=figure["layout"])


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
    assert len(figures_of(page)) == {"sweep/results.parquet": 2, "sweep/pareto.json": 5}.get(
        name, 4
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
    body = body_of(build_report(tmp_path))
    assert (
        body.count("<script") == 3
        and body.count("</script>") == 3
        and "&lt;script&gt;alert(1)&lt;/script&gt;" in body
    )
    assert (
        "<img" not in body
        and "<!--" not in body
        and "b<i>" not in body
        and "\u202e" not in body
        and "\x00" not in body
    )
    for figure in figures_of(body).values():
        drawn = json.dumps({"traces": figure["traces"], "layout": figure["layout"]})
        assert "<" not in drawn.replace("<extra>", "").replace("</extra>", "").replace("<br>", "")
        assert all(
            "%{x}" not in trace["hovertemplate"]
            for trace in figure["traces"]
            if "hovertemplate" in trace
        )


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
    assert (
        "score-map" not in figures_of(body) and len(figures_of(body)["parallel"]["traces"]) == 200
    )
    assert page.stat().st_size < 6_500_000


def test_the_guard_shows_both_sides_and_when_it_was_open() -> None:
    sides = [
        (0.0, 0.3, True),
        (0.1, 0.3, True),
        (0.4, 0.3, False),
        (0.2, 0.3, True),
        (0.5, 0.3, False),
    ]
    lines = tuple(
        Adjustment(step=10 * number, guard=Guard(open=is_open, forgetting=forgetting, bound=bound))
        for number, (forgetting, bound, is_open) in enumerate(sides, 1)
    )
    figure = guard(
        RunData(name="r", folder="r", adjustments=(Adjustment(step=0), *lines), domains=("a", "b"))
    )
    assert figure is not None
    bands, forgetting, bound = figure.traces
    # Open from step 10 to 30, closed to 40, open to 50, the last.
    assert (bands["x"], bands["z"]) == ([10, 30, 40, 50], [[1, 0, 1]])
    assert (
        forgetting["y"] == [0.0, 0.1, 0.4, 0.2, 0.5]
        and bound["y"] == [0.3] * 5
        and forgetting["x"] == [10, 20, 30, 40, 50]
    )
    assert "open at 3 of 5 decisions" in figure.sentence
    assert [row[1].text for row in figure.tables[0].rows] == [
        "open",
        "open",
        "closed",
        "open",
        "closed",
    ]
    assert (
        guard(RunData(name="r", folder="r", adjustments=(Adjustment(step=0),), domains=("a",)))
        is None
    )
