"""The paper's numbers in the repository agree with the settings that are called the paper's."""

from __future__ import annotations

import json
from typing import Any

from conftest import ROOT

from versatune_ray.settings.loading import load

CONFIGS = ROOT / "jobs" / "configs"
PUBLISHED: dict[str, Any] = json.loads((CONFIGS / "paper" / "published.json").read_text())
# where the harness, or a task of ours, has another name for it
TASKS = {"medqa": "medqa_4options", "mmlu-sci": "mmlu_stem"}


def test_the_papers_configuration_has_its_settings() -> None:
    config = load([CONFIGS / "paper.yaml", CONFIGS / "paper_benchmarks.yaml"])
    training, detection = config.training, config.detection
    for key, value in PUBLISHED["training"].items():
        assert getattr(training, key) == value, key
    assert detection.samples == PUBLISHED["detection"]["sequences"]
    assert detection.repeats == PUBLISHED["detection"]["repeats"]
    assert (detection.judge.path or "").endswith(PUBLISHED["detection"]["judge"])
    assert list(config.domains) == PUBLISHED["domains"]


def test_its_benchmarks_and_sets_are_those_of_the_table() -> None:
    config = load([CONFIGS / "paper.yaml", CONFIGS / "paper_benchmarks.yaml"])
    listed = {
        domain: [(TASKS.get(name := one["name"].lower(), name), one["shots"]) for one in some]
        for domain, some in PUBLISHED["benchmarks"].items()
    }
    ours = {
        domain: [(one.task, one.shots) for one in some]
        for domain, some in config.evaluation.benchmarks.items()
    }
    assert ours == listed
    for domain, one in PUBLISHED["training_sets"].items():
        (source,) = config.domains[domain].specs("train")
        assert source.removeprefix("OWNER/") == one.get("name_in_release", one["set"])
