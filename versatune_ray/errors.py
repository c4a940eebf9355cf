"""The exceptions that mean something to a person: the input is wrong, or a part of the work could
not be done.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any, TypeVar

_T = TypeVar("_T")
_HIDDEN = "[redacted]"
# settings whose value is a secret; eos_token and max_tokens are none
_SECRET_NAME = re.compile(
    r"(?i)(?:.*[_-])?(?:api[_-]?key|secret|(?:secret|access|private)(?:[_-]access)?[_-]?key"
    r"(?:[_-]id)?|pass(?:word|wd|phrase)|credentials?|authorization)"
    r"|(?:(?:.*[_-])?(?:hf|hub|auth|access|api|bearer|session|security|refresh)[_-])?token"
)
_SECRET_TEXT = (
    (re.compile(r"(?i)\b(https?://)[^/\s@]+@"), r"\1"),
    # a port is no password, and hf://datasets/owner/name@revision has none
    (re.compile(r"(://[^/\s@:]*):(?!\d+(?:/|$))[^\s@]+@"), rf"\1:{_HIDDEN}@"),
    (
        re.compile(
            r"(?i)([?&;#][\w.-]*(?:sig|token|secret|passw|credential|key|auth)[\w.-]*=)"
            r"[^&\s\"'<>]+"
        ),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{_HIDDEN}"),
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|sk-(?=[\w-]*\d)[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}"
            r"|github_pat_\w{20,}|A[KS]IA[0-9A-Z]{16})"
        ),
        _HIDDEN,
    ),
)
# of a terminal, and of the direction of writing
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

# of a machine whose workers Ray has ended, in the midst of thousands of characters
_NO_MEMORY = re.compile(r"running low on memory\..*? was ([\d.]+GB used / [\d.]+GB limit)")


class UserError(Exception):
    """A mistake in configuration or data. Its message is one readable line: file, field, value, way
    out.

    Jobs print the line and exit with status 2; with ``--debug`` they show the traceback as well.
    """


class DiskFull(UserError):
    """Nothing more can be written. What is written stays, and the same command goes on from
    there.
    """


class Incomplete(Exception):
    """What could be done is done and kept; the message says what could not. Jobs print it and exit
    with status 1.
    """


def redacted(value: _T) -> _T:
    """``value`` as it may be shown and kept, in the same shape: without passwords in URLs, signed
    queries, keys by their usual form, and settings that are named as secrets.

    What it cannot know, such as a password in free text, it does not find.
    """
    found: Any = value
    if isinstance(value, str):
        for pattern, shown in _SECRET_TEXT:
            found = pattern.sub(shown, found)
    elif isinstance(value, Mapping):
        found = {
            key: _HIDDEN
            if isinstance(one, str) and one and _SECRET_NAME.fullmatch(str(key))
            else redacted(one)
            for key, one in value.items()
        }
    elif isinstance(value, list | tuple) and type(value) in (list, tuple):
        found = type(value)(map(redacted, value))
    return found  # type: ignore[no-any-return]


def printable(text: str) -> str:
    """``text`` with its control characters spelt out, but for tab and line feed: what an endpoint
    or a file says must not steer a terminal.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def root_cause(error: BaseException) -> BaseException:
    """What went wrong in the first place: Ray wraps it once per worker that it passes through."""
    while True:
        wrapped = getattr(error, "cause", None)  # by Ray, whose classes may be those of the cause
        if wrapped is None and isinstance(error, UserError | Incomplete):
            return error  # it says what a person should read, whatever it was raised from
        inner = (
            wrapped
            or error.__cause__
            or next(iter(getattr(error, "worker_failures", {}).values()), None)
        )
        # Ray Data hangs an empty SystemException below what it raises, to shorten the traceback.
        if (
            not isinstance(inner, BaseException)
            or inner is error
            or type(inner).__name__ == "SystemException"
        ):
            return error
        error = inner


def is_disk_full(error: BaseException) -> bool:
    cause = root_cause(error)
    full = (errno.ENOSPC, errno.EDQUOT)
    return (
        isinstance(cause, DiskFull)
        or (isinstance(cause, OSError) and cause.errno in full)
        # as libraries in Rust tell it, safetensors among them
        or any(f"(os error {number})" in str(cause) for number in full)
    )


def one_line(error: BaseException) -> str:
    """The cause in one line: the message of a mistake, the last line and the type of anything
    else. It is ``redacted`` and ``printable``.
    """
    return printable(redacted(_line(error)))


def _line(error: BaseException) -> str:
    cause = root_cause(error)
    if not isinstance(cause, UserError | Incomplete) and is_disk_full(cause):
        where = f" ({name})" if (name := getattr(cause, "filename", None)) else ""
        return (
            f"no space left on the disk{where}; free some, and the same command goes on from here"
        )
    if no_memory := _NO_MEMORY.search(str(cause)):
        return (
            f"a machine ran out of memory ({no_memory[1]}), and Ray ended what ran there; let less "
            f"run beside each other, or on larger machines, and the same command goes on from here"
        )
    lines = [
        line
        for line in str(cause).strip().splitlines()
        if line.strip() and "For further information" not in line
    ]
    if isinstance(cause, UserError | Incomplete):
        return lines[0] if lines else ""
    line = lines[-1].strip() if lines else type(cause).__name__
    kind = f"{type(cause).__name__}: "
    return line if line.startswith(kind) else kind + line
