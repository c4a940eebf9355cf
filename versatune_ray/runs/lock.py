"""That one job at a time works on a run whose storage several machines see: an owner's file,
renewed while the job lives.

No file system behind a URI has locks, so this protects from what happens, a second job while the
first one runs, and not from an attack or a machine that sleeps for minutes: a job that finds
another owner stops.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import uuid
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from versatune_ray.errors import UserError
from versatune_ray.runs.storage import clock, read_small, remove, write_small
from versatune_ray.settings.location import is_mirrored

_RENEW = 30.0  # seconds
_STALE = timedelta(seconds=4 * _RENEW)
# of two jobs that start at the same moment the later writer is the owner, once both have written
_SETTLE = 1.0


class Lease:
    """Holds ``{folder}/.owner.json`` in the storage, as a context manager; nothing where the
    storage is local.

    Its caller holds a lock on this machine's mirror, so an owner that worked in the same mirror has
    died.

    Raises:
        UserError: on entry: a job on another machine works there.
    """

    def __init__(self, folder: Path):
        self._file, self._machine = folder / ".owner.json", folder.parent / ".machine"
        self._ended = threading.Event()
        self._lost: str | None = None

    def __enter__(self) -> Lease:
        if not is_mirrored(self._file):
            return self
        if not self._machine.is_file():
            self._machine.write_text(uuid.uuid4().hex)
        self._mine = {
            "token": uuid.uuid4().hex,
            "machine": self._machine.read_text(),
            "host": platform.node(),
            "pid": os.getpid(),
        }
        owner, now = self._owner(), clock(self._file.parent)
        if (
            owner is not None
            and owner[0]["machine"] != self._mine["machine"]
            and now - owner[1] < _STALE
        ):
            raise UserError(
                f"run {self._file.parent.name!r} is in use by {_name(owner[0])}; wait for it (a "
                f"job that died is taken over "
                f"{_STALE.seconds:.0f} s after its last sign of life), or choose another name with "
                f"run=…"
            )
        self._write()
        self._ended.wait(_SETTLE)
        self._look()
        self.hold()
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if is_mirrored(self._file) and self._lost is None:
            with suppress(*_failures()):
                remove(self._file)

    def hold(self) -> None:
        """Raises ``UserError`` if another job has taken the run over."""
        if self._lost is not None:
            raise UserError(
                f"run {self._file.parent.name!r} was taken over by {self._lost}; this job stops"
            )

    def _renew(self) -> None:
        while not self._ended.wait(_RENEW):
            with suppress(*_failures()):  # tried again
                self._look()
                if self._lost is not None:
                    return
                self._write()

    def _look(self) -> None:
        owner = self._owner()
        if owner is not None and owner[0]["token"] != self._mine["token"]:
            self._lost = _name(owner[0])

    def _owner(self) -> tuple[dict[str, Any], Any] | None:
        found = read_small(self._file)
        return None if found is None else (json.loads(found[0]), found[1])

    def _write(self) -> None:
        write_small(self._file, json.dumps(self._mine).encode())


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}"


def _failures() -> tuple[type[Exception], ...]:
    """What a storage behind a URI raises when it cannot be reached."""
    from pyarrow import ArrowException

    return OSError, ArrowException
