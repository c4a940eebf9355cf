"""How a job ends: what came of it in words, and what to type next."""

from __future__ import annotations

import json
import math
import shlex
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from versatune_ray.cli import show
from versatune_ray.commands import COMMANDS
from versatune_ray.pipeline.closing import _NEXT, closing, following
from versatune_ray.pipeline.verdict import verdict


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def row(model: str, domain: str, value: float, error: float | None, metric: str) -> dict[str, Any]:
    benchmark = {"loss": "held_out", "exact_match": "questions"}.get(metric, metric)
    found = {"model": model, "domain": domain, "benchmark": benchmark, "metric": metric}
    return found | {"value": value, "standard_error": error, "n": 100}


def test_what_is_beyond_error_is_better_or_worse_and_the_rest_is_neither(tmp_path: Path) -> None:
    # by hand: 0.30 − 0.10 = 0.20 > 2·√(0.03² + 0.046²) = 0.110; 0.55 − 0.50 < 2·√(0.05² + 0.05²)
    rows = [
        row("base", "law", 4.0, None, "loss"),
        row("base", "code", 2.0, None, "loss"),
        row("base", "chat", 2.0, None, "loss"),
        row("tuned", "law", 3.0, None, "loss"),
        row("tuned", "code", 2.1, None, "loss"),
        row("tuned", "chat", 1.99, None, "loss"),
        row("base", "law", 0.10, 0.03, "exact_match"),
        row("tuned", "law", 0.30, 0.046, "exact_match"),
        row("base", "code", 0.50, 0.05, "exact_match"),
        row("tuned", "code", 0.55, 0.05, "exact_match"),
        row("other", "code", 0.99, 0.01, "exact_match"),
        row("base", "code", 0.50, None, "acc"),
        row("tuned", "code", 0.20, None, "acc"),
    ]
    write(tmp_path / "evaluation" / "results.json", {"results": rows, "answers": []})
    assert verdict(tmp_path, "pipeline") == [
        "held-out loss: better in law (−25 %); worse in code (+5 %); chat as before, within 1%",
        "right answers: better in law (+20 points); code as before, within their errors",
        "benchmarks: all as before, within their errors",
    ]


def test_without_an_evaluation_the_first_and_last_losses_tell(tmp_path: Path) -> None:
    log = tmp_path / "finetune" / "adjustments.jsonl"
    log.parent.mkdir()
    losses = ({"law": 4.0, "code": 2.0}, {"law": 9.0, "code": 9.0}, {"law": 2.0, "code": 1.0})
    log.write_text("".join(json.dumps({"loss": one}) + "\n" for one in losses))
    assert verdict(tmp_path, "finetune") == ["held-out loss: better in law (−50 %), code (−50 %)"]
    assert verdict(tmp_path / "nothing", "finetune") == []


def test_detection_references_searches_and_studies_have_their_own(tmp_path: Path) -> None:
    content = {"domains": ["law", "code"], "share": [0.2, 0.8], "used": "raw"}
    write(tmp_path / "detection" / "tiny" / "distribution.json", content)
    assert verdict(tmp_path, "detect") == ["tiny knows most of code (80%), least of law (20%)"]
    curve = [{"epoch": 0, "held_out": 2.0}, {"epoch": 1, "held_out": 1.5}]
    domains = {"law": {"curve": curve, "loss": 1.5}, "code": {"curve": curve[:1], "loss": 2.0}}
    write(tmp_path / "reference" / "losses.json", {"domains": domains})
    assert verdict(tmp_path, "reference") == [
        "law: up to 25% of its loss can go (2.000 → 1.500)",
        "code: nothing left to learn (2.000 → 2.000)",
    ]
    front = [
        {"trial": "a", "mixture.sigma": 1, "score": 0.1},
        {"trial": "b", "mixture.sigma": 2, "score": 0.3},
    ]
    write(tmp_path / "sweep" / "pareto.json", front)
    assert verdict(tmp_path, "sweep") == ["best: mixture.sigma=2; 2 trial(s) that no other beats"]
    gap = {"mean": -0.5, "half_width": 0.1, "holm": 0.01}
    found = {"title": "Loss", "baseline": "even", "digits": 2}
    differences = {"even": None, "ours": gap, "theirs": gap | {"holm": 0.4}}
    write(tmp_path / "study" / "tables.json", [found | {"differences": differences}])
    assert verdict(tmp_path, "study") == [
        "Loss: below even, clearly: ours (−0.50)",
        "not told apart from even: theirs",
    ]
    differences = {"even": None, "ours": gap | {"half_width": math.nan}}
    write(tmp_path / "study" / "tables.json", [found | {"differences": differences}])
    assert "one seed gives no intervals" in verdict(tmp_path, "study")[0]


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
    assert "[verdict]" not in changed


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
    show(tmp_path / "report.html")
    assert opened == [(tmp_path / "report.html").as_uri()] and not capsys.readouterr().err
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    show(tmp_path / "report.html")
    assert "no browser here; the page is" in capsys.readouterr().err
