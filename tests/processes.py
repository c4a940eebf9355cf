"""Jobs and ranks in processes of their own or in this one, and a patience that grows with what else
the machine has to do.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
_UNIT = 0.11  # seconds that ``_work`` takes on an idle core of the machine these tests are paced on
_slowest = 1.0


def _work() -> float:
    began = time.perf_counter()
    sum(number * number % 7 for number in range(1_000_000))
    return time.perf_counter() - began


def patience(seconds: float) -> float:
    """``seconds`` of an idle machine, as many more as this one is slower or busier: measured now,
    and never less than at any time before in this session.
    """
    global _slowest
    _slowest = max(_slowest, _work() / _UNIT)
    return seconds * _slowest


def wait_until(there: Callable[[], Any], seconds: float, every: float = 0.05) -> bool:
    """Whether ``there()`` came true within ``patience(seconds)``."""
    end = time.monotonic() + patience(seconds)
    while time.monotonic() < end:
        if there():
            return True
        time.sleep(every)
    return False


def _command(
    job: Mapping[str, Any], script: str, folder: Path, overrides: Sequence[str]
) -> list[str]:
    (folder / "job.yaml").write_text(yaml.safe_dump(dict(job), sort_keys=False))
    named = "storage" in job or any(one.startswith("storage=") for one in overrides)
    given = [] if named else [f"storage={folder / 'runs'}"]
    return [str(ROOT / "jobs" / script), "--config", str(folder / "job.yaml"), *given, *overrides]


def call_job(
    job: Mapping[str, Any], script: str, folder: Path, *overrides: str, status: int = 0
) -> str:
    """``jobs/SCRIPT`` with the configuration ``job``, as ``start_job`` starts it, but in this
    process and on the Ray that is there; returns what it printed.
    """
    found, printed, errors = call_script(_command(job, script, folder, overrides), folder)
    assert found == status, printed + errors
    return printed + errors


def call_script(command: Sequence[str], folder: Path) -> tuple[int, str, str]:
    """``python FILE ARGUMENTS`` in ``folder``, in this process: its exit status, what it printed,
    and its errors.
    """
    handlers = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    printed, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", list(command))
        patch.chdir(folder)
        try:
            runpy.run_path(command[0], run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            for one, handler in handlers.items():
                signal.signal(one, handler)
    return status, printed.getvalue(), errors.getvalue()


def own_ray() -> dict[str, str]:
    """An environment in which a job starts a Ray of its own."""
    hidden = ("RAY_ADDRESS", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def start_job(
    job: Mapping[str, Any], script: str, folder: Path, *overrides: str, **environment: str
) -> subprocess.Popen[str]:
    """``jobs/SCRIPT`` with the configuration ``job``, in a process group of its own; its runs go to
    ``folder / "runs"`` if it names no storage.
    """
    return subprocess.Popen(
        [sys.executable, *_command(job, script, folder, overrides)],
        env=own_ray() | environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish_job(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for a job's end; returns what it printed."""
    try:
        printed, _ = process.communicate(timeout=patience(300))
    except subprocess.TimeoutExpired:
        process.terminate()  # or it would outlive the test
        raise
    assert process.returncode == status, printed
    return printed


def kill_job(process: subprocess.Popen[str], ready: Callable[[], bool]) -> str:
    """``kill -9`` a job with all it started, as soon as it is ``ready``; returns what it
    printed. The folder of its Ray, which it can no longer remove, goes too.
    """
    wait_until(lambda: process.poll() is not None or ready(), 200)
    command_lines = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                command_lines.append(" ".join(child.cmdline()))
    os.killpg(process.pid, signal.SIGKILL)
    printed, _ = process.communicate()
    for folder in set(re.findall(r"/\S*/versatune-ray-[^/\s]+", " ".join(command_lines))):
        shutil.rmtree(folder, ignore_errors=True)
    return printed


def start_ranks(
    function: Callable[..., int | None], *arguments: Any, log: Path, ranks: int = 2
) -> list[int]:
    """``function(*arguments)`` in as many processes as ranks, with torchrun's environment; returns
    their exit statuses. What they print goes to ``log``.

    They are forks of a process that has loaded what they need and done nothing else: torchrun would
    load it once for each, and a fork of this process, full of other tests' threads, once found its
    memory broken. As with torchrun, the first that fails ends the others, and the store under which
    they meet outlives them.
    """
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(ranks),
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["transformers.models.llama.modeling_llama", "versatune_ray.training.local"]
    )
    started = [
        context.Process(target=_rank, args=(function, arguments, environment, rank, log))
        for rank in range(ranks)
    ]
    for one in started:
        one.start()
    try:
        wait_until(
            lambda: any(one.exitcode for one in started) or not any(map(alive, started)), 200
        )
    finally:
        for one in started:
            one.terminate()
        for one in started:
            one.join(10)
            one.kill()
            one.join()
    return [one.exitcode or 0 for one in started]


def alive(process: Any) -> bool:
    return bool(process.is_alive())


def _rank(
    function: Callable[..., int | None],
    arguments: Sequence[Any],
    environment: Mapping[str, str],
    rank: int,
    log: Path,
) -> NoReturn:
    import torch

    status: int | None = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
        torch.set_num_threads(1)
        status = function(*arguments) or 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1 if status is None else status)  # threads of asynchronous saves may linger
