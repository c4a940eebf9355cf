"""Programs of a model run with limits, and only their end counts."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import psutil
import pytest
from processes import patience

from versatune_ray.evaluation import jail, sandbox
from versatune_ray.evaluation.sandbox import Unsafe, passes

try:
    passes("", "")
except Unsafe as unsafe:  # a container without user namespaces
    pytest.skip(str(unsafe), allow_module_level=True)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("def f(x): return x + 1", True),
        ("def f(x): return x", False),
        ("def f(x) return x", False),
        ("import sys; sys.exit(0)", False),
        ("import os; os._exit(0)", False),
        ("print('x' * 10); def_ = 1\ndef f(x): return 2", True),
        ("x = ' ' * (3 << 30)\ndef f(x): return 2", False),
        ("open('x', 'w').write('y' * (64 << 20))\ndef f(x): return 2", False),
        ("while True: print('x' * 1000)", False),
        ("def f(x): return 2  # \ud800", True),
    ],
)
def test_only_a_program_that_comes_to_its_end_passes(program: str, expected: bool) -> None:
    assert passes(program, "assert f(1) == 2", seconds=5) is expected


def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = (
            f"import socket\nsocket.create_connection(('127.0.0.1', {server.getsockname()[1]}), "
            f"timeout=3)"
        )
        with socket.create_connection(server.getsockname(), timeout=3):
            pass  # from here it can be reached
        assert not passes(program, "")


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    program = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; "
        f"time.sleep(60)  # {tmp_path.name}'])"
    )
    began = time.monotonic()
    assert not passes(program, "", seconds=2)
    assert time.monotonic() - began < 20
    assert not [
        one
        for one in psutil.process_iter(["cmdline"])
        if tmp_path.name in " ".join(one.info["cmdline"] or [])
    ]


def survivors() -> list[int]:
    return [
        one.pid
        for one in psutil.process_iter(["cmdline"])
        if jail.__file__ in (one.info["cmdline"] or [])
    ]


def test_a_fork_bomb_is_ended_at_once() -> None:
    began = time.monotonic()
    assert not passes("import os\nwhile True: os.fork()", "", seconds=30)
    # well before its time is over, on a busy machine too
    assert time.monotonic() - began < min(patience(10), 25) and not survivors()


def test_a_daemon_does_not_outlive_the_program() -> None:
    daemon = """
import os, time
if not os.fork():
    os.setsid()
    if not os.fork():
        time.sleep(60)
    os._exit(0)
os.wait()
"""
    assert passes(daemon, "") and not survivors()


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    places = [tmp_path, Path.home(), Path.cwd(), Path("/var/tmp"), Path("/dev/shm"), Path("/run")]
    program = f"""
import pathlib
for place in {[str(place / "vt-escape") for place in places]}:
    try:
        pathlib.Path(place).write_text("x")  # in its own /tmp it may
    except OSError:
        pass
open("/tmp/own", "w").write("this folder is its own")
"""
    assert passes(program, "")
    assert not [place for place in places if (place / "vt-escape").exists()]
    assert not Path("/tmp/own").exists()


def test_the_environment_of_others_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VT_SECRET", "of the job")
    program = """
import glob, os
assert "VT_SECRET" not in os.environ
for file in glob.glob("/proc/*/environ"):
    try:
        assert b"of the job" not in open(file, "rb").read()
    except OSError:
        pass
assert len(glob.glob("/proc/[0-9]*")) <= 2
"""
    assert passes(program, "")


def test_sockets_of_others_cannot_be_reached(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
        named.bind(str(tmp_path / "s"))
        abstract.bind("\0vt-escape")
        named.listen()
        abstract.listen()
        program = f"""
import socket
for name in ({str(tmp_path / "s")!r}, "\\0vt-escape"):
    try:
        socket.socket(socket.AF_UNIX).connect(name)
    except OSError:
        continue
    raise SystemExit
