"""Progress of long work: workers tell a board, an actor; the driver prints its bars as lines that
read well in a log too.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

_BOARD = "versatune-progress"
_PRINT_EVERY = 5.0  # seconds
_TELL_EVERY = 1.0


@dataclass
class State:
    """How far a bar is: ``done`` of ``total`` units, a short note, and whether it has ended."""

    done: int
    total: int
    unit: str
    note: str = ""
    ended: bool = False


class Board:
    """What every bar last said, and every message. Wrapped as an actor by ``Display``."""

    def __init__(self) -> None:
        self.bars: dict[str, State] = {}
        # a set in order: work done again after a failure says the same again
        self.messages: dict[tuple[str, str], None] = {}

    def tell(self, name: str, state: State) -> None:
        self.bars[name] = state

    def say(self, name: str, text: str) -> None:
        self.messages[name, text] = None

    def read(self) -> tuple[dict[str, State], list[tuple[str, str]]]:
        return self.bars, list(self.messages)


class Bar:
    """A named bar, in a driver, a task or an actor. Without a display (a test, a library user) it
    does nothing.
    """

    def __init__(self, name: str, total: int, unit: str = "step"):
        import ray

        self._name, self._state, self._told = name, State(0, total, unit), 0.0
        self._board: Any = None
        if ray.is_initialized():
            try:
                self._board = ray.get_actor(_BOARD)
            except ValueError:
                self._board = None

    def to(self, done: int, note: str = "", total: int | None = None) -> None:
        """Move to ``done``, with a note such as the current loss; ``total`` where it was not known
        before.
        """
        self._state = State(
            done, self._state.total if total is None else total, self._state.unit, note
        )
        if time.monotonic() - self._told > _TELL_EVERY:
            self._tell()

    def say(self, text: str) -> None:
        """One line for the driver's screen, shown once."""
        if self._board is not None:
            self._board.say.remote(self._name, text)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._state.ended = True
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        if self._board is not None:
            self._board.tell.remote(self._name, self._state)


def engine_bar(name: str, total: int) -> Bar:
    """A bar over rows that an engine answers, which has to start first."""
    bar = Bar(name, total, "row")
    bar.to(0, "starting the engine")
    return bar


class Display:
    """On the driver: starts the board and prints, every few seconds, the messages that are new and
    the bars that moved.
    """

    def __enter__(self) -> Display:
        import ray

        from versatune_ray.runtime.cluster import beside_the_driver

        self._board: Any = (
            ray.remote(Board)
            .options(
                name=_BOARD, num_cpus=0, get_if_exists=True, scheduling_strategy=beside_the_driver()
            )
            .remote()
        )
        self._stop = threading.Event()
        self._began: dict[str, tuple[float, int]] = {}
        self._printed: dict[str, State] = {}
        self._said = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        import ray

        self._stop.set()
        self._thread.join(timeout=_PRINT_EVERY)
        self._show()  # the messages of the last seconds
        ray.kill(self._board)

    def _run(self) -> None:
        while not self._stop.wait(_PRINT_EVERY):
            self._show()

    def _show(self) -> None:
        import ray
        from ray.exceptions import RayError

        try:
            bars, messages = ray.get(self._board.read.remote(), timeout=_PRINT_EVERY)
        except RayError:
            return  # a busy board is asked again
        for name, text in messages[self._said :]:
            print(f"[{name}] {text}", flush=True)
        self._said = len(messages)
        for name, state in bars.items():
            since, first = self._began.setdefault(name, (time.monotonic(), state.done))
            if self._printed.get(name) != state and not self._stop.is_set():
                self._printed[name] = state
                print(line(name, state, time.monotonic() - since, state.done - first), flush=True)


def line(name: str, state: State, seconds: float, moved: int, width: int = 20) -> str:
    """One bar as text; ``moved`` units in ``seconds`` give the rate and the time left."""
    share = min(1.0, state.done / state.total) if state.total else 0.0
    bar = "━" * round(share * width) + "─" * (width - round(share * width))
    text = f"[{name}] {bar} {100 * share:3.0f} %  {state.done}/{state.total} {state.unit}s"
    if moved > 0 and seconds > 0 and not state.ended:
        left = round((state.total - state.done) * seconds / moved)
        text += f"  {moved / seconds:.1f}/s  {left // 60}:{left % 60:02d} left"
    return text + (f"  {state.note}" if state.note else "")
