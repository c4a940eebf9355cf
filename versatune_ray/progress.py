"""Progress bars that Ray's workers draw on the driver's terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Any


class Bar:
    """A named bar of ``total`` units, usable in a driver, a task or an actor; Ray gathers them on the driver."""

    def __init__(self, name: str, total: int, unit: str = "it"):
        from ray.experimental import tqdm_ray

        self._name = name
        self._bar: Any = tqdm_ray.tqdm(desc=name, total=total, unit=unit)

    def to(self, done: int, note: str = "", total: int | None = None) -> None:
        """Move to ``done``; ``note`` is shown beside the name; ``total`` is set where it was not known before."""
        if total is not None:
            self._bar.total = total
        if note:
            self._bar.set_description(f"{self._name} · {note}")
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.refresh()
        self._bar.close()
