"""Reference losses are tuned as the run is: where that shards its model over workers, so does this,
to the same losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import write_stores

from versatune_ray.settings.loading import parse
from versatune_ray.training.reference import reference_losses


def test_references_of_a_sharded_run_are_those_of_a_single_worker(
    ray_cluster: None, tiny_model: Path, tmp_path: Path
) -> None:
    paths = write_stores(tmp_path, ("law", "code"), 20, 5)

    def measured(name: str, workers: int, **training: Any) -> tuple[dict[str, Any], bool]:
        config = parse(
            {
                "run": name,
                "storage": str(tmp_path),
                "model": {"path": str(tiny_model)},
                "domains": dict.fromkeys(paths, "x.jsonl"),
                "reference": {
                    "epochs": 2,
                    "batch_size": 8,
                    "learning_rate": 1e-2,
                    "workers": workers,
                },
                "training": {"workers": 2, **training},
            }
        )
        return reference_losses(
            str(tiny_model), "tiny", paths, config, "nats/token", tmp_path / name, gpu=False
        )

    single, reused = measured("single", 1)
    sharded, _ = measured("sharded", 2, parallel="fsdp")
    assert not reused and measured("sharded", 2, parallel="fsdp")[1]
    for name in paths:
        one, other = single["domains"][name], sharded["domains"][name]
        assert other["epoch"] == one["epoch"] and len(other["curve"]) == len(one["curve"]) > 1
        for mine, theirs in zip(one["curve"], other["curve"], strict=True):
            assert theirs["held_out"] == pytest.approx(mine["held_out"], rel=1e-4)
            assert theirs["train"] == (
                None if mine["train"] is None else pytest.approx(mine["train"], rel=1e-4)
            )
