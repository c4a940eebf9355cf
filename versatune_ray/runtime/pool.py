"""Actors that outlive the Ray Data plans that ask them, so that an engine starts once, however many
plans follow one another or run beside each other.

The pools of Ray Data, and with them the engines of ``ray.data.llm``, end with their plan.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import TracebackType
from typing import Any

from versatune_ray.errors import root_cause

_ASKED_BY_ONE = 8  # actors that one process of a plan hands batches to
_CLOSING = 20.0  # seconds for what an actor holds, such as an engine's processes


@dataclass(frozen=True)
class Staff:
    """What the actors of a pool are.

    Attributes:
        make: run in every actor; what it gives answers a batch by a batch: called plainly, awaited,
            or as an asynchronous generator of one.
        replicas: the least and the most actors.
        options: of ``ray.remote``, such as ``num_gpus``; ``placed`` gives those of one actor alone.
        at_once: batches that one actor works on at the same time.
        before: the plan that makes of a plan's rows what ``make``'s answers; ``after``, the one
            that makes rows of the answers.
    """

    make: Callable[[], Any]
    replicas: tuple[int, int]
    options: Mapping[str, Any]
    at_once: int
    batch_size: int | None = None
    batch_format: str = "pyarrow"
    before: Callable[[Any], Any] = field(default=lambda rows: rows)
    after: Callable[[Any], Any] = field(default=lambda rows: rows)
    placed: Callable[[], Mapping[str, Any]] = field(default=dict)


class Pool:
    """A step of Ray Data plans whose actors start with the first plan and end with ``close``; a
    context manager. Plans of several threads may share it.

    More than the least actors are asked for as far as a plan's batches keep them busy. Those that
    there is no room for wait, and work as soon as there is; an autoscaler sees them.
    """

    def __init__(self, hire: Callable[[], Staff]):
        """``hire`` says who is wanted, once somebody is."""
        self._hire, self._lock = hire, threading.Lock()
        self._staff: Staff | None = None
        self._actors: list[Any] = []
        self._arrivals: list[Any] = []
        self._groups: list[Any] = []
        self._closed = False
        self.first: Callable[[], None] = lambda: None  # done before the first actor is asked for

    def __call__(self, rows: Any, batches: int | None = None) -> Any:
        """The plan that answers ``rows``, in about so many ``batches``; it is executed before the
        pool is closed.
        """
        from ray.data import ActorPoolStrategy

        staff, actors = self._grown(inf if batches is None else batches)
        askers = -(-len(actors) // _ASKED_BY_ONE)
        calls = -(-len(actors) * staff.at_once // askers)
        answered = staff.before(rows).map_batches(
            _Asker,
            fn_constructor_args=(actors, staff.at_once),
            batch_size=staff.batch_size,
            batch_format=staff.batch_format,
            num_cpus=0,
            compute=ActorPoolStrategy(
                size=askers,
                max_concurrent_calls_per_actor=calls,
                max_tasks_in_flight_per_actor=2 * calls,
            ),
        )
        return staff.after(answered)

    def again(self) -> Pool:
        """One that is not closed, of the same staff."""
        return Pool(self._hire)

    def start(self) -> None:
        """Ask for the least actors now, and wait for none."""
        self._grown(0)

    def _grown(self, batches: float) -> tuple[Staff, list[Any]]:
        with self._lock:
            if self._closed:
                raise RuntimeError("the job ends: nothing more is asked")
            if self._staff is None:
                self.first()
                self._staff = self._hire()
            staff, (least, most) = self._staff, self._staff.replicas
            while len(self._actors) < max(least, min(most, batches / staff.at_once)):
                self._actors.append(self._start(staff))
                self._arrivals.append(self._actors[-1].ready.remote())
            return staff, list(self._actors)

    def _start(self, staff: Staff) -> Any:
        import ray

        placed = dict(staff.placed())
        group = getattr(placed.get("scheduling_strategy"), "placement_group", None)
        if group is not None:
            self._groups.append(group)
        options = {
            "max_restarts": -1,
            "max_task_retries": -1,  # a batch whose actor died is answered by the next
            "max_concurrency": staff.at_once + 2,  # and ``ready`` and ``close``
        }
        return ray.remote(_Host).options(**options, **staff.options, **placed).remote(staff.make)

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, and what is being asked of them with an error. Nothing can be asked any
        more.
        """
        with self._lock:
            actors, groups, self._closed = self._actors, self._groups, True
            arrivals, self._arrivals = self._arrivals, []
            self._actors, self._groups, self._staff = [], [], None
        if not actors:
            return
        import ray
        from ray.exceptions import RayError
        from ray.util import remove_placement_group

        try:
            there, _ = ray.wait(arrivals, num_returns=len(arrivals), timeout=0)
            closed = [
                actor.close.remote()
                for actor, arrival in zip(actors, arrivals, strict=True)
                if arrival in there
            ]
            if closed:
                ray.wait(closed, num_returns=len(closed), timeout=_CLOSING)
        finally:
            for actor in actors:
                try:
                    ray.kill(actor)
                except (RayError, ValueError):  # it has ended
                    continue
            for group in groups:
                remove_placement_group(group)


