"""The page of a run of which parts are missing, broken or not there yet."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from report_runs import body_of, cells_of, fabricate_run, figures_of, write_results

from versatune_ray.errors import UserError
from versatune_ray.report import build_report


def test_losses_of_the_adjustments_stand_in_for_a_missing_evaluation(
    tmp_path: Path,
) -> None:
    lines = [
        {"step": 0, "loss": {"a": 2.0, "b": 1.0}, "share": {"a": 0.5, "b": 0.5}},
        {"step": 8, "loss": {"a": 1.0, "b": 1.1}, "share": {"a": 0.6, "b": 0.4}},
    ]
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune/adjustments.jsonl").write_text(
        "\n".join(map(json.dumps, lines)) + '\n{"step": 16, "lo'
    )
    page = body_of(build_report(tmp_path))
    assert cells_of(page, "outcome", "a") == ["2.000", "1.000", "−50.0 %"]
    assert (
        "gave more to a (50.0\u202f% → 60.0\u202f%) and less to b (50.0\u202f% → 40.0\u202f%)"
        in page
    )
    assert "1 line(s) could not be read" in page


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    page = body_of(build_report(tmp_path))
    assert "This run is not finished." in page
    names = (
        "config.yaml",
        "data.json",
        "distribution.json",
        "reference/losses.json",
        "adjustments.jsonl",
        "results.json",
        "timings.json",
    )
    assert all(name in page for name in names)
    assert figures_of(page) == []


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "data.json",
        "detection",
        "reference",
        "finetune",
        "evaluation",
        "timings.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "cut off", "wrong shape"])
def test_each_part_may_be_missing_or_broken(tmp_path: Path, name: str, damage: str) -> None:
    folder = fabricate_run(tmp_path / "run", adjustments=2)
    files = [path for path in sorted((folder / name).rglob("*")) if path.is_file()] or [
        folder / name
    ]
    for file in files:
        if damage == "missing":
            file.unlink()
        elif damage == "cut off":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        else:
            file.write_text("[1, 2]")
    assert 'class="missing"' in body_of(build_report(folder))


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        build_report(tmp_path / "absent")
    (tmp_path / "law.jsonl").write_text("{}")
    with pytest.raises(UserError, match=": no run folder; name the folder that holds the run's"):
        build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_numbers_that_are_not_finite_are_dashes(tmp_path: Path) -> None:
    write_results(tmp_path, [])
    text = '{"results": [{"model": "base", "domain": "law", "benchmark": "held_out", '
    text += '"metric": "loss", "value": NaN, "n": 3},'
    text += '{"model": "tuned", "domain": "law", "benchmark": "held_out", '
    text += '"metric": "loss", "value": 2.5, "n": 3}]}'
    (tmp_path / "evaluation/results.json").write_text(text)
    assert cells_of(body_of(build_report(tmp_path)), "outcome", "law")[:3] == ["–", "2.500", "–"]


def test_parts_that_an_unfinished_run_lacks_are_listed_at_the_end(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path / "run", adjustments=2)
    for name in ("finetune/adjustments.jsonl", "evaluation/results.json", "timings.json"):
        (folder / name).unlink()
    body = body_of(build_report(folder))
    assert re.findall(r'<section id="(\w+)"', body) == [
        "summary",
        "detection",
        "data",
        "generations",
        "settings",
        "absent",
    ]
    assert (
        "Not there yet: fine-tuning, evaluation, timings." in body
        and "it has not been fine-tuned yet" in body
    )
    assert "nothing was evaluated" in body[body.index('id="absent"') :]

    # what needs no detection does not wait for one
    shutil.rmtree(folder / "detection")
    tree = yaml.safe_load((folder / "config.yaml").read_text())
    for start, first in (("detected", "detected shares, fine-tuning"), ("uniform", "fine-tuning")):
        tree["mixture"] = tree.get("mixture", {}) | {"start": start}
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        assert f"Not there yet: {first}, evaluation" in body_of(build_report(folder))


def test_a_file_that_is_there_but_broken_is_told_in_its_own_section(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path / "run", adjustments=2)
    (folder / "finetune/adjustments.jsonl").write_text("{")
    body = body_of(build_report(folder))
    assert (
        "could not be read"
        in body[body.index('<section id="finetuning"') : body.index('<section id="data"')]
    )
    assert 'id="absent"' not in body
