"""A policy of a user's own, as the README shows it: installed as a package, named in the
configuration, run by the job.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from processes import ROOT, finish_job, patience, start_job
from tiny import words_per_domain

from versatune_ray.training.__main__ import main

NAMES = ("law", "code")


@pytest.mark.parametrize("how", ["a module", pytest.param("a package", marks=pytest.mark.slow)])
def test_the_readmes_policy_drives_a_run(
    how: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that this process finds, in a run without Ray; and installed, in a job on it."""
    page = ROOT / "versatune_ray" / "mixture" / "README.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (source,) = [block for block in blocks if "class Improving" in block]
    assert (
        len([line for line in source.partition("@dataclass")[2].splitlines() if line.strip()]) <= 20
    )
    job = {
        "run": "own",
        "model": {"path": str(tiny_model)},
        "data": {"max_length": 64},
        "domains": words_per_domain(tmp_path, NAMES, lambda place: 6 - 4 * place),
        "mixture": {
            "start": "uniform",
            "policy": "my_policies:Improving",
            "options": {"pace": 0.3},
        },
        "training": {
            "workers": 1,
            "epochs": 1,
            "samples_per_epoch": 80,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "adjust_every": 2,
        },
    }
    if how == "a module":
        (tmp_path / "my_policies.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
        storage = f"storage={tmp_path / 'runs'}"
        monkeypatch.setattr(sys, "argv", ["", "--config", str(tmp_path / "job.yaml"), storage])
        assert main() == 0
    else:
        known = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([installed(source, tmp_path), *([known] if known else [])])
        finish_job(start_job(job, "finetune.py", tmp_path, PYTHONPATH=path))
    lines = [
        json.loads(line)
        for line in (tmp_path / "runs" / "own" / "finetune" / "adjustments.jsonl")
        .read_text()
        .splitlines()
    ]
    for before, now in itertools.pairwise(lines):
        gain = np.array([max(1 - now["loss"][name] / before["loss"][name], 0) for name in NAMES])
        share = np.array([before["share"][name] for name in NAMES])
        expected = 0.7 * share + 0.3 * (gain / gain.sum() if gain.any() else share)
        np.testing.assert_allclose([now["share"][name] for name in NAMES], expected, atol=1e-9)
    assert len(lines) == 6 and lines[-1]["share"]["law"] != 0.5
    assert not (tmp_path / "runs" / "own" / "reference").exists(), "needs_reference is False"


def installed(source: str, folder: Path) -> str:
    """``source`` as a package that pip has installed; returns where."""
    project, site = folder / "project", folder / "site"
    project.mkdir()
    (project / "my_policies.py").write_text(source)
    settings = '[project]\nname = "my-policies"\nversion = "1"\n'
    settings += '[tool.setuptools]\npy-modules = ["my_policies"]\n'
    (project / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        + settings
    )
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
        str(project),
    ]
    subprocess.run(install, check=True, timeout=patience(120))
    return str(site)
