"""What a run measures, read back from where it went; a run that goes on after a crash leaves no
step twice; no logger stops a run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_samples, write_store
from watched_runs import BATCH, EVERY, NAMES, RATE, STEPS, Broken, board, events, settings

from versatune_ray.domains import DomainPaths
from versatune_ray.settings import semantics
from versatune_ray.training import loggers
from versatune_ray.training.controller import WeightController
from versatune_ray.training.job import Job
from versatune_ray.training.local import LocalRuntime
from versatune_ray.training.loop import run
from versatune_ray.training.trainer import Trainer

Run = Callable[..., Path]


class Crash(Exception):
    pass


@pytest.fixture(scope="module")
def train(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``train(storage, metrics, crash_at)``: fine-tunes in this process; returns the ``finetune/``
    folder.
    """
    data = tmp_path_factory.mktemp("stores")
    paths = {
        name: DomainPaths(
            write_store(data / name, random_samples(seed, 40)),
            write_store(data / f"{name}-v", random_samples(seed + 9, 9)),
        )
        for seed, name in enumerate(NAMES)
    }

    def train(storage: Path, metrics: Sequence[str], crash_at: int | None = None) -> Path:
        config = settings(storage, tiny_model, metrics)
        stages = semantics.stages(config, NAMES, [40, 40], None, "nats/token")
        controller = WeightController(NAMES, stages, np.array([1.0, 2.0]), 60)
        folder = config.run_folder / "finetune"
        folder.mkdir(parents=True, exist_ok=True)
        job = Job(config, str(tiny_model), paths, stages, folder)
        host = LocalRuntime(job, controller, 0, 1, torch.device("cpu"))
        with pytest.MonkeyPatch.context() as patch:
            step = Trainer.step

            def crashing(self: Trainer, shares: Any, ahead: bool = False) -> float:
                if self.steps_done == crash_at:
                    raise Crash
                return step(self, shares, ahead)

            patch.setattr(Trainer, "step", crashing)
            run(job, host)
        host.finish()
        return folder

    return train


@pytest.fixture(scope="module")
def resumed(train: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that crashed twice: before its first checkpoint, and between two."""
    storage = tmp_path_factory.mktemp("resumed")
    for crash_at in (3, 13):
        with pytest.raises(Crash):
            train(storage, ["tensorboard"], crash_at)
    return train(storage, ["tensorboard"])


def test_every_step_stands_once_however_often_it_was_made(resumed: Path) -> None:
    shown = board(resumed / "tensorboard")
    for name in ("loss", "learning_rate", "gradient_norm", "step_seconds", "tokens_per_second"):
        assert [step for step, _ in shown[f"train/{name}"]] == list(range(1, STEPS + 1)), name
    assert "train/mfu" not in shown  # no peak is known of a CPU
    assert "train/peak_memory_gib" not in shown
    made = [
        event.step
        for event in events(resumed / "tensorboard")
        for value in event.summary.value
        if value.tag == "train/loss"
    ]
    assert len(made) > STEPS  # some were made twice


def test_rates_losses_and_tokens_are_those_of_the_steps(resumed: Path) -> None:
    shown = board(resumed / "tensorboard")
    expected = [
        (step, RATE * (1 + math.cos(math.pi * (step - 1) / STEPS)) / 2)
        for step in range(1, STEPS + 1)
    ]
    np.testing.assert_allclose(shown["train/learning_rate"], expected, rtol=1e-6)
    tokens = [
        a * b
        for (_, a), (_, b) in zip(
            shown["train/tokens_per_second"], shown["train/step_seconds"], strict=True
        )
    ]
    np.testing.assert_allclose(tokens, np.round(tokens), atol=1e-3)
    assert all(BATCH * 4 <= n <= BATCH * 19 for n in tokens)  # samples have 4 to 19 tokens
    # a random model over 64 tokens: ln 64 = 4.16
    assert all(3 < loss < 5 for _, loss in shown["train/loss"])
    # the mean over all tokens lies between those of the domains that were drawn
    for step, loss in shown["train/loss"]:
        domains = [
            value
            for name in NAMES
            for at, value in shown.get(f"step_loss/{name}", [])
            if at == step
        ]
        assert min(domains) - 1e-6 <= loss <= max(domains) + 1e-6


def test_adjustments_are_those_of_the_log(resumed: Path) -> None:
    shown = board(resumed / "tensorboard")
    log = [json.loads(line) for line in (resumed / "adjustments.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(0, STEPS + 1, EVERY))
    kinds = {
        kind: kind
        for kind in (
            "share",
            "loss",
            "train_loss",
            "learnable_potential",
            "forgetting_degree",
            "passes",
        )
    }
    for kind, key in (kinds | {"token_share": "token_share_achieved"}).items():
        for name in NAMES:
            expected = [(line["step"], line[key][name]) for line in log if line[key] is not None]
            np.testing.assert_allclose(shown[f"{kind}/{name}"], expected, rtol=1e-6, err_msg=kind)


def test_tensorboard_itself_shows_the_same(resumed: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(
        str(resumed / "tensorboard"), size_guidance={"scalars": 0}
    ).Reload()
    found = {
        tag: [(event.step, event.value) for event in shown.Scalars(tag)]
        for tag in shown.Tags()["scalars"]
    }
    assert found == board(resumed / "tensorboard")


def test_an_empty_list_leaves_nothing(train: Run, tmp_path: Path) -> None:
    assert not (train(tmp_path, []) / "tensorboard").exists()


def test_a_failing_sink_is_told_once_and_the_run_goes_on(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loggers._OPEN, "mlflow", lambda *_: Broken())
    told: list[str] = []
    monkeypatch.setattr(LocalRuntime, "warn", lambda self, text: told.append(text))
    folder = train(tmp_path, ["mlflow", "tensorboard"])
    assert len(board(folder / "tensorboard")["train/loss"]) == STEPS
    assert [text for text in told if "mlflow" in text] == [
        "training.metrics: mlflow: ConnectionError: no network; training goes on, and values may "
        "be missing there"
    ]


def test_wandb_offline_has_every_step_under_one_id(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(Crash):
        train(tmp_path, "wandb", 13)
    folder = train(tmp_path, "wandb")
    identity = (folder / "tracking_id").read_text()
    assert identity.startswith("watched-")
    runs = [path.name for path in (folder / "wandb").glob("offline-run-*")]
    assert runs
    assert all(name.endswith(identity) for name in runs)


def test_mlflow_has_every_step_once_in_one_run(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    for crash_at in (3, 13):
        with pytest.raises(Crash):
            train(tmp_path, "mlflow", crash_at)
    folder = train(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("versatune").experiment_id])
    assert (found.info.run_name, found.info.status) == ("watched", "FINISHED")
    assert found.data.params["training.learning_rate"] == str(RATE)
    assert [
        metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")
    ] == list(range(1, STEPS + 1))
    log = [json.loads(line) for line in (folder / "adjustments.jsonl").read_text().splitlines()]
    shares = [
        (metric.step, metric.value)
        for metric in client.get_metric_history(found.info.run_id, "share/law")
    ]
    np.testing.assert_allclose(shares, [(line["step"], line["share"]["law"]) for line in log])
