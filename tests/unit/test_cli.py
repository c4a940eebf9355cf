"""What a person sees: help, one-line errors, exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, call_script

from versatune_ray.runtime.progress import State, line


def job(name: str, *arguments: str, cwd: Path = ROOT) -> tuple[int, str, str]:
    """Status, what was printed, errors."""
    return call_script([str(ROOT / "jobs" / f"{name}.py"), *arguments], cwd)


def test_a_typo_is_one_line_and_status_2_and_starts_nothing(tmp_path: Path) -> None:
    """As a user starts it: nothing but the line, nothing left behind."""
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), "training.epoch=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: training.epoch: unknown key; did you mean 'training.epochs'?\n"
    assert not list(tmp_path.iterdir())


def test_debug_adds_the_traceback() -> None:
    _, _, errors = job("pipeline", "training.epoch=3", "--debug")
    assert "Traceback" in errors and errors.endswith("did you mean 'training.epochs'?\n")


def test_a_wrong_target_is_told_before_ray_starts(tmp_path: Path) -> None:
    status, printed, errors = job(
        "finetune", "mixture.policy=expansion", "mixture.targets=medicin", f"storage={tmp_path}"
    )
    assert (status, printed) == (2, "")
    assert "unknown domain 'medicin'; valid: law, medicine" in errors


@pytest.mark.parametrize(
    "name", ["detect", "reference", "finetune", "pipeline", "make_base", "cofitune"]
)
def test_every_job_explains_itself(name: str) -> None:
    status, printed, _ = job(name, "--help")
    assert status == 0
    assert "--keys" in printed and "key=value" in printed and len(printed.splitlines()) <= 40


def test_print_config_prints_what_can_be_loaded() -> None:
    status, printed, _ = job("pipeline", "--print-config", "training.epochs=7")
    assert status == 0 and "epochs: 7.0" in printed


def test_a_progress_line_tells_share_rate_and_time_left() -> None:
    # 50 of 200 after 10 s from 0: 25 %, 5 per second, 150 / 5 = 30 s left.
    shown = line("fine-tuning", State(50, 200, "step", "loss 1.5"), seconds=10, moved=50)
    assert (
        shown
        == "[fine-tuning] ━━━━━───────────────  25 %  50/200 steps  5.0/s  0:30 left  loss 1.5"
    )
