"""Fifteen typical mistakes, as a person makes them: each is one good line and status 2, and no
library that takes seconds to load is loaded before it is told.

All in one other process, for this one has those libraries; what the fifteen lines say is checked
here, one by one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from processes import ROOT
from tiny import write_records

HEAVY = ("torch", "ray", "transformers", "vllm", "peft", "datasets")
# job, file of ``files`` below or a text, overrides, the line
MISTAKES: dict[str, tuple[str, str, list[str], str]] = {
    "unknown key": ("finetune", "good", ["training.epoch=3"], "did you mean 'training.epochs'?"),
    "wrong depth": ("finetune", "good", ["epochs=3"], "did you mean 'training.epochs'?"),
    "negative rate": (
        "finetune",
        "good",
        ["training.learning_rate=-1e-4"],
        "training.learning_rate: -0.0001 is not valid: it has to be above 0",
    ),
    "text for a number": (
        "finetune",
        "good",
        ["training.batch_size=many"],
        "training.batch_size: 'many' is not valid: input should be a valid integer",
    ),
    "run with a slash": ("pipeline", "good", ["run=/mine/"], "run: '/mine/' is not valid"),
    "one domain": ("finetune", "one", [], "domains: 'law' is the only one; name at least two"),
    "typo in a target": (
        "sweep",
        "good",
        ["mixture.policy=expansion", "mixture.targets=[lww]"],
        "mixture.targets: unknown domain 'lww'; did you mean 'law'?",
    ),
    "two jobs at once": (
        "finetune",
        "good",
        ["run=busy"],
        "run 'busy' is in use by another process; wait for it, or choose another name",
    ),
    "wrong model path": (
        "finetune",
        "good",
        ["model.path=models/gone/far"],
        "model.path: models/gone/far: no such model folder, and no Hugging Face id",
    ),
    "no judge": (
        "detect",
        "good",
        [],
        "detection.judge.path: missing; name a judge model, or give detection.distribution",
    ),
    "unwritable storage": ("finetune", "good", ["storage=law.jsonl/x"], "law.jsonl is a file"),
    "no YAML": ("finetune", "broken", [], "broken.yaml:4:1: no valid YAML: "),
    "duplicate keys": (
        "finetune",
        "twice",
        [],
        "twice.yaml: 'model' is there twice, in lines 2 and 4; keep one of them",
    ),
    "missing file": (
        "study",
        "good",
        ["domains.law=gone.jsonl"],
        "file not found: gone.jsonl (domains.law.train)",
    ),
    "missing field": ("finetune", "field", [], "domains.code.train: missing; name a file"),
}
PROGRAM = """
import contextlib, io, json, runpy, sys
from pathlib import Path
jobs, heavy, calls = json.loads(sys.argv[1])
from filelock import FileLock
Path("runs/busy").mkdir(parents=True)
busy = FileLock("runs/busy/.lock")
busy.acquire()
for name, (job, *arguments) in calls.items():
    printed, errors = io.StringIO(), io.StringIO()
    sys.argv = [f"{job}.py", *arguments]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(f"{jobs}/{job}.py", run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = ended.code
    loaded = [one for one in heavy if one in sys.modules]
    print(json.dumps([name, status, printed.getvalue(), errors.getvalue(), loaded]))
busy.release()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each mistake gave: status, printed, errors, heavy modules that were loaded by then."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_records(folder / "law.jsonl", [{"prompt": "a", "completion": "b"}] * 30)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    head = "mixture: {preset: balanced}\nmodel: {path: model}\n"
    files = {
        "good": f"{head}domains: {{law: law.jsonl, code: law.jsonl}}\n",
        "one": f"{head}domains: {{law: law.jsonl}}\n",
        "broken": f"{head}domains: {{law: law.jsonl\n",
        "twice": f"{head}domains: {{law: law.jsonl, code: law.jsonl}}\nmodel: {{path: other}}\n",
        "field": f"{head}domains: {{law: law.jsonl, code: {{validation: law.jsonl}}}}\n",
    }
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    calls = {
        name: [job, "--config", f"{file}.yaml", *overrides]
        for name, (job, file, overrides, _) in MISTAKES.items()
    }
    given = json.dumps([str(ROOT / "jobs"), HEAVY, calls])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, given],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {one[0]: one[1:] for one in map(json.loads, done.stdout.splitlines())}
    found["left behind"] = sorted(str(one.relative_to(folder)) for one in folder.glob("runs/*/*"))
    return found


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_good_line_before_anything_large_is_loaded(
    told: dict[str, Any], mistake: str
) -> None:
    status, printed, errors, loaded = told[mistake]
    assert (status, printed, loaded) == (2, "", [])
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    assert MISTAKES[mistake][3] in errors


def test_mistakes_leave_nothing_behind(told: dict[str, Any]) -> None:
    assert told["left behind"] in ([], ["runs/busy/.lock"])