"""
        assert passes(program, "")


@pytest.mark.parametrize(
    "source",
    ["''.join(sys.argv)", "'passed'", *(f"read('/proc/{who}')" for who in ("self", "1"))],
)
def test_the_word_of_success_cannot_be_read_where_programs_look(source: str) -> None:
    program = f"""
import os, re, sys
def read(folder):
    text = ""
    for name in ("cmdline", "environ", "comm", "fd/0", "mem"):
        try:
            text += open(folder + "/" + name, "rb").read(1 << 20).decode("latin-1")
        except OSError:
            pass
    return text
text = {source}
for word in re.findall("[0-9a-f]{{32}}", text) or [text[:32]]:
    for descriptor in range(64):
        try:
            os.write(descriptor, word.encode())
        except OSError:
            pass
os._exit(0)
"""
    assert not passes(program, "")


@pytest.mark.parametrize(
    "end",
    [
        "import os; os.abort()",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit, os; atexit.register(os._exit, 0); raise SystemExit(0)",
        "raise KeyboardInterrupt",
        "import sys; sys.excepthook = lambda *_: None; assert False",
        "import os\nif os.fork(): os._exit(0)",
    ],
)
def test_no_way_to_end_early_counts_as_success(end: str) -> None:
    assert not passes(end, "assert True")


def test_huge_output_costs_nothing() -> None:
    assert passes("for _ in range(300): print('x' * (1 << 20))", "")


def test_signals_reach_nobody_else() -> None:
    program = """
import os, signal
assert os.getppid() == 1
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT):
    for process in (1, os.getppid(), -1):
        try:
            os.kill(process, number)
        except (PermissionError, ProcessLookupError):
            pass
"""
    assert passes(program, "")
    assert not passes("import os\nos.killpg(0, 9)", "")


def test_sleeping_for_ever_is_ended() -> None:
    program = """
import signal, time
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except OSError:
        pass
while True:
    time.sleep(1e6)
"""
    began = time.monotonic()
    assert not passes(program, "", seconds=1)
    assert time.monotonic() - began < 8 and not survivors()


def test_memory_is_that_of_all_processes_together() -> None:
    program = """
import os, time
for _ in range(8):
    if not os.fork():
        kept = bytearray(100 << 20)
        time.sleep(60)
time.sleep(SECONDS)
"""
    few = program.replace("range(8)", "range(1)").replace("SECONDS", "0.5")
    began = time.monotonic()
    assert not passes(program.replace("SECONDS", "30"), "", seconds=40, memory_mib=400)
    assert time.monotonic() - began < min(patience(15), 28) and not survivors()
    assert passes(few, "", memory_mib=400)


def test_modules_put_in_the_place_of_others_are_there_for_this_program_alone() -> None:
    program = """
import builtins, os, sys, types
open("colorsys.py", "w").write("stub = True")
sys.path.insert(0, os.getcwd())
import colorsys
assert colorsys.stub
os.write = os.getpid = os._exit = builtins.compile = lambda *_: 0
sys.modules["os"] = types.ModuleType("os")
"""
    assert passes(program, "")
    assert not passes(program, "assert False")
    assert passes("import colorsys, os\nassert not hasattr(colorsys, 'stub')", "os.getcwd()")


def test_there_are_no_privileges_to_undo_the_walls() -> None:
    program = """
import ctypes
libc = ctypes.CDLL(None)
assert libc.umount2(b"/proc", 2) and libc.mount(b"none", b"/var", b"tmpfs", 0, b"")
assert libc.mount(None, b"/", None, 32, b"")  # writable again
if not libc.unshare(0x10000000 | 0x00020000):
    assert libc.umount2(b"/tmp", 2) and libc.umount2(b"/proc", 2)
    assert libc.mount(None, b"/", None, 32, b"")
"""
    assert passes(program, "")


def test_a_machine_without_namespaces_says_how_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
    monkeypatch.setattr(sandbox, "NO_NAMESPACE", 1)  # which is what false says
    with pytest.raises(Unsafe, match="Docker: --security-opt seccomp=unconfined") as caught:
        passes("", "")
    assert "\n" not in str(caught.value)
