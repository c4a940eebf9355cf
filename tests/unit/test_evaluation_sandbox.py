"""Programs of a model run with limits, and only their end counts."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import psutil
import pytest

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
