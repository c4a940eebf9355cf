"""A run's folder: the time of its steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from versatune_ray import run_folder
from versatune_ray.config import load
from versatune_ray.run_folder import RunFolder, Step


def test_the_time_of_a_step_is_kept_and_that_of_one_in_parts_is_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 5, 10, 11, 20, 27, 30, 33])  # began, ended: 5, 1, 7 and 3 seconds
    with RunFolder(load([], [f"storage={tmp_path}"])) as folder:
        monkeypatch.setattr(run_folder.time, "monotonic", lambda: next(clock))
        folder.step("references", lambda: Step(None, False))
        folder.step("references", lambda: Step(None, True))
        folder.step("trials", lambda: Step(None, False), more=True)
        assert folder.step("trials", lambda: Step("all", False), more=True) == "all"
        monkeypatch.undo()
        steps = json.loads((folder.path / "timings.json").read_text())["steps"]
    assert {step["name"]: step["seconds"] for step in steps} == {"references": 5, "trials": 10}
