"""Benchmarks and several runs on a page: the numbers are those of the files, and what was lost is
said.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, call_script, patience
from test_report import body_of, cells_of, fabricate_run, figures_of

from versatune_ray.errors import UserError
from versatune_ray.report import build_report, compare_runs


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
    plain = page.replace('<th scope="row" class="aside">', '<th scope="row">')
    assert cells_of(plain, "benchmarks", "exam (acc)") == [
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


def test_bars_and_radar_draw_the_same_scores(run: Path) -> None:
    figures = figures_of(build_report(run).read_text())
    bars = {
        trace["name"]: dict(zip(trace["x"], trace["y"], strict=True))
        for trace in figures["benchmarks"]["traces"]
    }
    assert bars["tuned"] == pytest.approx({"law": 0.65, "code": 0.25, "music": 0.6, "average": 0.5})
    (base, _) = figures["radar"]["traces"]
    assert base["theta"] == ["law", "code", "music", "law"] and base["r"] == pytest.approx(
        [0.4, 0.2, 0.9, 0.4]
    )


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
    drawn = figures_of(page)["mean-loss"]["traces"][0]
    assert drawn["y"] == pytest.approx(
        [(line["loss"]["law"] + line["loss"]["code"]) / 2 for line in lines]
    )
    with pytest.raises(UserError, match="no such run folder"):
        compare_runs([folders[0], tmp_path / "none"], tmp_path / "x.html")


def test_the_job_builds_compares_and_follows(tmp_path: Path) -> None:
    folder = fabricate_run(tmp_path / "run")

    def report(*arguments: str) -> tuple[int, str, str]:
        return call_script([str(ROOT / "jobs" / "report.py"), *arguments], tmp_path)

    printed = report("run")[1].splitlines()
    assert printed[-1] == str(folder / "report.html") and "next:" in printed
    assert "2 runs side by side" in body_of(
        Path(report("run", "run", "-o", "both.html")[1].strip())
    )
    status, _, errors = report("nowhere")
    assert status == 2 and errors.startswith("error: ") and len(errors.splitlines()) == 1

    # An unfinished run's page loads itself again; the job ends when the run does.
    timings = folder / "timings.json"
    tree = json.loads(timings.read_text())
    timings.write_text(json.dumps(tree | {"finished": None}))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "report.py"), "run", "--follow"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and "not finished yet" in process.stdout.readline()
        assert '<meta http-equiv="refresh"' in (folder / "report.html").read_text()
        timings.write_text(json.dumps(tree))
        assert process.wait(patience(60)) == 0
    finally:
        process.kill()
    assert '<meta http-equiv="refresh"' not in (folder / "report.html").read_text()
