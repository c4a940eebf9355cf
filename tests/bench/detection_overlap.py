"""Models side by side, the judge beside them: the sum of what eight models take alone over four
nodes, over the time that they take together; 1 is ideal.

usage: python tests/bench/detection_overlap.py [--quick]        (--quick: 3 models, 2 nodes, short)

STAND-INS TAKE THE PLACE OF VLLM AND OF THE JUDGE: each takes ``START`` seconds to be there and then
a fixed time per batch, and says something of a real length. All around them is the product's own:
the schedule, the pools, Ray Data's plans, parts on disk, on four simulated nodes with a place for
one engine each (``ray.cluster_utils.Cluster``, on this machine). In one Ray, in turn: a model alone
with a judge that is up, as often as ``ALONE`` says, and all models with one that starts.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common

GOAL = 0.9
MODELS, NODES, ALONE = 8, 4, 2
START, SERVICE, BATCH, IN_FLIGHT, BATCHES = 20.0, 12.0, 32, 4, 20
JUDGING = 0.5  # seconds per batch of texts
QUICK = {"models": 3, "nodes": 2, "alone": 1, "start": 1.0, "service": 1.0, "batches": 8}
TOKENS = 256


def writing(start: float, service: float) -> type:
    """The class in vLLM's place."""
    from ray.llm._internal.batch.stages.base import StatefulStageUDF

    tokens, text = list(range(3, 3 + TOKENS)), "The substance melts at 420 degrees. " * 30

    class Writing(StatefulStageUDF):
        def __init__(self, data_column: str, expected_input_keys: list[str], **engine: Any):
            super().__init__(data_column, expected_input_keys)
            time.sleep(start)

        async def udf(self, rows: list[dict[str, Any]]) -> Any:
            await asyncio.sleep(service)
            for row in rows:
                yield {
                    self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN],
                    "generated_tokens": tokens,
                    "generated_text": text,
                    "num_generated_tokens": TOKENS,
                    "__inference_error__": "",
                }

    return Writing


def judging(start: float, seconds: float) -> Any:
    import pyarrow as pa

    from versatune_ray.detection.judge_spec import JUDGED

    schema = pa.schema([("store", pa.int64()), *JUDGED.items()])

    def made() -> Any:
        time.sleep(start)

        async def answer(batch: pa.Table) -> pa.Table:
            await asyncio.sleep(seconds)
            said = {"values": [0.5, 0.5], "mass": 1.0, "failed": False}
            rows = [said | {"id": i, "store": s} for i, s in zip(*_ids(batch), strict=True)]
            return pa.Table.from_pylist(rows, schema)

        return answer

    def _ids(batch: pa.Table) -> tuple[list[int], list[int]]:
        return batch["id"].to_pylist(), batch["store"].to_pylist()

    return made


def overlap(given: dict[str, Any]) -> Any:
    import ray
    from ray.cluster_utils import Cluster
    from transformers import LlamaConfig

    from versatune_ray.detection import judge as judges
    from versatune_ray.detection.detect import Detections
    from versatune_ray.detection.generate import Generator
    from versatune_ray.detection.judge_spec import JudgeSpec
    from versatune_ray.detection.prompt import Question
    from versatune_ray.detection.rounds import Detecting
    from versatune_ray.detection.schedule import run
    from versatune_ray.detection.texts import Detected
    from versatune_ray.runtime import engine as engines
    from versatune_ray.runtime.pool import Pool, Staff
    from versatune_ray.settings import Detection, Engine, Generation, Judge

    folder = Path(tempfile.mkdtemp())
    LlamaConfig().save_pretrained(folder)
    kind, answers = writing(given["start"], given["service"]), judging(given["start"], JUDGING)
    engines.started = lambda _, arguments, **__: kind(**arguments)
    place = {"num_cpus": 0, "resources": {"judge": 1}}
    staff = Staff(answers, (1, 1), place, IN_FLIGHT, BATCH)
    judges.KINDS["classifier"] = lambda _: Pool(lambda: staff)
    count = given["batches"] * BATCH
    settings = Detection(samples=count, repeats=1)
    question = Question(("law", "code"), {}, "{text}", "letters", False)
    spec = JudgeSpec(Judge(kind="classifier", path="judge"), question, "bench", False, False)
    engine = Engine(batch_size=BATCH, concurrent_batches=IN_FLIGHT, resources={"engine": 1}, cpus=1)

    def models(kinds: str, number: int) -> Detections:
        result = Detections(spec)
        for place in range(number):
            name = f"{kinds}-{place}"
            parts, judged = folder / name / "parts", folder / name / "judged"
            source = Generator(
                name,
                str(folder),
                "bench",
                1,
                "",
                Generation(max_tokens=TOKENS),
                0,
                engine,
                parts,
                False,
            )
            result.detected[name] = Detected(source, judged)
        return result

    def took(result: Detections, judge: Any, writers: int) -> float:
        work = Detecting(result, settings, judge, None, False, together=True)
        began = time.monotonic()
        run(list(result.detected), work, writers=writers, together=True)
        for one in result.detected.values():
            assert one.work == {"generated": count, "judged": count}, one.work
        return time.monotonic() - began

    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 8,
            "resources": {"judge": 1},
            "object_store_memory": 300 * 2**20,
        },
    )
    try:
        for _ in range(given["nodes"]):
            cluster.add_node(num_cpus=2, resources={"engine": 1}, object_store_memory=150 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        common.quiet()
        judge = judges.StandingJudge(spec)
        took(
            models("warm", 1), judge, 1
        )  # the judge is up, and workers have imported what they need
        alone = [took(models(f"alone{i}", 1), judge, 1) for i in range(given["alone"])]
        judge.close()
        judge = judges.StandingJudge(spec)
        together = took(models("side", given["models"]), judge, given["nodes"])
        judge.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    return {"alone": alone, "together": together}


def parent(quick: bool) -> None:
    given = {
        "models": MODELS,
        "nodes": NODES,
        "alone": ALONE,
        "start": START,
        "service": SERVICE,
        "batches": BATCHES,
    } | (QUICK if quick else {})
    found, _ = common.side(__file__, "overlap", given, timeout=900)
    ideal = statistics.median(found["alone"]) * given["models"] / given["nodes"]
    busy = given["start"] + given["service"] * given["batches"] / IN_FLIGHT
    detail = {
        "is": "what the models take alone, summed, over the nodes, over what they take together",
        "engines": "stand-ins: a sleep per start and per batch",
        "alone_s": [round(one, 1) for one in found["alone"]],
        "of_which_the_stand_in": round(busy, 1),
        "together_s": round(found["together"], 1),
    }
    common.report(
        "detection_overlap",
        [ideal / found["together"]],
        GOAL,
        detail | given | common.machine(),
    )


if __name__ == "__main__":
    common.run(__doc__, parent, {"overlap": overlap})
