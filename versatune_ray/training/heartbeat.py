"""Which rank the others wait for: every rank says how far it is, and where one stands still, those
that wait name it.

Said before a watchdog ends the processes that wait, NCCL's for one, which leaves no exception to
name anybody in. No Ray here, nor torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

PULSE = 2.0  # seconds between two signs of life of a rank
_SILENT = 3 * PULSE  # after which a rank is taken for dead or frozen
_PATIENCE = 0.8  # of the time-out after which a watchdog would act


@dataclass(frozen=True)
class Sign:
    """When a rank last spoke (seconds of any one clock), and how far it was (see
    ``Trainer.reached``).
    """

    when: float
    reached: float


def held_up_by(signs: Mapping[int, Sign], now: float) -> list[int]:
    """Ranks that the others wait for: those furthest behind; or, where all are equally far,
    those that have fallen silent.

    How far they are comes first: after a watchdog has struck, the silent ranks are those that
    waited.
    """
    if not signs:
        return []
    last = min(sign.reached for sign in signs.values())
    behind = sorted(rank for rank, sign in signs.items() if sign.reached == last)
    if len(behind) < len(signs):
        return behind
    return sorted(rank for rank, sign in signs.items() if now - sign.when > _SILENT)


class Heartbeat:
    """A thread that says every ``PULSE`` seconds how far this rank is, as long as the context
    lasts.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        say: Callable[[float], None],
        missing: Callable[[], list[int]],
        warn: Callable[[str], None],
        timeout: float,
    ):
        """``say``: tells the others how far this rank is; ``missing``: see ``held_up_by``;
        ``timeout``: seconds until a watchdog would act.
        """
        self._rank, self._world, self._say, self._missing, self._warn = (
            rank,
            world,
            say,
            missing,
            warn,
        )
        self._patience = _PATIENCE * timeout
        self.reached: Callable[[], float] | None = None  # from when this is set
        self._last, self._since, self._told = -1.0, 0.0, False
        self._ended = threading.Event()

    def __enter__(self) -> Heartbeat:
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(PULSE):
            self.beat(time.monotonic())

    def beat(self, now: float) -> None:
        """One sign of life; and a warning, once, where this rank has waited for long."""
        if self.reached is None:
            return
        reached = self.reached()
        self._say(reached)
        if reached != self._last:
            self._last, self._since, self._told = reached, now, False
        elif now - self._since > self._patience and not self._told:
            self._told, missing = True, self._missing()
            waiting = [rank for rank in range(self._world) if rank not in missing]
            if missing and waiting and waiting[0] == self._rank:  # one speaks for all that wait
                ranks = ", ".join(map(str, missing))
                self._warn(
                    f"step {int(reached) + 1}: no word from rank(s) {ranks} for "
                    f"{now - self._since:.0f} s; the others wait"
                )
