"""Storage in S3: jobs on machines that share no disk, killed and resumed, against a server on this
machine.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from conftest import SharedRay
from processes import call_job, finish_job, kill_job, start_job
from pydantic import BaseModel
from tiny import random_words
from transformers import AutoModelForCausalLM

server = pytest.importorskip("moto.server")

NAMES = ("law", "medicine", "code")
STEPS, EVERY = 60, 10


class Bucket:
    """An S3 server with one bucket, and how often what was read from it."""

    def __init__(self) -> None:
        self._server = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self._parameters = f"endpoint_override={host}:{port}&scheme=http"
        self.fs, _ = pyarrow.fs.FileSystem.from_uri(
            f"s3://bucket/?{self._parameters}&allow_bucket_creation=true"
        )
        self.fs.create_dir("bucket")
        self.reads: Counter[str] = Counter()
        log, counter = logging.getLogger("werkzeug"), logging.Handler()
        counter.emit = self._count  # type: ignore[method-assign]
        log.handlers, log.propagate = [counter], False
        log.setLevel(logging.INFO)

    def uri(self, prefix: str) -> str:
        return f"s3://bucket/{prefix}?{self._parameters}"

    def read(self, path: str) -> bytes:
        try:
            with self.fs.open_input_file(f"bucket/{path}") as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return b""

    def files(self, prefix: str) -> list[str]:
        found = self.fs.get_file_info(pyarrow.fs.FileSelector(f"bucket/{prefix}", recursive=True))
        return [
            info.path.removeprefix("bucket/")
            for info in found
            if info.type == pyarrow.fs.FileType.File
        ]

    def stop(self) -> None:
        self._server.stop()

    def _count(self, record: logging.LogRecord) -> None:
        found = re.search(r"GET /bucket/([^? ]+) ", record.getMessage())
        if found:
            self.reads[found[1]] += 1


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    keys = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hidden-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in keys.items():
            environment.setenv(name, value)
        made = Bucket()
        yield made
        made.stop()


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A fine-tuning of a minute, but for its storage."""
    folder = tmp_path_factory.mktemp("data")
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
        "model": {"path": str(tiny_model)},
        "data": {"max_length": 64},
        "domains": random_words(folder, NAMES),
        "mixture": {"start": "uniform", "sigma": 2.0},
        "reference": {"epochs": 1, "learning_rate": 1e-3, "workers": 2},
        "training": training,
    }


class Given(BaseModel):
    """As ``ray.data.llm`` is given an engine."""

    model_source: str
    engine_kwargs: dict[str, int]


def numbers(log: bytes | str) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in json.loads(line).items() if key != "seconds"}
        for line in log.splitlines()
    ]


