"""The files for clusters, checked offline: ``ray up`` takes ``cluster.yaml``, nothing holds a
secret, and defaults are safe.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from versatune_ray.settings.loading import load
from versatune_ray.training.gauges import _OF_DOMAINS, _OF_RUNS

FILE = Path(__file__).resolve().parents[2] / "cluster.yaml"
JOBS = FILE.parent / "jobs"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_ray_accepts_it(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_gpu_workers_start_from_zero(cluster: dict[str, Any]) -> None:
    workers = [
        kind
        for name, kind in cluster["available_node_types"].items()
        if name != cluster["head_node_type"]
    ]
    assert workers and all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers)


def test_the_dashboard_listens_on_localhost_and_authentication_is_on(
    cluster: dict[str, Any],
) -> None:
    starts = [
        line
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for line in cluster[key]
        if "ray start" in line
    ]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_kubernetes_job_is_the_same_and_as_safe() -> None:
    job = yaml.safe_load((JOBS / "rayjob.yaml").read_text())
    spec = job["spec"]["rayClusterSpec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["authOptions"] == {"mode": "token"}
    (worker,) = spec["workerGroupSpecs"]
    assert worker["minReplicas"] == worker["replicas"] == 0 < worker["maxReplicas"]
    pinned = next(
        line
        for line in (JOBS.parent / "pyproject.toml").read_text().splitlines()
        if '"ray[' in line
    )
    assert f"=={spec['rayVersion']}" in pinned
    command = job["spec"]["entrypoint"].split()
    assert (JOBS.parent / command[1]).is_file() and (JOBS.parent / command[3]).is_file()
    load([JOBS.parent / command[3]], [*command[4:-1], "storage=runs"])


def test_no_file_for_a_cluster_holds_a_secret() -> None:
    for file in (FILE, JOBS / "rayjob.yaml", JOBS / "grafana.json"):
        assert not re.search(
            r"(?i)(hf_[a-z0-9]{20}|AKIA[0-9A-Z]{16}|(password|secret_key|auth_token)\s*[:=]\s*['\"]?\w)",
            file.read_text(),
        ), file


def test_the_dashboard_shows_every_metric_that_a_run_gives() -> None:
    dashboard = json.loads((JOBS / "grafana.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_versatune_\w+", target["expr"])
    }
    assert asked == {f"ray_versatune_{name}" for name in (*_OF_DOMAINS, *_OF_RUNS)}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
