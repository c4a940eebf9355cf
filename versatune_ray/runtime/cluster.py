"""Joining the Ray cluster at hand, or starting a small one that ends with this process."""

from __future__ import annotations

import atexit
import logging
import os
import platform
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from versatune_ray.errors import UserError
from versatune_ray.settings.location import is_mirrored

# of what Ray says where its own processes take longer than it waits
_SLOW = ("timed out during startup", "Failed to connect to GCS")


def connect(verbose: bool = False) -> None:
    """Join the cluster named by ``RAY_ADDRESS`` or made by ``ray start`` on this machine; else
    start one for this process alone.

    Token authentication stays on. A cluster that was not started here is never stopped. With
    ``verbose``, the workers' logs are shown.

    Raises:
        UserError: Ray does not start on a machine that has too much to do.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        return
    environment = {"TOKENIZERS_PARALLELISM": "false"} | (
        {} if verbose else {"VLLM_LOGGING_LEVEL": "ERROR"}
    )
    options: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "log_to_driver": verbose}
    if not verbose:
        options["logging_level"] = logging.WARNING
    address = _running()
    if address is not None:
        with without_own_echo():
            ray.init(address=address, **options)
    else:
        # short: Ray puts sockets in it, whose paths must stay under 107 bytes
        folder = tempfile.mkdtemp(prefix="versatune-ray-")
        # A process less per job: what Ray would report of it stays here. And one per training:
        # nobody takes this machine away.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # what workers and engines leave behind, such as vLLM's sockets, goes with it
        os.environ["TMPDIR"] = folder

        def stop() -> None:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)

        atexit.register(stop)  # before the start, which may fail
        # Ray's CPUs are logical: with fewer than four, a data stage and a worker group can wait for
        # each other for ever.
        options |= {"num_cpus": max(4, os.cpu_count() or 1), "include_dashboard": False}
        with without_own_echo():
            _start(folder, options)
    if not verbose:
        _quiet()


@contextmanager
def without_own_echo() -> Iterator[None]:
    """Ray's C++ says on the screen which log level it was told, before it heeds it: that line is
    left out of what goes to standard error meanwhile. All others come at the end.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            for line in said:
                if b"environment variable RAY_BACKEND_LOG_LEVEL" not in line:
                    os.write(2, line)


def _start(folder: str, options: dict[str, Any]) -> None:
    """Ray waits 30 s for its processes and no longer: a machine with much to do is asked again.

    Raises:
        UserError: it does not start within minutes.
    """
    import ray

    for last in (False, False, True):
        try:
            ray.init("local", _temp_dir=folder, **options)
        except Exception as error:  # Ray has no class for it
            if not any(words in str(error) for words in _SLOW):
                raise
            ray.shutdown()
            _end_processes(folder)
            if last:
                busy = f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs"
                raise UserError(
                    f"Ray did not start within 90 s ({busy}); run the same command again when this "
                    f"machine has less to do"
                ) from None
        else:
            return


def _end_processes(folder: str) -> None:
    """Kill what a failed start left running: Ray forgets it, and it takes CPU from the next."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may have ended just now
            if folder in " ".join(child.cmdline()):
                child.kill()


def _running() -> str | None:
    """The cluster that ``RAY_ADDRESS`` names or ``ray start`` made here, or None."""
    from versatune_ray.runtime.private_ray import started_here

    named = os.environ.get("RAY_ADDRESS")
    if named:
        return None if named == "local" else named
    return started_here()


def _quiet() -> None:
    """Our own bars say in one line what Ray Data and Ray Train log in many."""
    import ray.data
    import ray.train

    from versatune_ray.runtime.private_ray import without_count_of_workers

    without_count_of_workers()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.tune"):
        # their errors are raised too, or told by us, in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # ``ray.data.llm`` calls ``ray.init`` again in whatever thread builds an engine
    logging.getLogger("ray._private.worker").addFilter(
        lambda record: "SIGTERM handler is not set" not in record.getMessage()
    )
    logging.disable(logging.INFO)


def check_storage(folder: Path) -> None:
    """Whether the machines that are in the cluster by now work in the same ``folder`` as this one.

    Raises:
        UserError: some do not; their files would be missed here, and ours there.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    others = {
        node["NodeManagerHostname"]: node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["NodeManagerHostname"] != platform.node()
    }
    if not others or is_mirrored(folder):
        return
    seen = ray.remote(num_cpus=0, max_retries=0)(_is_there)
    probe = folder / f".seen-{uuid.uuid4().hex[:8]}"
    probe.touch()
    try:
        asked = {
            host: seen.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(str(probe))
            for host, node in others.items()
        }
        lost = [host for host, answer in asked.items() if not ray.get(answer, timeout=120)]
    finally:
        probe.unlink()
    if lost:
        raise UserError(
            f"storage: {folder} is another folder on {', '.join(lost[:3])} than here; take one "
            f"that all machines share, or a bucket (storage=s3://bucket/prefix)"
        )


def _is_there(path: str) -> bool:
    return Path(path).is_file()


def beside_the_driver() -> Any:
    """Scheduling of an actor that has to live as long as the driver: on its node, which is not lost
    without it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def use_gpus(device: str) -> bool:
    """What ``device`` means here: ``auto`` looks at the GPUs that are there now, which an
    autoscaling cluster may not have yet.
    """
    import ray

    return device == "cuda" or (
        device == "auto" and float(ray.cluster_resources().get("GPU", 0)) > 0
    )


def gpus_here(device: str) -> bool:
    """``use_gpus`` where there is no cluster: ``auto`` looks at this machine."""
    if device != "auto":
        return device == "cuda"
    import torch

    return torch.cuda.is_available()


def fitting(wanted: int, cpus: int, gpu: bool, device: str) -> int:
    """How many of ``wanted`` workers of ``cpus`` CPUs, and a GPU each if ``gpu``, fit at once, at
    least 1.

    With ``device: cuda`` the cluster may grow, so all are asked for.
    """
    import ray

    if device == "cuda":
        return wanted
    there = ray.cluster_resources()
    room = there.get("CPU", 0) // cpus
    return max(1, int(min(wanted, room, there.get("GPU", 0) if gpu else wanted)))
