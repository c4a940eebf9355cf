"""A run without Ray that is broken off at any moment and goes on: the same samples, the same log,
the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_samples, write_store
from safetensors.torch import load_file

from versatune_ray.domains import DomainPaths, load_domains
from versatune_ray.mixture import DomainSampler
from versatune_ray.runs.training_log import read_log
from versatune_ray.settings import semantics
from versatune_ray.settings.loading import parse
from versatune_ray.training.adjustment import Decision, Refused, Report
from versatune_ray.training.controller import WeightController
from versatune_ray.training.job import Job
from versatune_ray.training.local import LocalRuntime
from versatune_ray.training.loop import run
from versatune_ray.training.step import Unrecoverable
from versatune_ray.tuning import lookahead

NAMES = ("law", "code")
# an epoch of both domains is 5 steps: resumes fall inside epochs and at their ends
STEPS, EVERY, SAVE = 9, 3, 2
REFERENCE = np.array([1.0, 3.0])


class Broken(BaseException):
    """What ends a process, no error handler notwithstanding."""


class Breaking(LocalRuntime):
    """Counts what happens, and breaks off at event number ``at``."""

    def __init__(self, *arguments: Any, at: int):
        super().__init__(*arguments)
        self.left = at
        self.killed = False

    def happens(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.killed = True
            raise Broken

    def exchange(self, report: Report) -> Decision:
        decision = super().exchange(report)
        self.happens()  # decided, but neither logged nor saved
        return decision

    def save(self, write: Callable[[Path], Future[Any]], metrics: dict[str, Any]) -> None:
        self.happens()
        super().save(write, metrics)
        if self.left == 1:
            self.killed = True
        self.happens()  # begun to write, but not in its place
        self.finish()

    def _place(self, place: Path, written: Future[Any]) -> None:
        written.result()
        if not self.killed:
            super()._place(place, written)

    def progress(self, step: int, note: str) -> None:
        self.happens()


# The events between, all in turn, are drills: each is two runs.
EVERY_FOURTH = pytest.mark.parametrize(
    "begin", [1, *(pytest.param(begin, marks=pytest.mark.slow) for begin in (2, 3, 4))]
)


@pytest.fixture
def attempt(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[Any], list[Any], Any]]:
    folder = tmp_path_factory.mktemp("alone")
    paths = {
        name: DomainPaths(
            write_store(folder / name, random_samples(seed, 20)),
            write_store(folder / f"{name}-v", random_samples(seed + 9, 5)),
        )
        for seed, name in enumerate(NAMES)
    }

    monkeypatch.setattr("versatune_ray.training.loop.check_room", lambda *given: None)

    def once(
        name: str, at: int = 0, stages: Sequence[dict[str, Any]] = (), **more: Any
    ) -> tuple[list[Any], list[Any], Any]:
        """Log without timings, samples drawn (step of the stage, domains, indices), and the tuned
        weights if the run ended.
        """
        training = {
            "workers": 1,
            "epochs": 1,
            "samples_per_epoch": STEPS * 8,
            "batch_size": 8,
            "learning_rate": 1e-2,
        }
        config = parse(
            {
                "run": name,
                "storage": str(folder),
                "model": {"path": str(tiny_model)},
                "domains": dict.fromkeys(NAMES, "x.jsonl"),
                "mixture": {"start": "uniform", "sigma": 2.0},
                "stages": list(stages),
                "training": training
                | {"adjust_every": EVERY, "checkpoint_every": SAVE, "metrics": []}
                | more,
            }
        )
        sizes = [len(domain.train) for domain in load_domains(paths, config.data).values()]
        planned = semantics.stages(config, NAMES, sizes, None, "nats/token")
        controller = WeightController(NAMES, planned, REFERENCE, 60)
        (config.run_folder / "finetune").mkdir(parents=True, exist_ok=True)
        job = Job(config, str(tiny_model), paths, planned, config.run_folder / "finetune")
        host = Breaking(job, controller, 0, 1, torch.device("cpu"), at=at)
        drawn: list[Any] = []
        before = DomainSampler.next_batch

        def next_batch(self: DomainSampler, shares: Any) -> Any:
            domain, index = before(self, shares)
            drawn.append((self.state_dict()["step"], domain.tolist(), index.tolist()))
            return domain, index

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DomainSampler, "next_batch", next_batch)
            try:
                run(job, host)
                host.finish()
            except Broken:
                host.finish()
                return [], drawn, None
        lines = [
            json.loads(line) for line in (job.folder / "adjustments.jsonl").read_text().splitlines()
        ]
        for line in lines:
            del line["seconds"]
        return lines, drawn, load_file(job.folder / "model" / "model.safetensors")

    return once


@EVERY_FOURTH
def test_a_run_that_is_broken_off_anywhere_ends_like_one_that_was_not(
    begin: int,
    attempt: Callable[..., tuple[list[Any], list[Any], Any]],
) -> None:
    log, drawn, weights = attempt(f"whole-{begin}")
    assert [line["step"] for line in log] == [0, 3, 6, 9] and len(drawn) == STEPS
    events = 4 + 2 * 5 + STEPS  # adjustments; saves after 2, 4, 6, 8 and 9 steps; steps
    for at in range(begin, events + 1, 4):
        ended, first, _ = attempt(f"broken-{at}", at)
        assert not ended, "every event breaks off a run"
        log_again, second, weights_again = attempt(f"broken-{at}")
        assert log_again == log
        # what came after the checkpoint is drawn again
        begun = second[0][0] if second else STEPS + 1
        assert [one for one in first if one[0] < begun] + second == drawn
        assert begun > len(first) - SAVE - 1, (
            "at most the steps since the last checkpoint are done again"
        )
        assert all(torch.equal(weights[name], weights_again[name]) for name in weights)


def test_only_what_the_controller_refuses_is_final(
    attempt: Callable[..., tuple[list[Any], list[Any], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises a ValueError as well, where a rank's group is taken away while the workers are
    started again.
    """

    def gone(self: LocalRuntime, report: Report) -> Decision:
        raise ValueError("Group is not registered")

    def refused(self: LocalRuntime, report: Report) -> Decision:
        raise Refused("law: loss is nan")

    monkeypatch.setattr(LocalRuntime, "exchange", gone)
    with pytest.raises(ValueError, match="Group is not registered"):
        attempt("gone")
    monkeypatch.setattr(LocalRuntime, "exchange", refused)
    with pytest.raises(
        Unrecoverable, match="adjustment at step 0: law: loss is nan; the last checkpoint is intact"
    ):
        attempt("refused")


