"""Loggers that are missing, hang, lag behind or are out of reach: no run waits for one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from watched_runs import NAMES, Broken, settings

from versatune_ray.errors import UserError
from versatune_ray.runs.folder import RunFolder
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.loading import changed_keys
from versatune_ray.training import loggers
from versatune_ray.training.loggers import Background, MetricLogger, Row


def test_one_name_is_a_list_of_one_and_a_resumed_run_may_change_it(tmp_path: Path) -> None:
    config = settings(tmp_path, tmp_path, "wandb")
    assert config.training.metrics == ["wandb"]
    assert Config().training.metrics == ["tensorboard"]
    other = settings(tmp_path, tmp_path, [])
    assert list(changed_keys(config, other))
    with RunFolder(config):
        (config.run_folder / "finetune").mkdir()
        (config.run_folder / "finetune" / "inputs.json").write_text("{}")
        (config.run_folder / "finetune" / "adjustments.jsonl").write_text('{"step": 0}\n')
    with RunFolder(other):
        pass
    with pytest.raises(UserError, match=r"training\.metrics.*'mail' is not valid"):
        settings(tmp_path, tmp_path, ["mail"])


def test_a_missing_package_is_told_before_training_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantics, "find_spec", lambda name: None)
    config = settings(tmp_path, tmp_path, ["tensorboard", "wandb"])
    with pytest.raises(
        UserError, match=r"^training\.metrics: wandb is not installed; pip install wandb$"
    ):
        semantics.check(config, NAMES)


def test_a_hanging_sink_does_not_hold_a_run_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "_PATIENCE", 0.05)
    release, told = threading.Event(), list[str]()

    class Hanging(Broken):
        def write(self, rows: Sequence[Row]) -> None:
            release.wait(20)

    logger = Background("slow", Hanging(), told.append)
    logger.put(Row(1, 0.0, {}))
    for _ in range(3):
        logger.flush()
    logger.close(failed=False)
    assert len(told) == 1
    assert "nothing written within 0.05 s" in told[0]
    release.set()


def test_flush_waits_for_what_was_put_before() -> None:
    seen: list[int] = []

    class Slow:
        def write(self, rows: Sequence[Row]) -> None:
            seen.extend(row.step for row in rows)

        def close(self, failed: bool) -> None:
            seen.append(-int(failed))

    logger = Background("slow", Slow(), pytest.fail)
    for step in range(1, 50):
        logger.put(Row(step, 0.0, {}))
        logger.flush()
        assert seen == list(range(1, step + 1))
    logger.close(failed=True)
    assert seen[-1] == -1


def test_trackers_know_a_run_that_goes_on_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from versatune_ray.training.loop import _send

    (tmp_path / "remote").mkdir()
    monkeypatch.setitem(loggers._OPEN, "wandb", lambda *given: loggers._identity(*given[:2]))

    def begin(machine: str) -> tuple[Any, Path]:
        monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / machine))
        config = settings(tmp_path, tmp_path, "wandb")
        config = config.model_copy(update={"storage": f"file://{tmp_path}/remote"})
        folder = config.run_folder / "finetune"
        with RunFolder(config):  # removes what the storage has not
            folder.mkdir(exist_ok=True)
        return loggers.open_loggers(config, folder, 0, pytest.fail)["wandb"], folder

    identity, folder = begin("one")
    (folder / loggers.MLFLOW_DB).write_text("rows")
    _send(SimpleNamespace(folder=folder), loggers.MLFLOW_DB)  # type: ignore[arg-type]
    for machine in ("one", "other"):
        again, folder = begin(machine)
        assert again == identity and (folder / loggers.MLFLOW_DB).read_text() == "rows"


def test_a_tracker_out_of_reach_stops_a_fresh_run_but_not_one_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any) -> MetricLogger:
        raise ConnectionError("no answer")

    monkeypatch.setitem(loggers._OPEN, "mlflow", unreachable)
    config, told = settings(tmp_path, tmp_path, ["mlflow", "tensorboard"]), list[str]()
    with pytest.raises(UserError, match=r"training\.metrics: mlflow: ConnectionError: no answer"):
        loggers.open_loggers(config, tmp_path, 0, told.append)
    assert list(loggers.open_loggers(config, tmp_path, 8, told.append)) == ["tensorboard"]
    assert told == [
        "training.metrics: mlflow: ConnectionError: no answer; training goes on without it"
    ]


def test_wandb_takes_its_key_from_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WANDB_API_KEY is not in the environment"):
        loggers.open_loggers(settings(tmp_path, tmp_path, "wandb"), tmp_path, 0, print)
