"""The inside of ``sandbox``: started as a script with the standard library alone, it runs one
program in namespaces of its own.

Three processes: this one watches from outside what all of them take; the first inside (PID 1, with
whose end the kernel ends everything inside) sets the scene; its child runs the program, without
privileges.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

NO_NAMESPACE = 97
_NOBODY = 65534
_NEW_USER, _NEW_PID, _NEW_NET, _NEW_IPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
_NEW_MOUNTS = 0x00020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 1, 38
_LOOK = 0.01  # seconds between two looks at what is taken
_FILE, _FILES, _DISK = 8 << 20, 64, "64m"
# of sockets and files of others; the program's own folder is an empty /tmp
_HIDDEN = ("/var/tmp", "/run", "/var/run", "/dev/shm")
_HIDDEN_AT_HOME = (".ssh", ".aws", ".ray", ".config", ".cache/huggingface", ".docker", ".kube")

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Run what is asked on standard input: program, word, result (a descriptor), seconds, memory
    (bytes), processes, home. The word is written to the result once the program has come to its
    end.
    """
    asked = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.set_inheritable(asked["result"], False)
    _libc.prctl(_DEATH_SIGNAL, signal.SIGKILL)
    try:
        _enter()
    except OSError:
        return NO_NAMESPACE
    first = os.fork()
    if not first:
        _guarded(_first, asked)
    return _watch(first, asked)


def _enter() -> None:
    user, group = os.getuid(), os.getgid()
    _must(_libc.unshare(_NEW_USER | _NEW_PID | _NEW_NET | _NEW_IPC))
    Path("/proc/self/setgroups").write_text("deny")
    # not root, even inside: a program started there gets no privileges
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {group} 1")


def _watch(first: int, asked: dict[str, object]) -> int:
    """Wait for the end, and make it where time, memory or processes of all together run out."""
    ends = time.monotonic() + float(str(asked["seconds"]))
    while True:
        ended, status = os.waitpid(first, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        processes, taken = _taken(first)
        over = processes > int(str(asked["processes"])) or taken > int(str(asked["memory"]))
        if over or time.monotonic() > ends:
            os.kill(first, signal.SIGKILL)  # and with it all that are inside
            os.waitpid(first, 0)
            return 1
        time.sleep(_LOOK)


def _taken(first: int) -> tuple[int, int]:
    """Processes below ``first``, and bytes of memory of all; a daemon is below it, too."""
    waiting, processes, taken = [first], -1, 0
    while waiting:
        folder = f"/proc/{waiting.pop()}"
        processes += 1
        with suppress(OSError):
            with open(f"{folder}/status") as file:  # noqa: PTH123 - a hundred times a second
                for line in file:
                    if line.startswith(("RssAnon", "RssShmem", "VmSwap")):
                        taken += int(line.split()[1]) << 10
            for thread in os.listdir(f"{folder}/task"):  # noqa: PTH208
                with open(f"{folder}/task/{thread}/children") as file:  # noqa: PTH123
                    waiting += map(int, file.read().split())
    return processes, taken


def _first(asked: dict[str, object]) -> int:
    _libc.prctl(_DEATH_SIGNAL, signal.SIGKILL)
    try:
        _set_the_scene(Path(str(asked["home"])))
    except OSError:
        return NO_NAMESPACE
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the only one that Python handles
    program = os.fork()
    if not program:
        _guarded(_run, asked)
    while os.wait()[0] != program:
        pass
    return 0


def _set_the_scene(home: Path) -> None:
    """Everything read-only, nothing of others' in sight, and an empty folder to work in."""
    _must(_libc.unshare(_NEW_MOUNTS))
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    # Python itself may live where things get hidden, as Ray's environments do
    kept = {
        prefix: os.open(prefix, os.O_PATH)
        for prefix in {sys.prefix, sys.base_prefix}
        if Path(prefix).is_relative_to("/tmp") or Path(prefix).is_relative_to(home)
    }
    read_only = (ctypes.c_uint64 * 4)(_MS_RDONLY | _MS_NOSUID, 0, 0, 0)
    _must(
        _libc.syscall(
            _MOUNT_SETATTR,
            _AT_FDCWD,
            b"/",
            _AT_RECURSIVE,
            ctypes.byref(read_only),
            ctypes.c_size_t(32),
        )
    )
    for folder in (*map(Path, _HIDDEN), *(home / name for name in _HIDDEN_AT_HOME)):
        # what may not be looked at is hidden already
        if os.path.isdir(folder) and not folder.is_symlink():  # noqa: PTH112
            _mount("none", str(folder), "tmpfs", _MS_RDONLY, "size=4k")
    _mount("none", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={_DISK},nr_inodes=4096")
    for prefix, descriptor in kept.items():
        Path(prefix).mkdir(parents=True, exist_ok=True)
        _mount(f"/proc/self/fd/{descriptor}", prefix, None, _MS_BIND | _MS_REC)
        os.close(descriptor)
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    try:  # of what is inside alone
        _mount("proc", "/proc", "proc", flags)
    except OSError:  # containers forbid it
        _mount("none", "/proc", "tmpfs", flags, "size=4k")
    os.chdir("/tmp")


def _run(asked: dict[str, object]) -> int:
    """The program and its tests, in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    os.nice(10)  # what watches comes first
    memory, seconds = int(str(asked["memory"])), int(float(str(asked["seconds"]))) + 1
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, _FILE),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_NPROC, int(str(asked["processes"]))),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError):  # it is lower already
            resource.setrlimit(kind, (most, most))
    _must(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _must(_libc.capset(header, none))
    for stream in (1, 2):
        os.dup2(0, stream)
    result, word, me = int(str(asked["result"])), str(asked["word"]).encode(), os.getpid()
    code = compile(str(asked["program"]).encode(), "program.py", "exec")
    asked.clear()
    sys.argv = ["program.py"]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    write, getpid = os.write, os.getpid  # the program may put others in their place
    exec(code, module.__dict__)
    if getpid() == me:  # a fork comes to the program's end as well
        write(result, word)
    return 0


def _guarded(work: object, asked: dict[str, object]) -> None:
    """End this process with the status of ``work``, whatever happens in it."""
    status = 1
    try:
        status = work(asked)  # type: ignore[operator]
    finally:
        os._exit(status)


def _mount(what: str | None, where: str, kind: str | None, flags: int, more: str = "") -> None:
    texts = [None if text is None else text.encode() for text in (what, where, kind)]
    _must(_libc.mount(*texts, ctypes.c_ulong(flags), more.encode()))


def _must(status: int) -> None:
    if status:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    os._exit(main())
