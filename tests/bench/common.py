"""What the benches share: the JSON line, sides as processes of their own, a watch over their
processes, a Ray to throw away.

A bench is one file with two roles. Run by hand it is the parent: it starts each side as ``python
NAME.py --side SIDE ARGUMENTS``, one after another, each with a temporary folder of its own that is
removed, and prints the JSON line. A side ends with ``answer``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

_ANSWER = "answer of this side: "

# ------------------------------------------------------------------------------------ the JSON line


def report(
    name: str,
    ratios: Sequence[float],
    goal: float,
    detail: Mapping[str, Any],
    *,
    lower: bool = False,
) -> None:
    """Print the figure: the median of ``ratios``, held against ``goal`` (``lower``: it is to stay
    below).
    """
    ratio = statistics.median(ratios)
    holds = ratio <= goal if lower else ratio >= goal
    figure = {
        "name": name,
        "ratio": round(ratio, 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "goal": goal,
        "holds": holds,
        "detail": dict(detail),
    }
    print(json.dumps(figure), flush=True)


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Where and beside what this was measured."""
    return {"cores": os.cpu_count(), "load_average": [round(load, 1) for load in os.getloadavg()]}


# ------------------------------------------------------------------------------- sides as processes


def run(
    doc: str | None,
    parent: Callable[[bool], None],
    sides: Mapping[str, Callable[[dict[str, Any]], Any]],
) -> None:
    """The command line of a bench: the parent, or with ``--side`` the one that it started."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs")
    parser.add_argument("--side", nargs=2, metavar=("SIDE", "ARGUMENTS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    # so that what is cleaned up on the way out is
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if given.side:
        name, arguments = given.side
        print(_ANSWER + json.dumps(sides[name](json.loads(arguments))), flush=True)
    else:
        parent(given.quick)


class Watch:
    """Samples a process and all its descendants: resident memory, CPU seconds, what each is."""

    def __init__(self, root: int, every: float):
        self._root, self._every, self._stop = root, every, threading.Event()
        self.kind: dict[int, str] = {}
        self.peak: dict[int, int] = {}  # bytes
        self.shared: dict[int, int] = {}  # bytes, most
        self.resident: dict[int, list[int]] = {}  # bytes, of every sample
        # wall clock, CPU seconds so far per process
        self.times: list[tuple[float, dict[int, float]]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            with suppress(psutil.Error):
                self._look()

    def _look(self) -> None:
        root, cpu = psutil.Process(self._root), {}
        for process in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                memory, times = process.memory_info(), process.cpu_times()
                pid = process.pid
                self.kind[pid] = _kind(process, pid == self._root, self.kind.get(pid, ""))
                self.peak[pid] = max(self.peak.get(pid, 0), memory.rss)
                self.resident.setdefault(pid, []).append(memory.rss)
                self.shared[pid] = max(self.shared.get(pid, 0), memory.shared)
                cpu[pid] = times.user + times.system
        self.times.append((time.time(), cpu))

    def peaks(self) -> dict[str, int]:
        """Per kind, the most resident memory of one process, bytes."""
        most: dict[str, int] = {}
        for pid, peak in self.peak.items():
            most[self.kind[pid]] = max(most.get(self.kind[pid], 0), peak)
        return most

    def cpu(self, begin: float, end: float) -> dict[str, float]:
        """Per kind, CPU seconds between two moments of the wall clock."""
        spent: dict[int, list[float]] = {}
        for moment, cpu in self.times:
            if begin - self._every <= moment <= end + self._every:
                for pid, seconds in cpu.items():
                    first = spent.setdefault(pid, [seconds, seconds])
                    first[1] = seconds
        total: dict[str, float] = {}
        for pid, (first, last) in spent.items():
            total[self.kind[pid]] = total.get(self.kind[pid], 0.0) + last - first
        return total


_KINDS = (
    "other",
    "daemons of Ray",
    "idle worker",
    "other actors of Ray",
    "raylet",
    "map tasks",
    "engine actor",
    "engine core",
    "engine worker",
    "driver",
)


def _kind(process: psutil.Process, is_root: bool, before: str) -> str:
    """The most telling that the process ever was: an engine begins as any Python, and a worker of
    Ray idles between tasks.
    """
    now = "driver" if is_root else _title(" ".join(process.cmdline()), process.name())
    return max(now, before or now, key=_KINDS.index)


def _title(title: str, name: str) -> str:
    if "VLLM::" in title:
        return "engine core" if "EngineCore" in title else "engine worker"
    if title.startswith("ray::"):
        if any(word in title for word in ("MapWorker", "vLLM", "StandIn")):
            return "engine actor"
        if "IDLE" in title:
            return "idle worker"
        if any(word in title for word in ("Agent", "agent")):
            return "daemons of Ray"
        return "map tasks" if "Map" in title or "Read" in title else "other actors of Ray"
    if name == "raylet":
        return "raylet"
    return (
        "daemons of Ray"
        if any(word in title for word in ("gcs_server", "dashboard", "agent", "ray/_private"))
        else "other"
    )


def side(
    script: str, name: str, arguments: Mapping[str, Any], timeout: float, every: float = 0.5
) -> tuple[Any, Watch]:
    """Run one side in its own process and temporary folder; returns what it answered and the watch
    over it.

    Raises:
        RuntimeError: it failed or took longer than ``timeout`` seconds; its last lines are in the
            message.
    """
    scratch = tempfile.mkdtemp(prefix="vtb")  # short: Ray's sockets live in it
    environment = dict(os.environ) | {"TMPDIR": scratch, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, script, "--side", name, json.dumps(arguments)]
    try:
        with (Path(scratch) / "output").open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
            family = [psutil.Process(process.pid)]
            with Watch(process.pid, every) as watch:
                try:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(timeout)
                finally:
                    if process.poll() is None:
                        family += family[0].children(recursive=True)
                    for member in reversed(family):
                        with suppress(psutil.NoSuchProcess):
                            member.kill()
                    process.wait()
            output.seek(0)
            lines = output.read().splitlines()
        answers = [line for line in lines if line.startswith(_ANSWER)]
        if not answers:
            raise RuntimeError(
                f"{Path(script).name} {name}: exit code {process.returncode}\n"
                + "\n".join(lines[-30:])
            )
        return json.loads(answers[-1].removeprefix(_ANSWER)), watch
    finally:
        _remove(Path(scratch))


class Player:
    """A side that lives through all rounds and takes turns with others, so that they can alternate
    every second or so.

    It is ready once its function has called ``hand_over`` for the first time; each ``turn`` lets it
    work until it does so again.
    """

    def __init__(self, script: str, name: str, arguments: Mapping[str, Any], timeout: float = 600):
        self.name, self._timeout = f"{Path(script).name} {name}", timeout
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed at the end
        command = [sys.executable, script, "--side", name, json.dumps(arguments)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=dict(os.environ) | {"PYTHONUNBUFFERED": "1"},
        )
        self.ready = self._answer()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def turn(self) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        late = threading.Timer(self._timeout, self._process.kill)
        late.start()
        try:
            for line in self._process.stdout:
                if line.startswith(_ANSWER):
                    return json.loads(line.removeprefix(_ANSWER))
        finally:
            late.cancel()
        self._errors.seek(0)
        shown = "".join(self._errors.readlines()[-30:])
        self.__exit__()
        raise RuntimeError(f"{self.name}: ended, or took longer than {self._timeout:g} s\n{shown}")


def hand_over(figures: Any = None) -> None:
    """Called by a side: tell the figures of this turn and wait for the next one; does not return
    after the last.
    """
    print(_ANSWER + json.dumps(figures), flush=True)
    if not sys.stdin.readline():
        raise SystemExit


def _remove(folder: Path) -> None:
    """Ray's processes outlive the driver by a moment and may still write."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.25)


# ---------------------------------------------------------------------------------------------- Ray


@contextmanager
def ray_session(cpus: int = 4) -> Iterator[None]:
    """A Ray of this process alone, in its temporary folder, as quiet as the jobs' own."""
    import ray

    environment = {"TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "ERROR"}
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        _temp_dir=tempfile.gettempdir(),
        runtime_env={"env_vars": environment},
        log_to_driver=False,
        logging_level="ERROR",
    )
    quiet()
    try:
        yield
    finally:
        ray.shutdown()


def quiet() -> None:
    import logging

    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
