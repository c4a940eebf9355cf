"""The exceptions that mean something to a person: the input is wrong, or a part of the work could
not be done.
"""

from __future__ import annotations

import errno


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


def root_cause(error: BaseException) -> BaseException:
    """What went wrong in the first place: Ray wraps it once per worker that it passes through."""
    while True:
        inner = (
            getattr(error, "cause", None)
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
    return isinstance(cause, DiskFull) or (
        isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    )


def one_line(error: BaseException) -> str:
    """The cause in one line: the message of a mistake, the last line and the type of anything
    else.
    """
    cause = root_cause(error)
    if isinstance(cause, OSError) and is_disk_full(cause):
        where = f" ({name})" if (name := getattr(cause, "filename", None)) else ""
        return (
            f"no space left on the disk{where}; free some, and the same command goes on from here"
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