def test_the_best_checkpoint_is_kept_and_exported(
    attempt: Callable[..., tuple[list[Any], list[Any], Any]],
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """At this rate losses fall, then rise; adjustments and checkpoints meet at steps 6 and 9."""
    log, _, best = attempt("best", learning_rate=0.05, keep_best="loss", keep_checkpoints=1)
    loss = {line["step"]: np.mean(list(line["loss"].values())) for line in log}
    _, _, last = attempt("last", learning_rate=0.05)
    assert loss[6] != loss[9]
    same = all(torch.equal(best[name], last[name]) for name in best)
    assert same == (loss[9] < loss[6])
    (run,) = tmp_path_factory.getbasetemp().glob("alone[0-9]/best")
    told = read_log(run)
    assert told.step == (9 if same else 6)
    assert np.mean(list(told.tuned["loss"].values())) == min(loss[6], loss[9])


TWO_STAGES = (
    # 24 samples in 3 steps
    {"name": "one", "sources": "code", "policy": "constant", "epochs": 1.2},
    # 2 · (20 + 5) in 7
    {
        "name": "both",
        "rehearse": "1/4",
        "sources": "law",
        "start": "proportional",
        "epochs": 2,
        "fresh": False,
    },
)


@EVERY_FOURTH
def test_stages_that_are_broken_off_anywhere_end_like_ones_that_were_not(
    begin: int,
    attempt: Callable[..., tuple[list[Any], list[Any], Any]],
) -> None:
    log, drawn, weights = attempt(f"stages-whole-{begin}", stages=TWO_STAGES)
    # Each begins with a line of its own; the second adjusts 3 and 6 steps after it began, and at
    # its end.
    assert [(line["step"], line["stage"]) for line in log] == [
        (0, "one"),
        (3, "one"),
        (3, "both"),
        (6, "both"),
        (9, "both"),
        (10, "both"),
    ]
    assert log[1]["share"] == {"law": 0, "code": 1} and log[2]["share"] == {"law": 0.8, "code": 0.2}
    assert log[1]["loss"] == log[2]["loss"], "measured once where one ends and the next begins"
    assert [domain for _, domains, _ in drawn[:3] for domain in domains] == [1] * 24
    assert (
        len(
            {
                index
                for _, domains, indices in drawn[3:]
                for domain, index in zip(domains, indices, strict=True)
                if domain == 1
            }
        )
        == 5
    )
    # adjustments; saves after 2, 3, 4, 6, 8 and 10 steps; steps
    for at in range(begin, 6 + 2 * 6 + 10 + 1, 4):
        assert not attempt(f"stages-{at}", at, stages=TWO_STAGES)[0], "every event breaks off a run"
        log_again, rest, weights_again = attempt(f"stages-{at}", stages=TWO_STAGES)
        assert log_again == log
        assert rest == drawn[len(drawn) - len(rest) :]
        assert all(torch.equal(weights[name], weights_again[name]) for name in weights)


def test_rehearsing_nothing_is_mixed_sequential_sample_for_sample(
    attempt: Callable[..., tuple[list[Any], list[Any], Any]],
) -> None:
    first, then = (
        {"name": "s", "sources": "code", "epochs": 1},
        {"name": "g", "sources": "law", "epochs": 1},
    )
    mixed = attempt("mixed", stages=[first, then])
    # of 20 records, which rounds to none
    dmt = attempt("dmt-0", stages=[first, then | {"rehearse": "1/1000"}])
    assert dmt[:2] == mixed[:2]
    assert all(torch.equal(mixed[2][name], dmt[2][name]) for name in mixed[2])
    # In each of the two parts of 24 samples, all 20 records of the one source come once before any
    # comes again.
    for part, source in ((mixed[1][:3], 1), (mixed[1][3:], 0)):
        drawn = [
            (domain, index)
            for _, domains, indices in part
            for domain, index in zip(domains, indices, strict=True)
        ]
        assert len(drawn) == 24 and sorted(drawn[:20]) == [(source, index) for index in range(20)]


def test_a_stage_on_the_same_records_goes_through_them_in_another_order(
    attempt: Callable[..., tuple[list[Any], list[Any], Any]],
) -> None:
    two = [
        {"name": name, "sources": "law", "epochs": 1, "samples_per_epoch": 8} for name in ("a", "b")
    ]
    log, drawn, _ = attempt("twice", stages=two)
    (_, _, first), (_, _, second) = drawn
    assert first != second and log[-1]["passes"]["law"] == 0.8


@pytest.mark.parametrize("policy", ["dynamix", "pike", "ideal", "powerlaw", "schedule"])
def test_policies_that_ask_for_more_go_on_and_are_replayed_as_they_decided(
    attempt: Callable[..., tuple[list[Any], list[Any], Any]], policy: str
) -> None:
    ramp = [
        {"at": 0, "shares": {"law": 1, "code": 1}},
        {"at": 1.0, "shares": {"law": 3, "code": 1}},
    ]
    options = {"waypoints": ramp} if policy == "schedule" else {}
    stages = ({"name": "all", "policy": policy, "options": options},)
    log, drawn, weights = attempt(f"{policy}-whole", stages=stages)
    assert not attempt(f"{policy}-broken", 14, stages=stages)[0]
    log_again, rest, weights_again = attempt(f"{policy}-broken", stages=stages)
    assert log_again == log and rest == drawn[len(drawn) - len(rest) :]
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    shares = [[line["share"][name] for name in NAMES] for line in log]
    assert len({tuple(row) for row in shares}) > 1, "shares moved"
    assert log[-1]["drawn"] == {
        name: sum(domains.count(number) for _, domains, _ in drawn)
        for number, name in enumerate(NAMES)
    }
    config = parse({"mixture": {"start": "uniform", "policy": policy, "options": options}})
    reference = dict(zip(NAMES, REFERENCE, strict=True))
    replayed = lookahead._answers(config, log, NAMES, reference, np.array(shares[0]))
    np.testing.assert_allclose(replayed, shares, atol=1e-12)
