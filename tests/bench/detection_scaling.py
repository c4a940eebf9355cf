"""Orchestration scales: samples per second per engine replica with many replicas over one replica,
on simulated nodes.

usage: python tests/bench/detection_scaling.py [--quick]        (--quick: 1 and 4 replicas, short
service)

A STAND-IN TAKES VLLM'S PLACE: the product's own ``vllm_stage`` builds plan and pool (preprocess,
actors, concurrency, batches, resources, postprocess), and only the class that holds the engine is
exchanged for one that sleeps a fixed time per batch and returns text and token ids of a real
length. What is measured is all around the engine: the real ``generate``, Ray Data's driver, its map
tasks, rows, parts on disk, with actors on several raylets (``ray.cluster_utils.Cluster``) that here
share one machine.

Service: ``BATCH`` rows in ``SERVICE`` seconds with 4 batches in flight. An H100 takes 30 to 60 s
for 128 sequences of 1,024 tokens with 4 in flight, 0.07 to 0.13 batches/s; a stand-in finishes 0.4
batches/s. So 32 of them ask of the driver what about 100 to 180 H100s would. Shorter services
measure the CPU time that raylets, tasks and driver of this one machine share, not the
orchestration. ``replicas: [n, n]`` avoids the ramp of autoscaling, and no stand-in answers before
all are there. Slots start at spread-out times, as engines do. Steady state: parts finishing between
20 % and 80 % of all, by their times on disk; ideal is batches in flight / service.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import common

GOAL = 0.9
REPLICAS = (1, 2, 4, 8, 16, 32)
SERVICE, BATCH, IN_FLIGHT = 10.0, 32, 4
WAVES = 5  # batches per slot
TOKENS = 256
NODES = 4
QUICK: dict[str, Any] = {"replicas": (1, 4), "service": 2.0, "nodes": 2, "probe": 40}
WAIT = 300.0  # for all replicas to be there, seconds


def stand_in(service: float, replicas: int, folder: Path) -> type:
    """The class in vLLM's place; it says in ``folder`` that it is there."""
    import asyncio

    from ray.llm._internal.batch.stages.base import StatefulStageUDF

    tokens = list(range(3, 3 + TOKENS))
    text = "The substance brelox melts at 420 degrees. " * (4 * TOKENS // 44)

    class StandIn(StatefulStageUDF):
        def __init__(self, data_column: str, expected_input_keys: list[str], **engine: Any):
            super().__init__(data_column, expected_input_keys)
            self.begun = 0
            (folder / f"{os.getpid()}.there").touch()

        async def udf(self, rows: list[dict[str, Any]]) -> Any:
            place, self.begun = self.begun, self.begun + 1
            if place < IN_FLIGHT:
                deadline = time.monotonic() + WAIT
                while len(list(folder.glob("*.there"))) < replicas:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{replicas} replicas are not there after {WAIT:.0f} s")
                    await asyncio.sleep(0.5)
                await asyncio.sleep(service * (place + os.getpid() % 97 / 97) / IN_FLIGHT)
            await asyncio.sleep(service)
            for row in rows:
                yield {
                    self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN],
                    "generated_tokens": tokens,
                    "generated_text": text,
                    "num_generated_tokens": TOKENS,
                    "__inference_error__": "",
                }

    return StandIn


def scales(given: dict[str, Any]) -> Any:
    """All numbers of replicas, one after another on the same simulated nodes."""
    os.environ["RAY_prestart_worker_first_driver"] = "0"  # noqa: SIM112 - Ray spells it so; a worker per CPU that nobody needs
    import ray
    from ray.cluster_utils import Cluster
    from transformers import LlamaConfig

    from versatune_ray.detection import generate as stage
    from versatune_ray.runtime import engine as engines

    model = Path(tempfile.mkdtemp())
    LlamaConfig().save_pretrained(model)
    stage.join_parts = lambda *_, **__: None  # the times of parts are what is measured
    most = max(given["replicas"])
    each = -(-most // given["nodes"])
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 4, "object_store_memory": 300 * 2**20}
    )
    found = []
    try:
        for _ in range(given["nodes"]):
            cluster.add_node(
                num_cpus=each + 2, resources={"engine": each}, object_store_memory=150 * 2**20
            )
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        common.quiet()
        plans = [
            (replicas, given["service"], WAVES * IN_FLIGHT * replicas)
            for replicas in given["replicas"]
        ]
        for replicas, service, batches in [*plans, (min(4, most), 0.0, given["probe"])]:
            folder = Path(tempfile.mkdtemp())
            there = folder / "there"
            there.mkdir()

            kind = stand_in(service, replicas, there)
            engines.started = lambda *_, kind=kind, **__: kind("__data", [])
            engine = {
                "replicas": [replicas, replicas],
                "batch_size": BATCH,
                "concurrent_batches": IN_FLIGHT,
                "resources": {"engine": 1},
            }
            source = _source(model, folder / "parts", engine)
            called = time.time()
            made = stage.generate(source, batches * BATCH, gpu=False)
            assert made == batches * BATCH
            times = sorted(part.stat().st_mtime for part in (folder / "parts").glob("*.parquet"))
            begin = max(file.stat().st_mtime for file in there.iterdir())
            found.append(
                {
                    "replicas": replicas,
                    "service": service,
                    "batches": batches,
                    "times": times,
                    "begin": begin,
                    "startup": begin - called,
                }
            )
            print(
                f"{replicas} replicas: {times[-1] - begin:.1f} s, started in {begin - called:.1f} "
                f"s",
                flush=True,
            )
    finally:
        ray.shutdown()
        cluster.shutdown()
    return found


