"""What a person sees: help, one-line errors, exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from versatune_ray.runtime.progress import State, line


def job(name: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_a_typo_is_one_line_and_status_2_and_starts_nothing(tmp_path: Path) -> None:
    done = job("pipeline", "training.epoch=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: training.epoch: unknown key; did you mean 'training.epochs'?\n"
    assert not list(tmp_path.iterdir())


def test_debug_adds_the_traceback() -> None:
    done = job("pipeline", "training.epoch=3", "--debug")
    assert "Traceback" in done.stderr and done.stderr.endswith("did you mean 'training.epochs'?\n")


def test_a_wrong_target_is_told_before_ray_starts(tmp_path: Path) -> None:
    done = job(
        "finetune", "mixture.policy=expansion", "mixture.targets=medicin", f"storage={tmp_path}"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown domain 'medicin'; valid: law, medicine" in done.stderr


@pytest.mark.parametrize(
    "name", ["detect", "reference", "finetune", "pipeline", "make_base", "cofitune"]
)
def test_every_job_explains_itself(name: str) -> None:
    done = job(name, "--help")
    assert done.returncode == 0
    assert "training.learning_rate" in done.stdout and "key=value" in done.stdout


def test_print_config_prints_what_can_be_loaded() -> None:
    done = job("pipeline", "--print-config", "training.epochs=7")
    assert done.returncode == 0 and "epochs: 7.0" in done.stdout


def test_a_progress_line_tells_share_rate_and_time_left() -> None:
    # 50 of 200 after 10 s from 0: 25 %, 5 per second, 150 / 5 = 30 s left.
    shown = line("fine-tuning", State(50, 200, "step", "loss 1.5"), seconds=10, moved=50)
    assert (
        shown
        == "[fine-tuning] ━━━━━───────────────  25 %  50/200 steps  5.0/s  0:30 left  loss 1.5"
    )
