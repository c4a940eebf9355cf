"""Benchmarks and several runs on a page: the numbers are those of the files, and what was lost is
said.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import runpy
import sys
import threading
import time
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT
from report_runs import body_of, cells_of, fabricate_run

from versatune_ray.errors import UserError
from versatune_ray.report import build_report, compare_runs
from versatune_ray.report.benchmarks import benchmark_section
from versatune_ray.report.compare import _losses
from versatune_ray.report.live import server
from versatune_ray.report.picture import picture
from versatune_ray.report.read import read_run


def measured(model: str, domain: str, benchmark: str, value: float, n: int = 100) -> dict[str, Any]:
    error = math.sqrt(value * (1 - value) / n)
    row = {
        "model": model,
        "domain": domain,
        "benchmark": benchmark,
        "metric": "acc",
        "unit": "share",
        "value": value,
    }
    return row | {"standard_error": error, "n": n}


ROWS = [
    measured("base", "law", "exam", 0.5),
    measured("base", "law", "bar", 0.3),
    measured("base", "code", "puzzles", 0.2),
    measured("base", "music", "notes", 0.9),
    measured("tuned", "law", "exam", 0.8),
    measured("tuned", "law", "bar", 0.5),
    measured("tuned", "code", "puzzles", 0.25),
    measured("tuned", "music", "notes", 0.6),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "evaluation").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        json.dumps({"run": "run", "model": {"path": "m"}, "domains": {"law": {}, "code": {}}})
    )
    (folder / "evaluation" / "results.json").write_text(
        json.dumps({"results": ROWS, "answers": []})
    )
    (folder / "timings.json").write_text(
        json.dumps({"steps": [], "finished": "2026-01-01T00:00:00+00:00"})
    )
    return folder


def test_scores_stand_per_benchmark_per_domain_and_on_average(run: Path) -> None:
    page = build_report(run).read_text()
    # law: (0.5 + 0.3) / 2 = 40 %, errors √(0.05² + 0.0458²) / 2 = 3.4; tuned (0.8 + 0.5) / 2 = 65
    # %, √(0.04² + 0.05²) / 2 = 3.2
    assert cells_of(page, "benchmarks", "law") == ["", "40.0 ± 3.4", "65.0 ± 3.2 (+25.0)"]
    assert cells_of(page, "benchmarks", "exam (acc)") == [
        "100",
        "50.0 ± 5.0",
        "80.0 ± 4.0 (+30.0)",
    ]
    # (40 + 20 + 90) / 3 = 50; (65 + 25 + 60) / 3 = 50
    assert [
        cell.split(" ±")[0] for cell in cells_of(page, "benchmarks", "Average over domains")[1:]
    ] == ["50.0", "50.0"]
    section = re.search(r'<section id="benchmarks">.*?</section>', page, re.DOTALL)[0]
    tones = {
        value: tone for tone, value in re.findall(r'class="(better|worse)"><bdi>([\d.]+)', section)
    }
    # 25 % against 20 % is within two errors
    assert tones == {"65.0": "better", "80.0": "better", "50.0": "better", "60.0": "worse"}
    assert "Lost by more than that: tuned in music." in page
    assert (
        "This run measured 2 models on 4 benchmarks." in page
        and "not finished" not in page
        and "it has not been fine-tuned" not in page
    )


def test_what_could_not_be_measured_is_named(run: Path) -> None:
    (run / "evaluation" / "failed.json").write_text(json.dumps({"tuned: <i>x</i>": "no such file"}))
    page = build_report(run).read_text()
    assert (
        "Not measured" in page
        and "<bdi>tuned: &lt;i&gt;x&lt;/i&gt;</bdi></strong>: <bdi>no such file</bdi>" in page
    )


def test_the_chart_draws_the_same_scores(run: Path) -> None:
    section = benchmark_section(read_run(run))
    assert section
    ((_, plot),) = section["figure"].views
    tuned = {row.name: [mark[1] for mark in row.marks if mark[0] == "dot"][1] for row in plot.rows}
    assert tuned == pytest.approx({"law": 0.65, "code": 0.25, "music": 0.6, "average": 0.5})


def test_several_runs_share_a_page_with_what_differs(tmp_path: Path) -> None:
    folders = [
        fabricate_run(tmp_path / name, domains=("law", "code"), seed=seed)
        for seed, name in enumerate(("first", "second"))
    ]
    for folder, sigma in zip(folders, (0.5, 2.0), strict=True):
        tree = json.loads((folder / "config.yaml").read_text())
        tree["mixture"]["sigma"] = sigma
        (folder / "config.yaml").write_text(json.dumps(tree))
    page = compare_runs(folders, tmp_path / "both.html").read_text()
    for folder in folders:
        results = json.loads((folder / "evaluation" / "results.json").read_text())["results"]
        after = {
            row["domain"]: row["value"]
            for row in results
            if row["model"] == "tuned" and row["metric"] == "loss"
        }
        cells = cells_of(page, "results", folder.name)
        assert cells[:3] == [f"{after[name]:.3f}" for name in ("law", "code")] + [
            f"{sum(after.values()) / 2:.3f}"
        ]
    assert cells_of(page, "settings", "first") == ["0.5"] and cells_of(
        page, "settings", "second"
    ) == ["2.0"]
    lines = [
        json.loads(line)
        for line in (folders[0] / "finetune" / "adjustments.jsonl").read_text().splitlines()
    ]
    drawn = _losses({folder.name: read_run(folder) for folder in folders})
    assert drawn and [y for _, y in drawn.views[0][1].series[0].points] == pytest.approx(
        [(line["loss"]["law"] + line["loss"]["code"]) / 2 for line in lines]
    )
    with pytest.raises(UserError, match="no such run folder"):
        compare_runs([folders[0], tmp_path / "none"], tmp_path / "x.html")


@pytest.fixture
def job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``jobs/report.py`` here; gives its status, what it printed and what it complained of."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        status = 0
        try:
            runpy.run_path(str(ROOT / "jobs" / "report.py"), run_name="__main__")
        except SystemExit as ended:
            status = int(ended.code or 0)
        return status, *capsys.readouterr()

    return call


def test_the_job_builds_compares_and_follows(
    tmp_path: Path, job: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fabricate_run(tmp_path / "run")
    printed = job("run")[1].splitlines()
    assert printed[-1] == str(folder / "report.html") and "next:" in printed
    both = Path(job("run", "run", "-o", "both.html")[1].strip())
    assert "2 runs side by side" in body_of(both)
    for wrong in (["nowhere"], ["nowhere", "--live"], ["run", "run", "--live"]):
        status, _, errors = job(*wrong)
        assert status == 2 and errors.startswith("error: ") and len(errors.splitlines()) == 1

    # An unfinished run's page loads itself again; the job ends when the run does.
    timings, page = folder / "timings.json", folder / "report.html"
    tree = json.loads(timings.read_text())
    timings.write_text(json.dumps(tree | {"finished": None}))
    seen, sleep = [], time.sleep

    def wait(seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread():  # of an earlier test
            sleep(seconds)
            return
        seen.append('<meta http-equiv="refresh"' in page.read_text())
        timings.write_text(json.dumps(tree))

    monkeypatch.setattr(time, "sleep", wait)
    status, told, _ = job("run", "--follow")
    assert status == 0 and "not finished yet" in told and seen == [True]
    assert '<meta http-equiv="refresh"' not in page.read_text()


def test_a_running_job_is_served_to_this_machine_alone_and_kept_up_to_date(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path / "run", ("law", "code"), adjustments=2)
    live = server(lambda: folder)
    threading.Thread(target=live.serve_forever, daemon=True).start()

    def ask(method: str, path: str = "/", host: str = "localhost") -> tuple[int, str, str]:
        connection = http.client.HTTPConnection("127.0.0.1", live.server_port, timeout=30)
        connection.request(method, path, headers={"Host": host})
        answer = connection.getresponse()
        found = answer.status, answer.headers.get("ETag", ""), answer.read().decode()
        connection.close()
        return found

    try:
        status, tag, page = ask("GET")
        assert status == 200 and "not finished" not in page and ask("HEAD") == (200, tag, "")
        timings = folder / "timings.json"
        timings.write_text(json.dumps(json.loads(timings.read_text()) | {"finished": None}))
        assert ask("HEAD")[1] != tag and "This run is not finished." in ask("GET")[2]
        assert ask("GET", "/config.yaml")[0] == 404 == ask("GET", host="evil.example")[0]
        with pytest.raises(UserError, match=f"--port {live.server_port}"):
            server(lambda: folder, live.server_port)
    finally:
        live.shutdown()
        live.server_close()


def test_the_picture_is_one_svg_with_every_share_and_gain(tmp_path: Path) -> None:
    run = read_run(fabricate_run(tmp_path / "run", ("law & order", "code")))
    drawn = xml.etree.ElementTree.fromstring(picture(run))
    texts = [one.text or "" for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    # exact match: 10 → 50 % and 11 → 53 %
    assert {"law & order", "code", "+40.0", "+42.0"} <= set(texts)
    assert len([text for text in texts if text.endswith("%")]) == 4
    with pytest.raises(ValueError, match="fine-tune first"):
        picture(replace(run, adjustments=()))


def test_two_who_ask_at_once_get_a_page_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = iter("ab")
    monkeypatch.setattr("versatune_ray.report.live.state", lambda folder: next(tags))
    monkeypatch.setattr("versatune_ray.report.live.read_run", lambda folder: None)
    monkeypatch.setattr("versatune_ray.report.live.render", lambda run: "page")
    live = server(lambda: tmp_path)
    threading.Thread(target=live.serve_forever, daemon=True).start()
    second: list[bytes] = []
    ending = live.RequestHandlerClass.end_headers  # type: ignore[attr-defined]

    def ask() -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", live.server_port, timeout=30)
        connection.request("GET", "/", headers={"Host": "localhost"})
        found = connection.getresponse().read()
        connection.close()
        return found

    def end_headers(self: Any) -> None:
        if not second:  # the run has news before the first has its page
            second.append(b"")
            second.append(ask())
        ending(self)

    monkeypatch.setattr(live.RequestHandlerClass, "end_headers", end_headers)
    try:
        assert (ask(), second[-1]) == (b"page", b"page")
    finally:
        live.shutdown()
        live.server_close()
