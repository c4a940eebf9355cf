"""Starting Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import ray

from versatune_ray.errors import UserError
from versatune_ray.runtime import installation
from versatune_ray.runtime.cluster import connect, without_own_echo


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("The current node timed out during startup.", UserError, "run the same command again"),
        ("System error: Failed to connect to GCS.", UserError, "run the same command again"),
        ("No space left.", OSError, "No space left"),
    ],
)
def test_a_machine_too_busy_for_ray_is_told_in_one_line(
    said: str, kind: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def stand_in(*_: object, _temp_dir: str, **__: Any) -> None:
        waits = [sys.executable, "-c", "import time; time.sleep(600)", f"--log_dir={_temp_dir}"]
        started.append(subprocess.Popen(waits))
        raise OSError(said)

    monkeypatch.setattr(ray, "init", stand_in)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    # connect sets them: back afterwards
    for name in ("TMPDIR", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    try:
        with pytest.raises(kind, match=told):
            connect()
        if kind is UserError:  # Ray leaves what it started
            assert len(started) == 3
            assert [one.wait(10) for one in started] == [-signal.SIGKILL] * 3
    finally:
        for one in started:
            one.kill()
            one.wait()


def test_rays_echo_of_its_log_level_is_left_out_and_nothing_else(
    capfd: pytest.CaptureFixture[str],
) -> None:
    echo = "[2026-11-29 22:50:03,822 I 2349 2349] logging.cc:303: Set ray log level from "
    with pytest.raises(RuntimeError), without_own_echo():
        os.write(2, f"before\n{echo}environment variable RAY_BACKEND_LOG_LEVEL to 3\n".encode())
        os.write(2, b"E raylet: no space left\n")
        raise RuntimeError
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "before\nE raylet: no space left\nafter\n"


@pytest.mark.parametrize(
    ("torch", "vision", "told"),
    [
        ("2.13.0+cpu", "0.28.0", True),
        ("2.13.0+cpu", "0.28.0+cpu", False),
        ("2.13.0", "0.28.0", False),
    ],
)
def test_a_torchvision_of_another_build_is_told_before_it_breaks_transformers(
    torch: str, vision: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"torch": torch, "torchvision": vision}
    monkeypatch.setattr(installation, "version", there.__getitem__)
    if told:
        with pytest.raises(UserError, match=r"pip uninstall --yes torchvision"):
            installation.check_installation()
    else:
        installation.check_installation()


def test_the_number_of_workers_is_no_news_and_all_else_of_a_raylet_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ray._private import worker

    from versatune_ray.runtime.private_ray import without_count_of_workers

    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(
        worker, "print_to_stdstream", lambda data, ignore_prefix: shown.append(data)
    )
    without_count_of_workers()
    told = {"pid": "raylet", "is_err": False}
    many = (
        "WARNING: 8 PYTHON worker processes have been started on node: x, which is 4x the maximum"
    )
    worker.print_to_stdstream(told | {"lines": [many]}, ignore_prefix=False)
    worker.print_to_stdstream(told | {"lines": [many, "killed for memory"]}, ignore_prefix=False)
    assert shown == [told | {"lines": ["killed for memory"]}]
