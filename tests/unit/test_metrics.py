"""What a run measures, read back from where it went; a run that goes on after a crash leaves no
step twice; no logger stops a run.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_samples, write_store

from versatune_ray.domains import DomainPaths
from versatune_ray.errors import UserError
from versatune_ray.runs.folder import RunFolder
from versatune_ray.settings import Config, semantics
from versatune_ray.settings.loading import changed_keys, parse
from versatune_ray.training import loggers
from versatune_ray.training.controller import WeightController
from versatune_ray.training.local import LocalRuntime
from versatune_ray.training.loggers import Background, MetricLogger, Row
from versatune_ray.training.loop import Job, run
from versatune_ray.training.metrics import Work, peak_flops
from versatune_ray.training.model import load_model, with_frozen
from versatune_ray.training.trainer import Trainer

NAMES = ("law", "code")
STEPS, EVERY, BATCH, RATE = 20, 5, 8, 1e-3
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


def settings(storage: Path, model: Path, metrics: Any) -> Config:
    training = {
        "epochs": 1,
        "samples_per_epoch": STEPS * BATCH,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "warmup": 0,
        "metrics": metrics,
    }
    return parse(
        {
            "run": "watched",
            "storage": str(storage),
            "model": {"path": str(model)},
            "data": {"max_length": 64},
            "domains": {name: f"{storage}/{name}.jsonl" for name in NAMES},
            "mixture": {"start": "uniform"},
            "training": training | {"workers": 1, "adjust_every": EVERY},
        }
    )


def events(folder: Path) -> Iterator[Any]:
    """Records of all event files in the order of their names; each is a length, its checksum, an
    event, its checksum.
    """
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.out.tfevents.*")):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += length + 16


def board(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) pairs by tag as TensorBoard shows them: a start takes back what earlier files
    say of its step and later ones.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        if event.session_log.status == event.session_log.START:
            found = {
                tag: [pair for pair in pairs if pair[0] < event.step]
                for tag, pairs in found.items()
            }
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


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


def test_one_name_is_a_list_of_one_and_a_resumed_run_may_change_it(tmp_path: Path) -> None:
    config = settings(tmp_path, tmp_path, "wandb")
    assert config.training.metrics == ["wandb"]
    assert Config().training.metrics == ["tensorboard"]
    other = settings(tmp_path, tmp_path, [])
    assert list(changed_keys(config, other))
    with RunFolder(config):
        (config.run_folder / "finetune").mkdir()
        (config.run_folder / "finetune" / "inputs.json").write_text("{}")
    with RunFolder(other):
        pass
    with pytest.raises(UserError, match=r"training\.metrics.*'mail' is not valid"):
        settings(tmp_path, tmp_path, ["mail"])


def test_the_work_of_a_step_by_hand(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    # Two layers of four 32 × 32 matrices, three 32 × 64 ones and two norms, and a norm at the end;
    # an output embedding of 64 × 32.
    weights, head, width = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32, 64 * 32, 2 * 2 * 16
    lengths, responses = np.array([3, 5]), np.array([1, 2])
    work = Work.of(model)
    assert work.flops(lengths, responses) == 6 * weights * 8 + 6 * width * (9 + 25) + 6 * head * 3
    settings_ = parse({"training": {"lora": {"rank": 4, "targets": ["q_proj"]}}}).training
    model = with_frozen(load_model(str(tiny_model)), settings_, 0)
    lora = 2 * (4 * 32 + 32 * 4)
    assert Work.of(model).flops(lengths, responses) == (
        (4 * (weights + lora) + 2 * lora) * 8 + 6 * width * (9 + 25) + 4 * head * 3
    )
    model = with_frozen(
        load_model(str(tiny_model)),
        parse({"training": {"trainable": {"layers": 1, "modules": "up_proj"}}}).training,
        0,
    )
    layer, trained = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32, 32 * 64
    # Nothing goes back through the first layer: half of the attention's backward pass is left, and
    # 2 of 4 operations per weight there.
    assert Work.of(model).flops(lengths, responses) == (
        (4 * weights - 2 * layer + 2 * trained) * 8 + 4 * width * (9 + 25) + 4 * head * 3
    )


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_a_missing_package_is_told_before_training_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantics, "find_spec", lambda name: None)
    config = settings(tmp_path, tmp_path, ["tensorboard", "wandb"])
    with pytest.raises(
        UserError, match=r"^training\.metrics: wandb is not installed; pip install wandb$"
    ):
        semantics.check(config, NAMES)


class Broken:
    """A logger whose every call fails."""

    def write(self, rows: Sequence[Row]) -> None:
        raise ConnectionError("no network")

    def close(self, failed: bool) -> None:
        raise ConnectionError("no network")


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


def test_a_hanging_sink_does_not_hold_a_run_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "_PATIENCE", 0.05)
    release, told = threading.Event(), list[str]()

    class Hanging(Broken):
        def write(self, rows: Sequence[Row]) -> None:
            release.wait(20)

    logger = Background("slow", Hanging(), told.append)
    logger.put(Row(1, 0.0, {}))
    for _ in range(3):
        logger.flush()
    logger.close(failed=False)
    assert len(told) == 1
    assert "nothing written within 0.05 s" in told[0]
    release.set()


def test_flush_waits_for_what_was_put_before() -> None:
    seen: list[int] = []

    class Slow:
        def write(self, rows: Sequence[Row]) -> None:
            seen.extend(row.step for row in rows)

        def close(self, failed: bool) -> None:
            seen.append(-int(failed))

    logger = Background("slow", Slow(), pytest.fail)
    for step in range(1, 50):
        logger.put(Row(step, 0.0, {}))
        logger.flush()
        assert seen == list(range(1, step + 1))
    logger.close(failed=True)
    assert seen[-1] == -1


def test_a_tracker_out_of_reach_stops_a_fresh_run_but_not_one_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any) -> MetricLogger:
        raise ConnectionError("no answer")

    monkeypatch.setitem(loggers._OPEN, "mlflow", unreachable)
    config, told = settings(tmp_path, tmp_path, ["mlflow", "tensorboard"]), list[str]()
    with pytest.raises(UserError, match=r"training\.metrics: mlflow: ConnectionError: no answer"):
        loggers.open_loggers(config, tmp_path, 0, told.append)
    assert list(loggers.open_loggers(config, tmp_path, 8, told.append)) == ["tensorboard"]
    assert told == [
        "training.metrics: mlflow: ConnectionError: no answer; training goes on without it"
    ]


def test_wandb_takes_its_key_from_the_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WANDB_API_KEY is not in the environment"):
        loggers.open_loggers(settings(tmp_path, tmp_path, "wandb"), tmp_path, 0, print)


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
