"""Controller, two workers and checkpoints on a real Ray Train run; a run that is killed goes on as
if nothing had happened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT, random_samples, write_store
from transformers import AutoModelForCausalLM, AutoTokenizer

from versatune_ray.domains import DomainPaths
from versatune_ray.mixture import VersaTune, replay
from versatune_ray.settings import Config
from versatune_ray.settings.loading import parse
from versatune_ray.training.finetune import finetune

NAMES = ("law", "medicine", "code")
STEPS, EVERY = 60, 10


def settings(storage: Path, model: Path) -> dict[str, Any]:
    training = {
        "workers": 2,
        "epochs": 1,
        "samples_per_epoch": STEPS * 8,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "adjust_every": EVERY,
    }
    return {
        "run": "test",
        "storage": str(storage),
        "model": {"path": str(model)},
        "data": {"max_length": 64},
        "domains": {name: f"{storage}/{name}.jsonl" for name in NAMES},
        "mixture": {"start": "uniform", "policy": "versatune", "sigma": 2.0},
        "training": training,
    }


def lines(storage: Path, run: str = "test") -> list[dict[str, Any]]:
    """The log without its timings."""
    text = (storage / run / "finetune" / "adjustments.jsonl").read_text()
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in text.splitlines()
    ]


@pytest.fixture(scope="module")
def tune(
    ray_cluster: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("stores")
    paths = {
        name: DomainPaths(
            write_store(folder / name, random_samples(seed, 40)),
            write_store(folder / f"{name}-v", random_samples(seed + 9, 9)),
        )
        for seed, name in enumerate(NAMES)
    }
    reference = {
        "domains": {name: {"loss": loss} for name, loss in zip(NAMES, (1.0, 2.0, 4.0), strict=True)}
    }

    def run(name: str) -> Path:
        storage = folder / name
        config: Config = parse(settings(storage, tiny_model))
        assert (
            finetune(config, str(tiny_model), paths, None, reference, "nats/token", gpu=False)
            == storage / "test" / "finetune" / "model"
        )
        return storage

    return run


@pytest.fixture(scope="module")
def undisturbed(tune: Callable[[str], Path]) -> Path:
    return tune("undisturbed")


def test_every_adjustment_is_the_policys_answer_to_the_measured_losses(undisturbed: Path) -> None:
    log = lines(undisturbed)
    assert [line["step"] for line in log] == list(range(0, STEPS + 1, EVERY))
    losses = np.array([list(line["loss"].values()) for line in log])
    expected = replay(
        VersaTune(sigma=2.0), np.full(3, 1 / 3), losses[1:], np.array([1.0, 2.0, 4.0])
    )
    np.testing.assert_allclose([list(line["share"].values()) for line in log], expected, rtol=1e-12)
    assert log[1]["learnable_potential"]["law"] > log[1]["learnable_potential"]["medicine"] > 0


def test_samples_drawn_follow_the_shares_requested(undisturbed: Path) -> None:
    log = lines(undisturbed)
    for before, after in pairwise(log):
        drawn = np.array(list(after["share_achieved"].values())) * EVERY * 8
        asked = np.array(list(before["share"].values())) * EVERY * 8
        assert np.abs(drawn - asked).max() < 2


def test_the_tuned_model_is_an_ordinary_folder_with_a_chat_template(undisturbed: Path) -> None:
    folder = undisturbed / "test" / "finetune" / "model"
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert any(folder.glob("*.safetensors"))


def test_a_killed_worker_costs_no_decision_and_repeats_none(
    tune: Callable[[str], Path], undisturbed: Path, tmp_path: Path
) -> None:
    storage = undisturbed.parent / "killed-worker"
    killed = threading.Event()

    def kill() -> None:
        log = storage / "test" / "finetune" / "adjustments.jsonl"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (
            log.is_file() and len(log.read_text().splitlines()) > 3
        ):
            time.sleep(0.05)
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
    tune("killed-worker")
    thread.join()
    assert killed.is_set()
    assert lines(storage) == lines(undisturbed)


def command(storage: Path, tiny_model: Path) -> list[str]:
    """The job as a user runs it, on records in ``storage``."""
    rng = np.random.default_rng(0)
    storage.mkdir()
    for name in NAMES:
        rows = [
            {
                "prompt": f"w{row[0]} w{row[1]}",
                "completion": " ".join(f"w{word}" for word in row[2:]),
            }
            for row in rng.integers(3, 64, (60, 8))
        ]
        (storage / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = settings(storage, tiny_model) | {"reference": {"epochs": 1, "learning_rate": 1e-3}}
    (storage / "config.yaml").write_text(yaml.safe_dump(config))
    return [
        sys.executable,
        str(ROOT / "jobs" / "finetune.py"),
        "--config",
        str(storage / "config.yaml"),
    ]


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("jobs") / "whole"
    subprocess.run(command(storage, tiny_model), check=True, env=ENVIRONMENT, cwd=storage)
    return storage


def test_a_killed_driver_goes_on_with_the_same_numbers(
    tiny_model: Path, whole: Path, tmp_path: Path
) -> None:
    """``kill -9`` in the middle, and the same command again."""
    broken = command(tmp_path / "broken", tiny_model)
    process = subprocess.Popen(broken, env=ENVIRONMENT, cwd=tmp_path)
    log = tmp_path / "broken" / "test" / "finetune" / "adjustments.jsonl"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not (
        log.is_file() and len(log.read_text().splitlines()) > 3
    ):
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len(lines(tmp_path / "broken")) < STEPS // EVERY + 1, (
        "it was killed too late to show anything"
    )
    subprocess.run(broken, check=True, env=ENVIRONMENT, cwd=tmp_path)
    assert lines(tmp_path / "broken") == lines(whole)
    assert weights(tmp_path / "broken") == weights(whole)


def alone(storage: Path, ranks: int, run: str, *overrides: str) -> str:
    """The same without Ray, on the references that the job measured; what it printed."""
    launcher = (
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(ranks),
        ]
        if ranks > 1
        else [sys.executable]
    )
    given = [
        "--config",
        str(storage / "config.yaml"),
        f"reference.losses={storage}/test/reference/losses.json",
        f"run={run}",
        *overrides,
    ]
    command = [*launcher, "-m", "versatune_ray.training", *given]
    return subprocess.run(
        command, check=True, env=ENVIRONMENT, cwd=storage, capture_output=True, text=True
    ).stdout


def test_torchrun_gives_the_same_bits(whole: Path) -> None:
    assert alone(whole, 2, "two").strip() == str(whole / "two" / "finetune" / "model")
    assert lines(whole, "two") == lines(whole)
    assert weights(whole, "two") == weights(whole)


def test_another_number_of_ranks_gives_the_same_losses(whole: Path) -> None:
    """At a rate where rounding stays small: at the 0.01 of the other tests it shows after 30
    steps.
    """
    for ranks in (1, 2):
        alone(whole, ranks, f"calm-{ranks}", "training.learning_rate=0.001")
    for one, two in zip(lines(whole, "calm-1"), lines(whole, "calm-2"), strict=True):
        np.testing.assert_allclose(
            list(one["loss"].values()), list(two["loss"].values()), rtol=1e-4
        )
        np.testing.assert_allclose(
            list(one["share"].values()), list(two["share"].values()), rtol=1e-3
        )
    first, last = lines(whole, "calm-1")[0]["loss"], lines(whole, "calm-1")[-1]["loss"]
    assert all(last[name] < first[name] for name in NAMES)


def test_without_what_a_job_makes_first_it_is_named(whole: Path) -> None:
    given = ["--config", str(whole / "config.yaml"), "run=three"]
    done = subprocess.run(
        [sys.executable, "-m", "versatune_ray.training", *given],
        env=ENVIRONMENT,
        cwd=whole,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert (
        "losses.json; run jobs/reference.py with this configuration first" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def weights(storage: Path, run: str = "test") -> bytes:
    return (storage / run / "finetune" / "model" / "model.safetensors").read_bytes()
