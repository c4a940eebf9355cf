"""One rank that fails, hangs or sees less than the others: all end at once, and the line says which
rank and why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from local_ranks import train
from processes import start_ranks
from tiny import write_records

from versatune_ray.training.adjustment import Decision, Refused
from versatune_ray.training.heartbeat import Heartbeat, Sign, held_up_by
from versatune_ray.training.local import LocalRuntime

TIMEOUT = 6


def test_the_ranks_that_are_furthest_behind_hold_the_others_up() -> None:
    ahead, behind = Sign(100.0, 7.5), Sign(100.0, 7.0)
    assert held_up_by({0: ahead, 1: behind, 2: ahead}, 101.0) == [1]
    # A watchdog has ended those that waited: they are silent, and the one that hangs still speaks.
    assert held_up_by({0: Sign(50.0, 7.5), 1: behind, 2: Sign(50.0, 7.5)}, 101.0) == [1]
    # All at one place: who does not speak any more is dead or frozen; where all speak, nobody is
    # named.
    assert held_up_by({0: ahead, 1: Sign(50.0, 7.5), 2: ahead}, 101.0) == [1]
    assert held_up_by({0: ahead, 1: ahead}, 101.0) == []
    assert held_up_by({}, 101.0) == []


def test_the_first_rank_that_waits_names_those_it_waits_for_once_and_in_time() -> None:
    said: list[float] = []
    warned: list[str] = []
    beats = [
        Heartbeat(rank, 3, said.append, lambda: [1], warned.append, timeout=100.0)
        for rank in range(3)
    ]
    for beat in beats:
        beat.beat(0.0)  # before anything is watched
        beat.reached = lambda: 7.5
    for now in (10.0, 50.0, 90.0, 91.0, 95.0):
        for beat in beats:
            beat.beat(now)
    assert warned == ["step 8: no word from rank(s) 1 for 81 s; the others wait"]
    assert said == [7.5] * 15
    beats[0].reached = lambda: 8.5
    beats[0].beat(96.0)
    beats[0].beat(170.0)
    assert len(warned) == 1
    beats[0].beat(177.0)
    assert warned[1] == "step 9: no word from rank(s) 1 for 81 s; the others wait"


@pytest.fixture(scope="module")
def settings(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    for seed, name in enumerate(("law", "code")):
        words = [
            " ".join(f"w{3 + (seed + 7 * line + place) % 60}" for place in range(6))
            for line in range(40)
        ]
        records = [{"instruction": line[: len(line) // 2], "output": line} for line in words]
        write_records(folder / f"{name}.jsonl", records)
    job = {
        "storage": str(folder / "runs"),
        "model": {"path": str(tiny_model)},
        "domains": {name: str(folder / f"{name}.jsonl") for name in ("law", "code")},
        "data": {"max_length": 64, "validation_fraction": 0.2},
        "mixture": {"start": "uniform", "policy": "constant"},
        "training": {
            "epochs": 1,
            "batch_size": 8,
            "adjust_every": 3,
            "metrics": [],
        },
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def on_two(what: str, settings: Path, run: str, *overrides: str) -> tuple[bool, str]:
    """Whether both ranks came to a good end, and what was printed."""
    log = settings.with_name(f"{run}-{what}.log")
    given = ("--config", str(settings), f"run={run}", *overrides)
    statuses = start_ranks(train, what, *given, log=log)
    return statuses == [0, 0], log.read_text()


@pytest.mark.parametrize("what", ["mistake", "later"])
def test_a_mistake_that_one_rank_meets_ends_all_of_them_with_its_line(
    what: str, settings: Path
) -> None:
    good, printed = on_two(what, settings, what)
    assert not good
    assert (
        printed.count("error: rank 1: data.chat_template: /node/b/chat.jinja: no such file") == 1
    ), printed
    assert "timed out" not in printed.lower()


@pytest.mark.parametrize("what", ["hangs", "aborted"])
def test_a_rank_that_hangs_is_named_whether_the_others_raise_or_are_ended_by_a_watchdog(
    what: str, settings: Path
) -> None:
    good, printed = on_two(what, settings, what, f"training.exchange_timeout={TIMEOUT}")
    assert not good
    assert "warning: step 3: no word from rank(s) 1 for 5 s; the others wait" in printed, printed
    if what == "hangs":
        assert f"step 3: no word from rank(s) 1 within {TIMEOUT} s" in printed, printed


def test_a_checkpoint_that_one_rank_does_not_see_is_told_and_nobody_begins_anew(
    settings: Path,
) -> None:
    good, printed = on_two("nothing", settings, "seen")
    assert good, printed
    (
        settings.parent / "runs" / "seen" / "finetune" / "done"
    ).unlink()  # as if it had not come so far
    good, printed = on_two("blind", settings, "seen")
    assert not good and "error: rank 1: storage: no " in printed, printed
    assert "has to be a folder that every node sees" in printed


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_first_rank_cannot_decide_on_is_raised_on_every_rank(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    def broadcast(answer: list[Any]) -> None:
        told.append(answer[0])
        answer[0] = Refused("law: loss is nan")

    class Controller:
        def decide(self, reports: Any) -> Decision:
            raise Refused("law: loss is nan")

    monkeypatch.setattr("torch.distributed.gather_object", lambda *_: None)
    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    runtime = object.__new__(LocalRuntime)
    runtime.rank, runtime.world = rank, 2
    runtime._controller = Controller()  # type: ignore[assignment]
    with pytest.raises(Refused, match="law: loss is nan"):
        runtime.exchange(None)  # type: ignore[arg-type]
    assert isinstance(told[0], Refused) == (rank == 0)
