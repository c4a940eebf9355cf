"""The page of a sweep, a study or a replay: nothing where there is nothing, broken files in one
sentence, foreign names safely written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, assert_harmless, body_of, fabricate_run, figures_of
from report_searches import GRID, mean, put, put_replay, put_study, put_sweep, sections_of

from versatune_ray.report import build_report
from versatune_ray.report.read import read_run


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