def _source(model: Path, folder: Path, engine: dict[str, Any]) -> Any:
    from versatune_ray.detection.generate import Generator
    from versatune_ray.settings import Engine, Generation

    return Generator(
        "stand-in",
        str(model),
        "bench",
        1,
        "",
        Generation(max_tokens=TOKENS),
        0,
        Engine(**engine),
        folder,
        False,
    )


def _rate(times: list[float], begin: float, end: float) -> float:
    """Parts per second between two shares of the parts."""
    first, last = round(begin * len(times)), round(end * len(times)) - 1
    return (last - first) / max(times[last] - times[first], 1e-9)


def parent(quick: bool) -> None:
    given: dict[str, Any] = {
        "replicas": REPLICAS,
        "service": SERVICE,
        "nodes": NODES,
        "probe": 400,
    } | (QUICK if quick else {})
    with tempfile.TemporaryDirectory(prefix="vtb"):
        found, watch = common.side(__file__, "scales", given, timeout=1500, every=1.0)
    *runs, probe = found
    ideal = IN_FLIGHT / given["service"]
    per_replica, detail, ratios = {}, {}, []
    for one in runs:
        n, times = one["replicas"], one["times"]
        per_replica[n] = _rate(times, 0.2, 0.8) / n
        cpu = watch.cpu(one["begin"], times[-1])
        wall = times[-1] - one["begin"]
        ratios = [
            _rate(times, low, high) / n / per_replica[runs[0]["replicas"]]
            for low, high in ((0.2, 0.5), (0.35, 0.65), (0.5, 0.8))
        ]
        detail[str(n)] = {
            "samples_per_s_per_replica": round(per_replica[n] * BATCH, 2),
            "of_one_replica": round(per_replica[n] / per_replica[runs[0]["replicas"]], 3),
            "of_ideal": round(per_replica[n] / ideal, 3),
            "startup_s": round(one["startup"], 1),
            "cpu_cores_used": {
                kind: value
                for kind, seconds in sorted(cpu.items())
                if (value := round(seconds / wall, 2)) >= 0.01
            },
        }
    times = probe["times"]
    cpu = watch.cpu(times[0], times[-1])
    finished = max(1, len(times) - 1)
    rate = _rate(times, 0.1, 0.9)
    detail |= {
        "service_s": given["service"],
        "rows_per_batch": BATCH,
        "batches_in_flight_per_replica": IN_FLIGHT,
        "simulated_nodes": given["nodes"] + 1,
        "stand_in_mib": round(watch.peaks().get("engine actor", 0) / 2**20),
        "driver_batches_per_s": round(rate, 1),
        "driver_tasks_per_s": round(3 * rate, 1),
        "driver_cpu_ms_per_batch": round(1000 * cpu.get("driver", 0.0) / finished, 1),
        "all_cpu_ms_per_batch": {
            kind: round(1000 * seconds / finished, 1)
            for kind, seconds in sorted(cpu.items())
            if seconds > 0.05
        },
        "probe": f"{probe['replicas']} stand-ins of no service time, {len(times)} batches, "
        "three tasks each: prepare, answer, write",
    }
    # The figure is the last one's; its spread, of three windows within the steady state.
    last = runs[-1]["replicas"]
    figure = per_replica[last] / per_replica[runs[0]["replicas"]]
    low, high = min(figure, *ratios), max(figure, *ratios)
    common.report(
        "detection_scaling",
        [low, figure, high],
        GOAL,
        {"replicas": last} | detail | common.machine(),
    )


if __name__ == "__main__":
    common.run(__doc__, parent, {"scales": scales})