@pytest.fixture(scope="module")
def expected(
    job: dict[str, Any], shared_ray: SharedRay, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the job leaves in a local folder."""
    folder = tmp_path_factory.mktemp("local")
    shared_ray.start()
    call_job(job | {"reference": job["reference"] | {"workers": 1}}, "finetune.py", folder)
    return folder / "runs" / "test" / "finetune"


def test_an_engine_brings_its_model_to_the_machine_that_it_starts_on(
    bucket: Bucket, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from versatune_ray.runs import storage
    from versatune_ray.runtime import engine
    from versatune_ray.settings import Engine, location

    def staff(model: str) -> Any:
        return engine.vllm_stage(
            model, Engine(), lambda row: row, lambda row: row, gpu=False, trust_remote_code=False
        )._hire()

    monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / "a"))
    model = location.root(bucket.uri("engine")) / "run" / "model"
    shutil.copytree(tiny_model, model)
    storage.push(model)
    local, mirrored = staff(str(tiny_model)), staff(str(model))
    assert mirrored.options == local.options and mirrored.replicas == local.replicas == (1, 1)
    assert mirrored.make.keywords["fetched"] and not local.make.keywords["fetched"]

    class StandIn:
        def __init__(self, model_source: str, engine_kwargs: dict[str, int]):
            self.model, self.options = model_source, engine_kwargs

    # in vLLM's place: what it would be built of
    monkeypatch.setattr(
        engine,
        "engine_stage",
        lambda config: (StandIn, {"fn_constructor_kwargs": config.model_dump()}),
    )
    monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / "b"))
    given = Given(model_source=str(model), engine_kwargs={"other": 1})
    started = engine.started(given, fetched=True, own_seeds=False)
    assert started.options == {"other": 1} and started.model == str(storage.here(model)) != str(
        model
    )
    AutoModelForCausalLM.from_pretrained(started.model)


def test_a_job_on_machines_without_a_shared_disk_gives_the_same_numbers(
    bucket: Bucket,
    job: dict[str, Any],
    expected: Path,
    no_ray: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All work is done on one machine, the job itself runs on another."""
    import ray
    from ray.cluster_utils import Cluster

    from versatune_ray.pipeline import Run
    from versatune_ray.runs.folder import RunFolder
    from versatune_ray.settings.loading import parse

    temporary = tempfile.mkdtemp(prefix="vt")
    monkeypatch.setenv("TMPDIR", temporary)
    monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / "driver"))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / "worker"))
        cluster.add_node(num_cpus=4)
        monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / "driver"))
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        config = parse(job | {"storage": bucket.uri("two")})
        with RunFolder(config) as folder:
            model = Run(folder).finetune()
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
    assert model.is_relative_to(tmp_path / "driver")
    AutoModelForCausalLM.from_pretrained(model)
    assert numbers(bucket.read("two/test/finetune/adjustments.jsonl")) == numbers(
        (expected / "adjustments.jsonl").read_text()
    )
    assert (
        bucket.read("two/test/finetune/model/model.safetensors")
        == (expected / "model" / "model.safetensors").read_bytes()
    )
    stores = [name for name in bucket.files("two/.cache/tokens") if name.endswith(".tokens.npy")]
    assert len(stores) == len(NAMES)
    for name in stores:  # by two workers that measure references and two that train
        assert bucket.reads[name] == 1, bucket.reads
    for name in bucket.files("two"):
        assert b"hidden-secret" not in bucket.read(name)
    for name in ("config.yaml", "data.json", "reference/losses.json", "finetune/inputs.json"):
        assert b"endpoint_override" not in bucket.read(f"two/test/{name}")


@pytest.mark.slow
def test_a_job_that_was_killed_goes_on_from_another_machine(
    bucket: Bucket, job: dict[str, Any], expected: Path, tmp_path: Path
) -> None:
    storage = f"storage={bucket.uri('killed')}"
    log, other = "killed/test/finetune/adjustments.jsonl", str(tmp_path / "b")
    process = start_job(job, "finetune.py", tmp_path, storage, VERSATUNE_WORK=str(tmp_path / "a"))
    printed = kill_job(process, lambda: len(bucket.read(log).splitlines()) > 3)
    assert 3 < len(numbers(bucket.read(log))) < STEPS // EVERY + 1, printed

    refused = start_job(job, "finetune.py", tmp_path, storage, VERSATUNE_WORK=other)
    assert f"run 'test' is in use by process {process.pid} on" in finish_job(refused, status=2)
    bucket.fs.delete_file("bucket/killed/test/.owner.json")  # rather than wait until it is stale

    bucket.reads.clear()
    printed = finish_job(start_job(job, "finetune.py", tmp_path, storage, VERSATUNE_WORK=other))
    assert "[reference losses] reused" in printed and printed.endswith(
        "s3://bucket/killed/test/finetune/model\n"
    )
    assert "endpoint_override" not in printed and "hidden-secret" not in printed
    assert numbers(bucket.read(log)) == numbers((expected / "adjustments.jsonl").read_text())
    assert (
        bucket.read("killed/test/finetune/model/model.safetensors")
        == (expected / "model" / "model.safetensors").read_bytes()
    )


@pytest.mark.parametrize("wrong", ["bucket", "server"])
def test_a_storage_that_is_not_there_is_told_before_anything_starts(
    bucket: Bucket,
    job: dict[str, Any],
    tmp_path: Path,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / "a"))
    storage = (
        bucket.uri("x").replace("bucket/", "nobucket/")
        if wrong == "bucket"
        else "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http"
    )
    printed = call_job(job, "finetune.py", tmp_path, f"storage={storage}", status=2)
    said = {
        "bucket": "storage: s3://nobucket/x cannot be used: .*NO_SUCH_BUCKET",
        "server": "storage: s3://bucket/x cannot be used: .*NETWORK",
    }
    assert len(printed.splitlines()) == 1 and re.search(said[wrong], printed), printed
