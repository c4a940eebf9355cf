"""A run's folder: the time of its steps, and what may change when it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from versatune_ray.errors import UserError
from versatune_ray.runs import folder as run_folder
from versatune_ray.runs.folder import RunFolder, Step, check_unchanged
from versatune_ray.settings.loading import load


def test_the_time_of_a_step_is_kept_and_that_of_one_in_parts_is_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_run_is_finished_once_its_job_is_whatever_job_it_was(tmp_path: Path) -> None:
    def finished() -> bool:
        timings = json.loads((tmp_path / "mine" / "timings.json").read_text())
        return timings["finished"] is not None

    run = load([], [f"storage={tmp_path}", "run=mine"])
    with pytest.raises(KeyboardInterrupt), RunFolder(run) as folder:
        folder.step("references", lambda: Step(None, False))
        raise KeyboardInterrupt
    assert not finished()
    with RunFolder(run) as folder:
        folder.step("references", lambda: Step(None, True))
        folder.step("fine-tuning", lambda: Step(None, False))
        assert not finished()
    assert finished()


@pytest.mark.parametrize(
    ("begun", "change", "refused"),
    [
        (["mixture.start=uniform", "mixture.policy=constant"], "detection.samples=9", False),
        (["mixture.start=detected", "mixture.policy=constant"], "detection.samples=9", True),
        (
            ["mixture.start=uniform", "mixture.policy=constant"],
            "reference.losses=losses.json",
            False,
        ),
        (
            ["mixture.start=uniform", "mixture.policy=versatune"],
            "reference.losses=losses.json",
            True,
        ),
        (["mixture.start=uniform", "mixture.policy=constant"], "training.epochs=9", True),
    ],
)
def test_a_run_goes_on_with_the_settings_that_its_training_uses(
    tmp_path: Path, begun: list[str], change: str, refused: bool
) -> None:
    begun = [f"storage={tmp_path}", *begun]
    with RunFolder(load([], begun)) as folder:
        folder.write("finetune/inputs.json", {})
        (folder.path / "finetune" / "adjustments.jsonl").write_text('{"step": 0}\n')
    if refused:
        with pytest.raises(
            UserError, match=rf"was begun with other settings \({change.partition('=')[0]}: "
        ):
            check_unchanged(load([], [*begun, change]))
    else:
        check_unchanged(load([], [*begun, change]))
