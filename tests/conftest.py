"""What several tests share: one Ray and one random tiny model per test process, two domains of
random samples; the files that take longest come first.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "token")
# as in a Ray that a job starts for itself: tests report nothing either, and spare an actor for it
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A thread each: tests run beside each other, and ranks too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's own 15 would let its workers starve beside tests that need none, and beside a busy machine.
os.environ.setdefault("RAY_worker_niceness", "0")
# In the process itself: to start one that compiles takes longer than what there is to compile.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

from processes import ROOT, call_job, finish_job, kill_job, patience, start_job
from tiny import random_llama, random_samples, word_tokenizer, write_store, write_stores

if TYPE_CHECKING:
    from versatune_ray.domains import DomainData

# helpers that assert: what differs is told as in a test
pytest.register_assert_rewrite("detect_jobs", "judge_server", "report_runs")

__all__ = [
    "ROOT",
    "call_job",
    "finish_job",
    "kill_job",
    "patience",
    "random_samples",
    "start_job",
    "write_store",
]

# The files that take longest, in this order: xdist hands them out as they come, and what is left at
# the end should be short.
_LONGEST = (
    "vllm/test_pipeline.py",
    "ray/test_training_faults.py",
    "vllm/test_detect_job.py",
    "ray/test_finetune.py",
    "ray/test_sweep.py",
    "vllm/test_evaluate_job.py",
    "ray/test_storage_s3.py",
    "vllm/test_judge_endpoint.py",
    "ray/test_api.py",
    "ray/test_token_store.py",
    "ray/test_group.py",
    "ray/test_metrics_endpoint.py",
    "ray/test_reference.py",
    "ray/test_pool_actors.py",
    "ray/test_parts.py",
    "ray/test_plugin.py",
    "unit/test_training_ranks.py",
    "unit/test_training_together.py",
    "unit/test_training_memory.py",
    "unit/test_training_trainer.py",
    "unit/test_training_sharded.py",
    "unit/test_attention_contract.py",
    "unit/test_training_optimizer.py",
    "unit/test_bare_machine.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = "/".join(item.path.parts[-2:])
        return _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=place)  # stable: files stay together


class SharedRay:
    """A Ray as a job starts it for itself, which all jobs that a test process calls find running;
    gone afterwards with all its files, those of killed workers included.
    """

    def __init__(self) -> None:
        self._folder: str | None = None

    def start(self) -> None:
        import ray

        if self._folder is not None and ray.is_initialized():
            return
        self.stop()  # a test may have ended it
        from versatune_ray.errors import UserError
        from versatune_ray.runtime.cluster import connect

        before = dict(os.environ)
        # Ray's own 10 s between reports are long to wait
        os.environ.update(RAY_ADDRESS="local", RAY_metrics_report_interval_ms="2000")
        try:
            for tries_left in (2, 1, 0):
                try:
                    connect()
                    break
                except UserError:  # a busy machine: "run the same command again"
                    if not tries_left:
                        raise
            self._folder = os.environ["TMPDIR"]
        finally:
            os.environ.clear()
            os.environ.update(before)
            logging.disable(logging.NOTSET)  # a test may count what another logs
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"

    def stop(self) -> None:
        """For a test that needs another cluster; the next ``start`` begins anew."""
        if self._folder is not None:
            import ray

            ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            del os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"]


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[SharedRay]:
    one = SharedRay()
    yield one
    one.stop()


@pytest.fixture
def ray_cluster(shared_ray: SharedRay) -> None:
    """A Ray is running."""
    shared_ray.start()


@pytest.fixture
def no_ray(shared_ray: SharedRay) -> None:
    """None is running: the test starts a cluster of its own."""
    shared_ray.stop()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama over 64 tokens with a tokenizer: an ordinary model folder."""
    folder = tmp_path_factory.mktemp("models") / "random-llama"
    random_llama(folder, hidden_size=32, max_position_embeddings=64, tie_word_embeddings=True)
    word_tokenizer(folder, ["<s>", "</s>", "<pad>", *(f"w{i}" for i in range(3, 64))])
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[DomainData]:
    """Two domains, each of 30 random samples to train on and 7 held out."""
    from versatune_ray.domains import load_domains
    from versatune_ray.settings import Data

    paths = write_stores(tmp_path_factory.mktemp("stores"), ("law", "code"), 30, 7)
    return list(load_domains(paths, Data()).values())


@pytest.fixture
def no_group_is_left() -> Iterator[None]:
    """A process group of one rank, which a sharded trainer begins by itself, ends with the test."""
    yield
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(params=["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What compiles: what is traced, and how often, is the same for a backend that makes no code,
    which takes seconds; the one that runs write in C++ takes minutes, and is a drill.
    """
    import functools

    import torch

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=request.param))
    # 8 is torch's own
    with torch._dynamo.config.patch(recompile_limit=2 if request.param == "eager" else 8):
        yield request.param
