"""Where an engine is placed, which is worked out without loading vLLM, is where ``ray.data.llm``
would place it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from versatune_ray.runtime.engine import engine_stage, place, vllm_stage
from versatune_ray.settings import Engine

_NAMES = ("num_cpus", "num_gpus", "resources", "accelerator_type", "runtime_env")


@pytest.mark.slow  # it loads vLLM; after another version of Ray, look here first
@pytest.mark.usefixtures("ray_cluster")  # ``ray.data.llm`` starts one where none is
@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cpus": 3, "resources": {"judge": 0.5}},
        {"tensor_parallel": 2, "accelerator": "H100"},
        {"options": {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}},
        {"options": {"pipeline_parallel_size": 2}},
    ],
)
def test_an_engine_is_placed_as_rays_own_stage_would(
    tiny_model: Path, settings: dict[str, Any], gpu: bool
) -> None:
    engine = Engine(**settings)
    staff = vllm_stage(
        str(tiny_model), engine, lambda row: row, lambda row: row, gpu=gpu, trust_remote_code=False
    )._hire()
    config = staff.make.args[0]
    asked, placed = place(config, engine, gpu)
    given = engine_stage(config)[1]
    assert {name: value for name, value in asked.items() if value} == {
        name: given[name] for name in _NAMES if given.get(name)
    }
    assert (placed is dict) == ("ray_remote_args_fn" not in given)
