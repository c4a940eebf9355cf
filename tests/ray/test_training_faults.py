"""One run on a cluster of several nodes that meets every fault in turn: it finishes by itself, with
the log of an undisturbed one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import SharedRay
from processes import wait_until
from tiny import write_stores

from versatune_ray.errors import Incomplete, UserError
from versatune_ray.runtime.cluster import check_storage
from versatune_ray.runtime.progress import Display
from versatune_ray.settings.loading import parse
from versatune_ray.training.finetune import finetune

NAMES = ("law", "medicine", "code")
STEPS, EVERY, TIMEOUT = 400, 40, 8


class Machines:
    """A head without room for workers' nodes of one CPU each, so that every worker has a node to
    itself.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # Not at exit but by ``machines``: Ray's hooks for that cannot be set outside the main
        # thread, where new nodes come.
        self.cluster = Cluster(
            initialize_head=True,
            shutdown_at_exit=False,
            head_node_args={"num_cpus": 1, "include_dashboard": False},
        )
        self.nodes = [self.cluster.add_node(num_cpus=1)]

    def lose(self) -> None:
        """The newest node dies without a word; another one comes."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def preempt(self) -> None:
        """The newest node is told that it will go, and goes; another one comes."""
        import ray

        last = self.nodes.pop()
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        command = [
            str(Path(sys.executable).with_name("ray")),
            "drain-node",
            "--address",
            self.cluster.address,
            "--node-id",
            last.node_id,
        ]
        reason = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            "1",
        ]
        subprocess.run([*command, *reason], check=True, capture_output=True)
        assert ray.is_initialized()
        time.sleep(1)
        self.cluster.remove_node(last, allow_graceful=False)


def processes(title: str) -> dict[int, float]:
    """When the processes of this test's cluster with ``title`` in their command lines began, by
    number, the newest last.
    """
    found = {}
    for one in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have ended just now
            if title in " ".join(one.cmdline()):
                found[one.pid] = one.create_time()
    return dict(sorted(found.items(), key=lambda item: item[1]))


def process(title: str) -> psutil.Process:
    return psutil.Process(list(processes(title))[-1])


@pytest.fixture(scope="module")
def machines(shared_ray: SharedRay) -> Iterator[Machines]:
    import ray

    shared_ray.stop()
    folder = tempfile.mkdtemp(prefix="vt")
    before = os.environ.get("TMPDIR")
    os.environ |= {"TMPDIR": folder, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
    machines = Machines()
    ray.init(
        address=machines.cluster.address,
        logging_level="ERROR",
        log_to_driver=bool(os.environ.get("SHOW")),
    )
    try:
        yield machines
    finally:
        ray.shutdown()
        machines.cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        del os.environ["TMPDIR"], os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]
        if before is not None:
            os.environ["TMPDIR"] = before


def test_a_storage_that_another_machine_does_not_see_is_refused(
    machines: Machines, tmp_path: Path
) -> None:
    """A machine by its host's name, and by an empty folder over that of this one."""
    import ray

    apart = ["unshare", "--map-root-user", "--uts", "--mount"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    ours, shared = tmp_path / "ours", tmp_path / "shared"
    for folder in (ours, shared):
        folder.mkdir()
        check_storage(folder)  # all nodes are this machine's
    start = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=0"]
    script = f'hostname elsewhere && mount -t tmpfs none "{ours}" && exec "$@"'
    other = subprocess.Popen(
        [*apart, "sh", "-c", script, "sh", *start, f"--address={machines.cluster.address}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def hosts() -> list[str]:
        return [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]

    try:
        assert wait_until(lambda: "elsewhere" in hosts(), 60)
        check_storage(shared)
        with pytest.raises(UserError, match=rf"storage: {ours} is another folder on elsewhere"):
            check_storage(ours)
        assert list(ours.iterdir()) == list(shared.iterdir()) == []
    finally:
        other.terminate()
        other.wait()
    assert wait_until(lambda: "elsewhere" not in hosts(), 60)


@pytest.fixture(scope="module")
def tune(
    machines: Machines, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("faults")
    paths = write_stores(folder, NAMES, 40, 9)
    reference = {
        "domains": {name: {"loss": loss} for name, loss in zip(NAMES, (1.0, 2.0, 4.0), strict=True)}
    }

    def run(
        name: str, faults: list[Callable[[], None]], workers: Any = 2, model: Path = tiny_model
    ) -> list[dict[str, Any]]:
        """The log without its timings; each of ``faults`` happens after one more adjustment."""
        config = parse(
            {
                "run": name,
                "storage": str(folder),
                "model": {"path": str(model)},
                "domains": {name: f"{folder}/{name}.jsonl" for name in NAMES},
                "mixture": {"start": "uniform", "sigma": 2.0},
                "training": {
                    "workers": workers,
                    "epochs": 1,
                    "samples_per_epoch": STEPS * 8,
                    "batch_size": 8,
                    "learning_rate": 1e-3,
                    "adjust_every": EVERY,
                    "exchange_timeout": TIMEOUT,
                    "max_failures": 8,
                },
            }
        )
        log = folder / name / "finetune" / "adjustments.jsonl"
        happened, failed = [], []
        ended = threading.Event()

        def in_midst(lines: int, gone: set[int]) -> bool:
            """Workers that none of ``gone`` is among have logged since they began, and the log is
            longer than ``lines``.
            """
            workers = processes("RayTrainWorker")
            if not workers or gone & workers.keys() or not log.is_file():
                return False
            return (
                log.stat().st_mtime > max(workers.values())
                and len(log.read_text().splitlines()) > lines
            )

        def watch() -> None:
            gone: set[int] = set()
            for place, fault in enumerate(faults, 2):
                if not wait_until(
                    lambda place=place, gone=gone: ended.is_set() or in_midst(place, gone),
                    120,
                    every=0.02,
                ):
                    return
                if ended.is_set():
                    return
                gone |= processes("RayTrainWorker").keys()
                try:
                    fault()
                except Exception as error:
                    failed.append(error)
                    return
                happened.append(fault)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            with Display():
                finetune(config, str(model), paths, None, reference, "nats/token", gpu=False)
        finally:
            ended.set()
            thread.join()
        assert happened == faults, failed
        return [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in log.read_text().splitlines()
        ]

    return run


@pytest.fixture(scope="module")
def undisturbed(tune: Callable[..., list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return tune("undisturbed", [])


@pytest.mark.parametrize(
    "which",
    [
        ("controller", "hang"),
        # a worker that dies, alone or with its node, costs an attempt as a hanging one does
        pytest.param(
            ("worker", "controller", "node", "preemption", "hang"), marks=pytest.mark.slow
        ),
    ],
    ids=len,
)
def test_no_fault_costs_a_decision_or_repeats_one(
    which: tuple[str, ...],
    machines: Machines,
    tune: Callable[..., list[dict[str, Any]]],
    undisturbed: list[dict[str, Any]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    stopped: list[psutil.Process] = []

    def hang() -> None:
        stopped.append(process("RayTrainWorker"))
        stopped[0].send_signal(signal.SIGSTOP)

    def kill_worker() -> None:
        process("RayTrainWorker").kill()

    def kill_controller() -> None:
        process("WeightController").kill()

    faults = {
        "worker": kill_worker,
        "controller": kill_controller,
        "node": machines.lose,
        "preemption": machines.preempt,
        "hang": hang,
    }
    log = tune(f"disturbed-by-{len(which)}", [faults[one] for one in which])
    assert [line["step"] for line in log] == list(range(0, STEPS + 1, EVERY))
    assert log == undisturbed
    told = [
        line for line in capfd.readouterr().out.splitlines() if re.search(r"failure \d+: ", line)
    ]
    # a node that goes can cost an attempt when it is announced and another when it is gone
    assert len(told) >= len(which), told
    assert re.search(rf"no word from rank\(s\) [01] within {TIMEOUT} s", told[-1]), told
    assert not stopped[0].is_running() or stopped[0].status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_with_a_range_of_workers_the_run_goes_on_with_those_that_are_left(
    machines: Machines, tune: Callable[..., list[dict[str, Any]]], undisturbed: list[dict[str, Any]]
) -> None:
    log = tune(
        "elastic",
        [lambda: machines.cluster.remove_node(machines.nodes.pop(), allow_graceful=False)],
        workers=[1, 2],
    )
    assert [line["step"] for line in log] == [line["step"] for line in undisturbed]
    for one, other in zip(log, undisturbed, strict=True):
        np.testing.assert_allclose(
            list(one["loss"].values()), list(other["loss"].values()), rtol=1e-4
        )
        assert one["share_achieved"] == other["share_achieved"] or one["step"] > EVERY


def test_a_loss_that_is_no_number_stops_the_run_at_once(
    tune: Callable[..., Any], tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_model, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(
        Incomplete, match=r"adjustment at step 0: .*law.*nan.*; the last checkpoint is intact"
    ):
        tune("nan", [], workers=1, model=tmp_path / "model")
    assert "failure 1:" not in capfd.readouterr().out, "no second try"
