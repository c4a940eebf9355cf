"""A GPU machine with torch, transformers and a few small wheels fine-tunes local records: nothing
else is imported there.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml
from processes import patience
from tiny import write_records

MISSING = (
    "ray",
    "vllm",
    "pyarrow",
    "datasets",
    "scipy",
    "pandas",
    "sklearn",
    "optuna",
    "lm_eval",
)
# As if they were not installed: some of them are looked for by transformers and others, which go on
# without.
BARE = f"""
import importlib.abc, runpy, sys

class Bare(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING!r}:
            print("asked for:", name, file=sys.stderr)
            raise ModuleNotFoundError(f"No module named {{name!r}} on this machine", name=name)

import importlib.util, importlib.metadata
sys.meta_path.insert(0, Bare())
found = importlib.util.find_spec
missing = {MISSING!r}
importlib.util.find_spec = (
    lambda name, package=None: None if name.partition(".")[0] in missing else found(name, package)
)
sys.argv = sys.argv[1:]
sys.argv[0] = "versatune_ray.training"
runpy.run_module("versatune_ray.training", run_name="__main__")
"""


def test_fine_tuning_on_local_records_needs_none_of_the_big_packages(
    tiny_model: Path, tmp_path: Path
) -> None:
    for seed, name in enumerate(("law", "code")):
        words = [
            " ".join(f"w{3 + (seed + 7 * line + place) % 60}" for place in range(6))
            for line in range(40)
        ]
        records = [{"instruction": line[: len(line) // 2], "output": line} for line in words]
        write_records(tmp_path / f"{name}.jsonl", records)
    job = {
        "storage": str(tmp_path / "runs"),
        "run": "bare",
        "model": {"path": str(tiny_model)},
        "domains": {name: str(tmp_path / f"{name}.jsonl") for name in ("law", "code")},
        "data": {"max_length": 64, "validation_fraction": 0.2},
        "mixture": {"start": "uniform", "policy": "constant"},
        "training": {"epochs": 1, "batch_size": 8, "adjust_every": 3},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    done = subprocess.run(
        [sys.executable, "-c", BARE, "-", "--config", str(tmp_path / "job.yaml")],
        capture_output=True,
        text=True,
        check=False,
        timeout=patience(200),
    )
    assert done.returncode == 0, done.stderr
    assert "asked for: ray" not in done.stderr, "not even where it would go on without"
    model = tmp_path / "runs" / "bare" / "finetune" / "model"
    assert done.stdout.strip() == str(model) and (model / "model.safetensors").is_file()
