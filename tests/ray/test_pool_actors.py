"""A pool on a real Ray: its actors outlive plans and deaths, serve several plans at once, and are
gone with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from versatune_ray.errors import UserError, one_line
from versatune_ray.runtime.pool import Pool, Staff


def answering(dies: Path | None = None) -> Callable[[], Any]:
    """Adds the process that answered; dies once, where ``dies`` is a file that is not there yet."""

    async def answer(batch: pa.Table) -> pa.Table:  # nested: Ray's workers know no test module
        if dies is not None and not dies.exists():
            dies.touch()
            os._exit(1)
        return batch.append_column("pid", pa.array([os.getpid()] * batch.num_rows))

    return lambda: answer


def pool(make: Any, replicas: tuple[int, int] = (1, 1)) -> Pool:
    return Pool(lambda: Staff(make, replicas, {"num_cpus": 1}, 2, 8))


def answers(of: Pool, count: int = 40) -> set[int]:
    import ray

    rows = of(ray.data.range(count, override_num_blocks=5), 5).take_all()
    assert sorted(row["id"] for row in rows) == list(range(count))
    return {row["pid"] for row in rows}


def test_an_actor_outlives_its_plans_and_ends_with_its_pool(ray_cluster: None) -> None:
    with pool(answering()) as one:
        first = answers(one)
        with ThreadPoolExecutor(2) as threads:
            found = [task.result() for task in [threads.submit(answers, one) for _ in range(2)]]
        assert [first] * 2 == found and len(first) == 1
    with pytest.raises(RuntimeError, match="the job ends"):
        one.start()


def test_a_batch_whose_actor_died_is_answered_by_the_next(
    ray_cluster: None, tmp_path: Path
) -> None:
    dies = tmp_path / "died"
    with pool(answering(dies)) as one:
        assert len(answers(one)) == 1 and dies.exists()


def test_why_an_actor_cannot_start_arrives_as_it_was_raised(ray_cluster: None) -> None:
    import ray

    def broken() -> Any:
        raise UserError("m: no weights")

    with pool(broken) as one:
        rows = one(ray.data.range(4))
        rows.context.raise_original_map_exception = True
        with pytest.raises(UserError) as raised:  # to which Ray adds lines of advice
            rows.take_all()
    assert one_line(raised.value) == "m: no weights"


def test_actors_that_have_no_room_stop_nothing_and_go_too(ray_cluster: None) -> None:
    import ray

    with pool(answering(), (1, 20)) as one:
        assert 1 <= len(answers(one)) <= 4
    for _ in range(50):
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return
        ray.wait([ray.remote(num_cpus=0)(lambda: None).remote()])
    pytest.fail("an actor of the pool still holds its CPU")
