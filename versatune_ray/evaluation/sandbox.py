"""Run a program that a model wrote: in a process of its own, without network, with little time and
memory, in a folder that goes with it.

That keeps accidents and simple mischief away. It is no wall against an attacker: the program runs
as the same user and sees the same files. For models that you do not trust, run the whole job in a
container.
"""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

# In the child, before the program: a namespace without any network device; the program's own limits
# come from ``_limits``.
_PRELUDE = """
import ctypes, os
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET):
    os._exit(97)
"""
_NO_NAMESPACE = 97


class Unsafe(Exception):
    """This machine cannot cut a process off its network."""


def passes(program: str, tests: str, seconds: float = 10.0, memory_mib: int = 1024) -> bool:
    """Whether ``program`` followed by ``tests`` runs to its end within the limits and without an
    exception.

    A program that ends early, by ``exit()`` for example, has not passed.

    Raises:
        Unsafe: the machine has no user namespaces to run it in.
    """
    word = secrets.token_hex(8)  # printed by what runs the program, once that has come to its end
    with tempfile.TemporaryDirectory(prefix="versatune-code-") as folder:
        file, printed = Path(folder) / "program.py", Path(folder) / "printed"
        file.write_text(f"{program}\n{tests}\n", encoding="utf-8", errors="replace")
        runner = (
            f"{_PRELUDE}\nimport runpy, sys\nrunpy.run_path({str(file)!r}, "
            f"run_name='__main__')\nprint('\\n{word}', file=sys.__stdout__)\n"
        )
        # a file, whose size is limited, and not a pipe into our own memory
        with printed.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", runner],
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=lambda: _limits(seconds, memory_mib),
            )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started goes with it
            process.wait()
        if status == _NO_NAMESPACE:
            raise Unsafe(
                "this machine lets no process leave its network (user namespaces are off), so code "
                "of a model is not run on it"
            )
        return status == 0 and printed.read_bytes().rstrip().endswith(word.encode())


def _limits(seconds: float, memory_mib: int) -> None:
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_AS: memory_mib << 20,
        resource.RLIMIT_FSIZE: 16 << 20,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))
