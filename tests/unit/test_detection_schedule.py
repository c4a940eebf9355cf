"""Who writes and who is judged when: several at once, one judge, and an end whatever happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from versatune_ray.detection.schedule import Need, Written, room, run


class Played:
    """Work that takes ``seconds`` a step and notes what was done; ``rounds`` says how often a model
    writes.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        rounds: dict[str, int] | None = None,
        lost: Sequence[str] = (),
        fails: str = "",
    ):
        self.seconds, self.rounds, self.lost, self.fails = seconds, rounds or {}, lost, fails
        self.done: list[str] = []
        self.written: dict[str, int] = {}
        self.up: set[str] = set()
        self.most_up = self.starts = 0
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    def note(self, what: str) -> None:
        if self.stopped.wait(self.seconds):
            raise RuntimeError("stopped")
        if what == self.fails:
            raise ValueError(what)
        with self.lock:
            self.done.append(what)

    def write(self, model: str) -> Written:
        with self.lock:
            self.starts += model not in self.up
            self.up.add(model)
            self.most_up = max(self.most_up, len(self.up))
        self.note(f"write {model}")
        if model in self.lost:
            return Written.LOST
        self.written[model] = self.written.get(model, 0) + 1
        return Written.UNSURE if self.rounds else Written.ALL

    def let_go(self, model: str) -> None:
        self.up.discard(model)

    def read(self, models: Sequence[str]) -> None:
        self.note(f"read {' '.join(models)}".strip())

    def rest(self) -> None:
        self.done.append("rest")

    def goes_on(self, model: str) -> bool:
        return self.written[model] < self.rounds.get(model, 1)

    def stop(self) -> None:
        self.stopped.set()

    @property
    def read_of(self) -> list[str]:
        return sorted(model for one in self.done for model in one.split()[1:] if "read" in one)


def test_the_next_model_writes_while_the_last_is_judged() -> None:
    work = Played(0.02)
    run(["a", "b", "c"], work, writers=1, together=True)
    assert [one for one in work.done if "write" in one] == ["write a", "write b", "write c"]
    assert work.done.index("read a") < work.done.index("write c")
    assert work.read_of == ["a", "b", "c"] and work.most_up == 1 and not work.up


def test_several_write_at_once_and_no_more() -> None:
    work, names = Played(0.01), list("abcdefgh")
    run(names, work, writers=3, together=True)
    assert work.most_up == 3 and work.starts == 8 and work.read_of == names


@pytest.mark.parametrize("together", [True, False])
def test_rounds_end_with_the_models_they_are_for(together: bool) -> None:
    work = Played(rounds={"a": 3, "b": 1, "c": 2})
    run(["a", "b", "c"], work, writers=2, together=together)
    assert work.written == {"a": 3, "b": 1, "c": 2}
    assert work.read_of == list("aaabcc") and not work.up
    # an engine keeps its place through the rounds of its model where the judge has another
    assert work.starts == (3 if together else 6)
    assert work.done.count("rest") == (0 if together else 3)


def test_without_room_for_both_the_judge_waits_until_all_have_written() -> None:
    work = Played()
    run(["a", "b"], work, writers=1, together=False)
    assert work.done == ["write a", "write b", "read a b", "rest"]


@pytest.mark.parametrize("together", [True, False])
def test_a_model_that_is_lost_stops_no_other(together: bool) -> None:
    work = Played(lost=["b"])
    run(["a", "b", "c"], work, writers=1, together=together)
    assert work.read_of == ["a", "c"] and not work.up


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("at", ["write b", "read a"])
def test_what_is_no_models_fault_ends_all_at_once(together: bool, at: str) -> None:
    work = Played(0.01, fails=at if together else at.replace("read a", "read a b c"))
    before = threading.active_count()
    with pytest.raises(ValueError, match=at):
        run(["a", "b", "c"], work, writers=1, together=together)
    assert work.stopped.is_set() and "write c" not in work.done[3:] and not work.up
    assert threading.active_count() <= before


def test_ctrl_c_ends_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    work, join, interrupted = Played(5.0), threading.Thread.join, []

    def interrupt(thread: threading.Thread, timeout: Any = None) -> None:
        if timeout is None and not interrupted:
            interrupted.append(thread)
            raise KeyboardInterrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupt)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(["a", "b"], work, writers=2, together=True)
    assert time.monotonic() - began < 2 and work.stopped.is_set() and not work.up


GPU1, GPU4 = {"CPU": 1.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "judge", "models", "expected"),
    [
        # one GPU: either the model or the judge
        ([{"CPU": 8, "GPU": 1}], Need(GPU1), [Need(GPU1)] * 2, (1, False)),
        ([{"CPU": 8, "GPU": 2}], Need(GPU1), [Need(GPU1)] * 2, (1, True)),
        ([{"CPU": 16, "GPU": 8}], Need(GPU4), [Need(GPU1)] * 9, (4, True)),
        # two replicas of the judge may take all of the only node
        ([{"CPU": 16, "GPU": 8}], Need(GPU4, 2), [Need(GPU1)], (1, False)),
        # the judge may stand on either node, but on one only
        ([{"CPU": 16, "GPU": 4}] * 2, Need(GPU1), [Need(GPU4)], (1, True)),
        ([{"CPU": 16, "GPU": 4}] * 2, Need(GPU1, 2), [Need(GPU4)], (1, False)),
        # an endpoint needs next to nothing; a model that fits nowhere waits for a node
        ([{"CPU": 4}], Need({"CPU": 0.5}), [Need({"CPU": 1.0})] * 5, (2, True)),
        ([{"CPU": 4}], Need({"CPU": 1.0}), [Need({"CPU": 1.0})] * 5, (2, True)),
        ([{"CPU": 2}], Need({"CPU": 1.0}), [Need({"CPU": 1.0})] * 5, (1, False)),
        ([{"CPU": 8}], Need(GPU1), [Need(GPU1)], (1, False)),
        ([], Need(GPU1), [Need(GPU1)], (1, False)),
    ],
)
def test_room_for_models_and_for_a_judge_beside_them(
    nodes: Any, judge: Need, models: list[Need], expected: tuple[int, bool]
) -> None:
    assert room(nodes, judge, models) == expected
