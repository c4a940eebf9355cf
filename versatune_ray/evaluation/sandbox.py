"""Run a program that a model wrote: among no other processes, without network, with an empty folder
to write to, and with bounds on the time, memory and processes of all that it starts.

What holds: nothing of it lives on after its end, it writes nowhere, reaches no process, socket or
environment of others, and takes no more than its bounds (they are looked at a hundred times a
second, so for a moment it may take more). What does not: it can read files that everyone may read,
though it has nobody to tell; and since a program shares its process with its tests, one that knows
this sandbox can claim to have passed. For models that want to attack the kernel, run the whole job
in a virtual machine.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from versatune_ray.evaluation.jail import NO_NAMESPACE

_PROCESSES = 16  # threads and children, of a program at once
_GRACE = 10.0  # seconds to start and to clear away


class Unsafe(Exception):
    """This machine cannot keep a process apart."""


def passes(program: str, tests: str, seconds: float = 10.0, memory_mib: int = 1024) -> bool:
    """Whether ``program`` followed by ``tests`` runs to its end within the limits and without an
    exception.

    A program that ends early, by ``exit()`` for example, has not passed.

    Raises:
        Unsafe: the machine has no user namespaces to run it in; it says how to get them.
    """
    word = secrets.token_hex(16)
    said: bytes | None = None
    result, inside = os.pipe()
    asked = {
        "program": f"{program}\n{tests}\n".encode("utf-8", "replace").decode(),
        "word": word,
        "result": inside,
        "seconds": seconds,
        "memory": memory_mib << 20,
        "processes": _PROCESSES,
        "home": str(Path.home()),
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("jail.py"))],
            cwd="/",
            env={"PATH": os.defpath, "HOME": "/tmp", "TMPDIR": "/tmp", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(inside,),
        )
    finally:
        os.close(inside)
    try:
        with suppress(subprocess.TimeoutExpired, BrokenPipeError):
            # neither in the arguments nor in a file
            process.communicate(json.dumps(asked).encode(), timeout=seconds + _GRACE)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # all inside goes with it
        process.wait()
        os.set_blocking(result, False)
        with open(result, "rb", buffering=0) as pipe:  # noqa: PTH123
            said = pipe.read(len(word) + 1)
    if process.returncode == NO_NAMESPACE:
        raise Unsafe(
            "this machine lets no process into namespaces of its own, so code of a model is not "
            "run on it; Docker: --security-opt seccomp=unconfined --security-opt "
            "apparmor=unconfined; Kubernetes: a seccompProfile of type Unconfined; Ubuntu: sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0"
        )
    return said == word.encode()
