"""What runs when in a detection of many models: several write at once, and what is written is
judged meanwhile. Threads, and no Ray.

Where the judge has room beside the writing models (``together``), a model that may have to write
more keeps its engine while its texts are judged, and what has written its last is judged while the
next ones write. Where it has not, all write and let their engines go, then the judge reads all of
them and is let go itself, and so on in rounds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Protocol

_ENDING = 30.0  # seconds for what runs when the job ends before its time


class Written(Enum):
    """How a model stands after it wrote."""

    LOST = "it cannot be detected"
    UNSURE = "its texts decide whether it writes more"
    ALL = "it has written all that it may"


class Work(Protocol):
    """What is to be done, in any thread. What is raised ends the whole job."""

    def write(self, model: str) -> Written:
        """Bring a model to its number of sequences; its engine stays up."""

    def let_go(self, model: str) -> None:
        """End a model's engine."""

    def read(self, models: Sequence[str]) -> None:
        """Have the texts of some models judged; of none: what is to be judged beside them."""

    def rest(self) -> None:
        """End the judge; it may be needed again."""

    def goes_on(self, model: str) -> bool:
        """Whether a model whose texts are judged has to write more."""

    def stop(self) -> None:
        """End all that runs, which then raises."""


def run(models: Sequence[str], work: Work, *, writers: int, together: bool) -> None:
    """Do all of it: up to ``writers`` models write at once, in their order.

    An exception in any thread, ``KeyboardInterrupt`` in this one, stops all, and is raised.
    """
    crew = _Crew(work)
    if together:
        _together(models, crew, writers)
    else:
        _apart(models, crew, writers)


class _Crew:
    """Threads that end together when one of them fails."""

    def __init__(self, work: Work):
        self.work = work
        self.stopped = threading.Event()
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def do(self, *jobs: Callable[[], None]) -> None:
        """Run the jobs, each in a thread, and wait for all."""
        threads = [threading.Thread(target=self._guarded, args=[job], daemon=True) for job in jobs]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C arrives in the main thread
            self._fail(error)
            for thread in threads:
                if thread.ident is not None:
                    thread.join(_ENDING)
            raise
        if self._failure is not None:
            raise self._failure

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure = error
        self.stopped.set()
        self.work.stop()


def _together(models: Sequence[str], crew: _Crew, writers: int) -> None:
    work = crew.work
    to_write, to_read = deque(models), deque[str]()
    changed, writing = threading.Condition(), min(writers, len(models))

    def write() -> None:
        nonlocal writing
        try:
            while to_write and not crew.stopped.is_set():
                try:
                    model = to_write.popleft()
                except IndexError:  # another thread was faster
                    break
                try:
                    written, judged = work.write(model), False
                    while written is Written.UNSURE and not judged:
                        work.read([model])
                        judged = not work.goes_on(model)
                        if not judged:
                            written = work.write(model)
                finally:
                    work.let_go(model)
                if written is Written.ALL:
                    with changed:
                        to_read.append(model)
                        changed.notify()
        finally:
            with changed:
                writing -= 1
                changed.notify()

    def read() -> None:
        work.read([])
        while True:
            with changed:
                changed.wait_for(lambda: to_read or not writing)
                models = list(to_read)
                to_read.clear()
            if not models or crew.stopped.is_set():
                return
            work.read(models)

    crew.do(read, *[write] * writing)


def _apart(models: Sequence[str], crew: _Crew, writers: int) -> None:
    work, left = crew.work, list(models)
    while left:
        to_write, found = deque(left), dict[str, Written]()

        def write(to_write: deque[str] = to_write, found: dict[str, Written] = found) -> None:
            while to_write and not crew.stopped.is_set():
                try:
                    model = to_write.popleft()
                except IndexError:
                    break
                try:
                    found[model] = work.write(model)
                finally:
                    work.let_go(model)

        crew.do(*[write] * min(writers, len(left)))
        written = [model for model in left if found[model] is not Written.LOST]

        def read(written: list[str] = written) -> None:
            try:
                work.read(written)
            finally:
                work.rest()

        crew.do(read)
        left = [
            model for model in written if found[model] is Written.UNSURE and work.goes_on(model)
        ]


@dataclass(frozen=True)
class Need:
    """The resources of one replica, and the most replicas that there may be."""

    each: Mapping[str, float]
    most: int = 1


_TASKS = {"CPU": 1.0}  # what the tasks beside the engines need, of every node


def room(
    nodes: Sequence[Mapping[str, float]], judge: Need, models: Sequence[Need]
) -> tuple[int, bool]:
    """How many of the models, a replica each, can write at once, at least 1; and whether every one
    of them has room beside the judge, wherever Ray places the judge's replicas: a judge that took
    the last place would wait for texts of a model that waits for the place.
    """
    places = [_less(node, _TASKS) for node in nodes]
    together = any(_fits(place, judge.each) for place in places) and all(
        sum(_to_block(place, judge.each, model.each) for place in places) > judge.most
        for model in models
    )
    if together:
        first = next(place for place in places if _fits(place, judge.each))
        places[places.index(first)] = _less(first, judge.each)
    count = 0
    for model in models:
        at = next((i for i, place in enumerate(places) if _fits(place, model.each)), None)
        if at is None:
            break
        places[at] = _less(places[at], model.each)
        count += 1
    return max(1, count), together


def _fits(place: Mapping[str, float], need: Mapping[str, float]) -> bool:
    return all(place.get(name, 0) >= amount for name, amount in need.items())


def _less(place: Mapping[str, float], need: Mapping[str, float]) -> dict[str, float]:
    return {name: amount - need.get(name, 0) for name, amount in place.items()}


def _to_block(
    place: Mapping[str, float], judge: Mapping[str, float], model: Mapping[str, float]
) -> float:
    """Replicas of the judge that leave no room for the model on a node."""
    count = 0
    while _fits(place, model):
        if not any(judge.values()) or not _fits(place, judge):
            return inf
        place, count = _less(place, judge), count + 1
    return count
