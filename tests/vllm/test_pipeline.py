"""The whole path on a small microworld, as a user runs it: real vLLM, Ray Data and Ray Train, and a
second run from the caches.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.dataset
import pytest
import yaml
from processes import ROOT, call_job, patience

SETTINGS = {
    "run": "small",
    "microworld": {"facts": 12},
    "base": {"rows": 4480, "judge_rows": 2240},
    "data": {"max_length": 96},
    "detection": {"samples": 150, "repeats": 2, "generation": {"max_tokens": 40}},
    "reference": {"epochs": 2, "learning_rate": 1e-3, "workers": 2},
    "training": {"workers": 2, "epochs": 6, "batch_size": 16, "learning_rate": 1e-3},
    "evaluation": {"max_tokens": 16},
}


def pipeline(folder: Path, *overrides: str, status: int = 0) -> str:
    return call_job(
        SETTINGS | {"storage": str(folder)}, "pipeline.py", folder, *overrides, status=status
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    (folder / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """The first run goes through ``jobs/quickstart``: a head of its own, ``ray job submit``, and
    nothing left behind.
    """
    before = folders()
    command = [
        "bash",
        str(ROOT / "jobs" / "quickstart"),
        "--config",
        str(folder / "small.yaml"),
        f"storage={folder}",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"VERSATUNE_TEST": str(folder)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith(str(folder / "small" / "report.html"))
    # some helpers of Ray's dashboard notice a moment later that it is gone
    deadline = time.monotonic() + patience(20)
    while (
        left := [process for process in psutil.process_iter() if started_by(process, folder)]
    ) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []
    assert folders() == before
    return folder / "small"


def started_by(process: psutil.Process, folder: Path) -> bool:
    """Whatever the quickstart started inherits its environment; other work on this machine is
    nobody's business here.
    """
    try:
        return process.environ().get("VERSATUNE_TEST") == str(folder)
    except psutil.Error:
        return False


def folders() -> set[Path]:
    """What the quickstart makes for Ray's head (``mktemp``: six characters)."""
    return set(Path("/tmp").glob("versatune-??????"))


def test_detection_finds_the_known_mixture_and_keeps_every_sequence(run: Path) -> None:
    found = json.loads((run / "detection" / "tiny-base" / "distribution.json").read_text())
    # 300 sequences: by sampling alone the distance is about ½·Σ 0.8·sqrt(p(1-p)/300) = 0.05.
    assert found["total_variation"] <= 0.15
    assert np.isclose(sum(found["share"]), 1) and len(found["repeats"]) == 2
    table = pyarrow.dataset.dataset(run / "detection" / "tiny-base" / "samples").to_table()
    assert sorted(table["id"].to_pylist()) == list(range(300))
    judged = table.filter(table["discarded"].is_null())
    probabilities = np.stack([judged[name].to_numpy() for name in found["domains"]], axis=1)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert found["discarded"]["total"] == table.num_rows - judged.num_rows


def test_tuning_lowers_held_out_loss_in_every_domain_and_vllm_serves_the_result(run: Path) -> None:
    rows = json.loads((run / "evaluation" / "results.json").read_text())["results"]
    value = {(row["model"], row["domain"], row["metric"]): row["value"] for row in rows}
    domains = {row["domain"] for row in rows}
    assert len(domains) == 6
    assert all(value["tuned", name, "loss"] < value["base", name, "loss"] for name in domains)
    matches = [
        np.mean([value[model, name, "exact_match"] for name in domains])
        for model in ("base", "tuned")
    ]
    assert matches[1] > matches[0]


def test_the_run_leaves_the_files_that_are_promised(run: Path) -> None:
    for name in (
        "config.yaml",
        "data.json",
        "reference/losses.json",
        "finetune/adjustments.jsonl",
        "finetune/model/config.json",
        "report.html",
    ):
        assert (run / name).is_file(), name


def test_the_same_command_does_nothing_again(run: Path, folder: Path, ray_cluster: None) -> None:
    before = (run / "report.html").stat().st_mtime_ns
    said = pipeline(folder)
    assert "this run was finished before" in said
    assert "done in" not in said
    assert (run / "report.html").stat().st_mtime_ns == before


def test_other_settings_under_the_same_name_are_refused(run: Path, folder: Path) -> None:
    told = pipeline(folder, "mixture.sigma=3", status=2)
    assert "mixture.sigma: 1.0 → 3.0" in told and "run=" in told


def written(folder: Path) -> dict[Path, int]:
    """The files of generated sequences, each with its time of change."""
    files = (folder / ".cache" / "generated").rglob("*.parquet")
    return {file: file.stat().st_mtime_ns for file in files}


def test_a_study_replays_what_the_base_wrote_and_measures_on_the_same_records(
    run: Path, folder: Path, ray_cluster: None
) -> None:
    uniform = {"mixture.start": "uniform", "mixture.policy": "constant"}
    study = {
        "seeds": [0],
        "methods": {"plain": uniform, "replay": uniform | {"training.keep.replay.general": 0.5}},
        "baseline": "plain",
    }
    shorter = SETTINGS | {"run": "replay", "study": study, "storage": str(folder)}
    shorter["training"] = SETTINGS["training"] | {"epochs": 1, "keep": {"replay_samples": 300}}
    before = written(folder)
    call_job(shorter, "study.py", folder)
    assert before and written(folder) == before  # detection's sequences: none is written again
    trials = [folder / "replay" / "trials" / f"{name}-0" for name in ("plain", "replay")]
    plain, replayed = (json.loads((trial / "outcome.json").read_text()) for trial in trials)
    # what the base wrote trains and never measures
    assert replayed["before"] == plain["before"]
    assert replayed["after"] != plain["after"]
