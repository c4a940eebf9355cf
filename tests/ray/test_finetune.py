"""Controller, two workers and checkpoints on a real Ray Train run; a run that is killed goes on as
if nothing had happened, and one without Ray gives the same.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import yaml
from conftest import SharedRay
from processes import (
    call_job,
    finish_job,
    kill_job,
    own_ray,
    patience,
    start_job,
    start_ranks,
    wait_until,
)
from tiny import random_words
from transformers import AutoModelForCausalLM, AutoTokenizer

from versatune_ray.mixture import VersaTune, replay
from versatune_ray.training.__main__ import main

NAMES = ("law", "medicine", "code")
STEPS, EVERY = 60, 10
REFERENCE = (1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("jobs")
    return {
        "run": "whole",
        "storage": str(folder / "runs"),
        "model": {"path": str(tiny_model)},
        "data": {"max_length": 64},
        "domains": random_words(folder, NAMES),
        "mixture": {"start": "uniform", "policy": "versatune", "sigma": 2.0},
        "reference": {"epochs": 1, "learning_rate": 1e-3, "workers": 1},
        "training": {
            "workers": 2,
            "epochs": 1,
            "samples_per_epoch": STEPS * 8,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "adjust_every": EVERY,
        },
    }


@pytest.fixture(scope="module")
def measured(job: dict[str, Any]) -> dict[str, Any]:
    """The job with references that were measured before."""
    file = Path(job["storage"]).parent / "losses.json"
    domains = {name: {"loss": loss} for name, loss in zip(NAMES, REFERENCE, strict=True)}
    file.write_text(json.dumps({"unit": "nats/token", "domains": domains}))
    return job | {"reference": {"losses": str(file)}}


@pytest.fixture(scope="module")
def whole(measured: dict[str, Any], shared_ray: SharedRay) -> Path:
    """The storage, with a run that nothing disturbs."""
    storage = Path(measured["storage"])
    shared_ray.start()
    printed = call_job(measured, "finetune.py", storage.parent)
    assert printed.endswith(f"\n{storage / 'whole' / 'finetune' / 'model'}\n")
    return storage


def lines(storage: Path, run: str = "whole") -> list[dict[str, Any]]:
    """The log without its timings."""
    file = storage / run / "finetune" / "adjustments.jsonl"
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in (file.read_text() if file.is_file() else "").splitlines()
    ]


def weights(storage: Path, run: str = "whole") -> bytes:
    return (storage / run / "finetune" / "model" / "model.safetensors").read_bytes()


def test_every_adjustment_is_the_policys_answer_to_the_measured_losses(whole: Path) -> None:
    log = lines(whole)
    assert [line["step"] for line in log] == list(range(0, STEPS + 1, EVERY))
    losses = np.array([list(line["loss"].values()) for line in log])
    expected = replay(VersaTune(sigma=2.0), np.full(3, 1 / 3), losses[1:], np.array(REFERENCE))
    np.testing.assert_allclose([list(line["share"].values()) for line in log], expected, rtol=1e-12)
    for name, loss, least in zip(NAMES, losses[1], REFERENCE, strict=True):
        potential = max((loss - least) / loss, 0)
        assert log[1]["learnable_potential"][name] == pytest.approx(potential, abs=1e-12)


def test_samples_drawn_follow_the_shares_requested(whole: Path) -> None:
    log = lines(whole)
    for before, after in pairwise(log):
        drawn = np.array(list(after["share_achieved"].values())) * EVERY * 8
        asked = np.array(list(before["share"].values())) * EVERY * 8
        assert np.abs(drawn - asked).max() < 2


def test_the_tuned_model_is_an_ordinary_folder_with_a_chat_template(whole: Path) -> None:
    folder = whole / "whole" / "finetune" / "model"
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert any(folder.glob("*.safetensors"))


def test_a_killed_driver_goes_on_with_the_same_numbers(
    measured: dict[str, Any], whole: Path, ray_cluster: None, tmp_path: Path
) -> None:
    """``kill -9`` in the middle, and the same command again, on a cluster that outlives both. (With
    a Ray of its own the driver is killed in test_storage_s3.py.)
    """
    broken = measured | {"run": "broken"}
    here = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def start() -> subprocess.Popen[str]:
        return start_job(broken, "finetune.py", tmp_path, **here)

    kill_job(start(), lambda: len(lines(whole, "broken")) > 3)
    assert 3 < len(lines(whole, "broken")) < STEPS // EVERY + 1, (
        "it was killed too late to show anything"
    )
    finish_job(start())
    assert lines(whole, "broken") == lines(whole)
    assert weights(whole, "broken") == weights(whole)


@pytest.mark.slow  # test_training_faults.py has it among others
def test_a_killed_worker_costs_no_decision_and_repeats_none(
    measured: dict[str, Any], whole: Path, ray_cluster: None, tmp_path: Path
) -> None:
    killed = threading.Event()

    def kill() -> None:
        wait_until(lambda: len(lines(whole, "killed-worker")) > 3, 120)
        # Only descendants of this process: another cluster on the machine is nobody's business
        # here.
        workers = [
            child
            for child in psutil.Process().children(recursive=True)
            if "RayTrainWorker" in " ".join(child.cmdline())
        ]
        if workers:
            workers[-1].kill()
            killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    call_job(measured | {"run": "killed-worker"}, "finetune.py", tmp_path)
    thread.join()
    assert killed.is_set()
    assert lines(whole, "killed-worker") == lines(whole)


def test_without_ray_the_bits_are_the_same(measured: dict[str, Any], whole: Path) -> None:
    given = written(measured, whole, "forked")
    log = whole / "forked.log"
    assert start_ranks(alone, *given, log=log) == [0, 0], log.read_text()
    assert lines(whole, "forked") == lines(whole)
    assert weights(whole, "forked") == weights(whole)


@pytest.mark.slow  # as the test above, by the launcher itself
def test_torchrun_gives_the_same_bits(measured: dict[str, Any], whole: Path) -> None:
    config = written(measured, whole, "two")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "versatune_ray.training", *config],
        check=True,
        env=own_ray(),
        cwd=whole,
        capture_output=True,
        text=True,
        timeout=patience(200),
    )
    assert done.stdout.strip() == str(whole / "two" / "finetune" / "model")
    assert lines(whole, "two") == lines(whole)
    assert weights(whole, "two") == weights(whole)


def test_another_number_of_ranks_gives_the_same_losses(
    measured: dict[str, Any], whole: Path
) -> None:
    """At a rate where rounding stays small: at the 0.01 of the other tests it shows after 30
    steps.
    """
    calm = measured | {"training": measured["training"] | {"learning_rate": 1e-3}}
    for ranks in (1, 2):
        log = whole / f"calm-{ranks}.log"
        given = written(calm, whole, f"calm-{ranks}")
        assert start_ranks(alone, *given, log=log, ranks=ranks) == [0] * ranks, log.read_text()
    for one, two in zip(lines(whole, "calm-1"), lines(whole, "calm-2"), strict=True):
        np.testing.assert_allclose(
            list(one["loss"].values()), list(two["loss"].values()), rtol=1e-4
        )
        np.testing.assert_allclose(
            list(one["share"].values()), list(two["share"].values()), rtol=1e-3
        )
    first, last = lines(whole, "calm-1")[0]["loss"], lines(whole, "calm-1")[-1]["loss"]
    assert all(last[name] < first[name] for name in NAMES)


def test_without_what_a_job_makes_first_it_is_named(job: dict[str, Any], whole: Path) -> None:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        assert alone(*written(job, whole, "three")) == 2
    told = errors.getvalue()
    assert "losses.json; run jobs/reference.py with this configuration first" in told
    assert len(told.splitlines()) == 1


def written(job: dict[str, Any], storage: Path, run: str) -> list[str]:
    """The arguments of a run without Ray."""
    file = storage / f"{run}.yaml"
    file.write_text(yaml.safe_dump(job, sort_keys=False))  # the order of domains counts
    return ["--config", str(file), f"run={run}"]


def alone(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["versatune_ray.training", *arguments])
        return main()