class _Host:
    """The actor: holds what answers."""

    def __init__(self, make: Callable[[], Any]):
        self._answer: Any = None
        self._failure: Exception | None = None
        try:
            self._answer = make()
        except Exception as error:  # told by ``ready``; Ray would only say that the actor died
            self._failure = error

    async def ready(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def answer(self, batch: Any) -> Any:
        if self._answer is None:
            await self.ready()
            raise RuntimeError("the job ends: nothing more is asked")
        answer = self._answer(batch)
        if inspect.isasyncgen(answer):
            return [part async for part in answer][-1]
        return await answer if inspect.isawaitable(answer) else answer

    async def close(self) -> None:
        self._answer = None
        gc.collect()  # an engine ends its processes when it is collected


class Desk:
    """Which of several actors takes the next batch: of those that are there, the one with least to
    do, and none with ``at_once`` batches. Pure.
    """

    def __init__(self, actors: int, at_once: int):
        self._at_once = at_once
        self._load: dict[int, int] = {}
        self._awaited = set(range(actors))

    def arrived(self, actor: int) -> None:
        self._awaited.discard(actor)
        self._load[actor] = 0

    def lost(self, actor: int) -> bool:
        """Whether nobody is there now, nor will be."""
        self._awaited.discard(actor)
        self._load.pop(actor, None)
        return not self._awaited and not self._load

    def take(self) -> int | None:
        """The actor of the next batch, or None where that has to wait."""
        free = [actor for actor, load in self._load.items() if load < self._at_once]
        if not free:
            return None
        chosen = min(free, key=lambda actor: (self._load[actor], actor))
        self._load[chosen] += 1
        return chosen

    def give_back(self, actor: int) -> None:
        if actor in self._load:
            self._load[actor] -= 1


class _Asker:
    """UDF of Ray Data: hands batches on to the actors, as ``Desk`` says."""

    def __init__(self, actors: Sequence[Any], at_once: int):
        self._actors, self._desk = actors, Desk(len(actors), at_once)
        self._changed: asyncio.Condition | None = None
        self._failure: BaseException | None = None
        self._arrivals: list[asyncio.Task[None]] = []

    async def __call__(self, batch: Any) -> Any:
        if self._changed is None:  # on the loop that all calls share
            self._changed = asyncio.Condition()
            places = range(len(self._actors))
            self._arrivals = [asyncio.ensure_future(self._arrive(place)) for place in places]
        async with self._changed:
            while (place := self._desk.take()) is None:
                if self._failure is not None:
                    raise self._failure
                await self._changed.wait()
        try:
            return await self._actors[place].answer.remote(batch)
        except Exception as error:
            raise root_cause(error) from None
        finally:
            async with self._changed:
                self._desk.give_back(place)
                self._changed.notify_all()

    async def _arrive(self, place: int) -> None:
        assert self._changed is not None
        try:
            await self._actors[place].ready.remote()
            failure = None
        except Exception as error:
            failure = root_cause(error)
        async with self._changed:
            if failure is None:
                self._desk.arrived(place)
            elif self._desk.lost(place):
                self._failure = failure
            self._changed.notify_all()
