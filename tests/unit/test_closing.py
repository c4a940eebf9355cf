"""How a job ends: what came of it in words, and what to type next."""

from __future__ import annotations

import json
import shlex
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from versatune_ray.cli import show
from versatune_ray.commands import COMMANDS
from versatune_ray.pipeline.closing import _NEXT, closing, following


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("job", _NEXT)
def test_what_to_type_next_is_three_commands_that_there_are(job: str) -> None:
    with_model = following(job, "runs/mine", "--config my.yaml", tuned=True)
    without = following(job, "runs/mine", "--config my.yaml")
    assert with_model[0] == without[0] == "next:" and len(with_model) == len(without) == 4
    assert not any(f" {name} runs" in line for line in without for name in ("chat", "serve"))
    for line in (*with_model[1:], *without[1:]):
        words = shlex.split(line, comments=True)
        assert words[0].endswith("versatune") and words[1] in COMMANDS
        assert len(line) <= 120


def test_the_next_command_takes_what_this_one_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "mine"
    (run / "finetune" / "model").mkdir(parents=True)
    same = closing("finetune", run, ["my file.yaml"], [])
    assert "chat runs/mine " in same and "pipeline --config 'my file.yaml' " in same
    changed = closing("finetune", run, ["my.yaml"], ["training.epochs=1"])
    assert "pipeline --config runs/mine/config.yaml " in changed
    assert "[verdict]" in changed and "cannot be read" not in changed


def test_a_broken_file_ends_no_job(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    for broken in ("{cut", "[1]", '{"results": [{"model": "base"}]}'):
        (tmp_path / "evaluation" / "results.json").write_text(broken)
        said = closing("report", tmp_path, [], [])
        assert said.startswith("[verdict] a file of this run cannot be read (") and "next:" in said


def test_a_job_that_nothing_is_said_of_ends_like_the_others() -> None:
    assert len(following("another", "runs/mine", "--config my.yaml", tuned=True)) == 4


def test_a_page_opens_or_its_path_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda address: not opened.append(address))
    show((tmp_path / "report.html").as_uri())
    assert opened == [(tmp_path / "report.html").as_uri()] and not capsys.readouterr().err
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    show((tmp_path / "report.html").as_uri())
    assert "no browser here; the page is" in capsys.readouterr().err


def test_what_follows_grouping_is_told_of_the_domains_that_it_made() -> None:
    lines = following("group", "runs/mine", "--config my.yaml")[1:]
    assert all("--config my.yaml --config runs/mine/group/domains.yaml" in line for line in lines)
