"""What goes wrong in a detection: killed engines and drivers, a judge that knows nothing, broken
models, a full disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
from detect_jobs import (
    CLASSES,
    DOMAINS,
    assert_complete,
    base_model,
    classifier_model,
    distribution,
    judge_model,
    run_job,
    samples,
    write_domains,
)
from killed_jobs import COUNT, Job, ids, parts, quick_judge, running, settings, stores, write

from versatune_ray.detection.detect import detect_models
from versatune_ray.errors import UserError
from versatune_ray.settings import Config
from versatune_ray.settings.loading import parse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Storage of this module, with a short path: Ray's sockets lie in it too, and what a killed job
    leaves goes with it.
    """
    folder = Path(tempfile.mkdtemp(prefix="vt"))
    try:
        base_model(folder / "base-1", 1)
        judge_model(folder / "judge")
        classifier_model(folder / "classifier")
        write_domains(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Killed:
    """One detection that took four jobs; the ids that were there when each was killed."""

    said: list[str] = field(default_factory=list)
    generated: list[list[int]] = field(default_factory=list)
    judged: list[list[int]] = field(default_factory=list)
    before_engine: list[int] = field(default_factory=list)
    texts: pa.Table | None = None
    found: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def killed(folder: Path) -> Killed:
    """In turn: the driver is killed inside generation; an engine is, and then the driver before
    judging; the driver inside judging.
    """
    config = write(folder, "killed", settings(folder, "killed", [folder / "base-1"]))
    facts = Killed()

    def generated() -> dict[Path, int]:
        return {
            part: at
            for store in stores(folder, "generated", str(folder / "base-1"))
            for part, at in parts(store).items()
        }

    def judged() -> dict[Path, int]:
        of = str(next(iter(generated())).parent) if generated() else ""
        return {
            part: at for store in stores(folder, "judged", of) for part, at in parts(store).items()
        }

    def note(one: Job) -> None:
        one.kill()
        facts.said.append(one.said)
        facts.generated.append(ids(generated()))
        facts.judged.append(ids(judged()))

    with running(config, folder, "1") as one:
        one.wait_until(lambda: len(generated()) >= 3)
        note(one)
    with running(config, folder, "2") as one:
        there = len(generated())
        one.wait_until(lambda: len(generated()) >= there + 3)
        facts.before_engine = ids(generated())
        one.kill_engine()
        one.wait_until(lambda: "sequences generated" in one.said)
        note(one)
    with running(config, folder, "3") as one:
        one.wait_until(lambda: len(judged()) >= 3)
        note(one)
    with running(config, folder, "4") as one:
        assert one.finish() == 0, one.said
        note(one)
    facts.found = distribution(folder, "killed", "base-1")
    facts.texts = pyarrow.dataset.dataset(list(map(str, generated()))).to_table()
    return facts


def test_a_killed_engine_costs_no_sequence(killed: Killed) -> None:
    assert 0 < len(killed.before_engine) < COUNT, "it was killed too late to show anything"
    assert killed.generated[1] == list(range(COUNT))
    table = killed.texts
    assert table is not None and not any(table["failed"].to_pylist())
    assert not [
        reason for reason in table["discarded"].to_pylist() if reason and "failed" in reason
    ]


def test_a_driver_killed_inside_generation_goes_on_from_there(killed: Killed) -> None:
    there = killed.generated[0]
    assert 0 < len(there) < COUNT and len(set(there)) == len(there)
    assert set(there) <= set(killed.before_engine)
    assert (
        f"{COUNT - len(there)} sequences generated, {len(there)} were there before"
        in killed.said[1]
    )


def test_a_driver_killed_between_generation_and_judging_generates_nothing_again(
    killed: Killed,
) -> None:
    assert not killed.judged[1]
    assert killed.generated[1] == killed.generated[2] == killed.generated[3]
    assert f"0 sequences generated, {COUNT} were there before" in killed.said[2]


def test_a_driver_killed_inside_judging_judges_nothing_again(killed: Killed) -> None:
    before, after = killed.judged[2], killed.judged[3]
    assert 0 < len(before) < len(after) and killed.texts is not None
    texts = sorted(
        row["id"]
        for row in killed.texts.select(["id", "discarded"]).to_pylist()
        if row["discarded"] is None
    )
    # two requests each
    assert after == [2 * number + place for number in texts for place in (0, 1)]


def test_the_last_of_the_killed_jobs_accounts_for_all_of_them(folder: Path, killed: Killed) -> None:
    assert_complete(
        samples(folder / "killed" / "detection" / "base-1" / "samples"), killed.found, COUNT
    )
    assert killed.found["work"]["generated"] == 0 and killed.found["work"]["reused"] == COUNT
    left = len(killed.judged[3]) - len(killed.judged[2])
    # texts of which at least one request was left
    assert left / 2 <= killed.found["work"]["judged"] < left
    assert f"{COUNT} of them reused" in killed.said[3]


def test_a_judge_that_knows_nothing_is_told_apart(killed: Killed) -> None:
    quality = killed.found["judge_quality"]
    assert quality["log_loss"] >= quality["chance"] == np.log(len(DOMAINS))
    assert sum(quality["records"]) == 10 * len(DOMAINS) and 0 <= quality["accuracy"] <= 0.6
    assert np.allclose(np.sum(quality["confusion"], axis=1), 1)
    assert "NO BETTER THAN CHANCE" in killed.said[3]


def config_of(folder: Path, **detection: Any) -> Config:
    config: Config = parse(settings(folder, "here", [folder / "base-1"], **detection))
    return config


@pytest.mark.usefixtures("ray_cluster", "killed")
def test_correction_by_a_judge_that_knows_nothing_says_how_little_is_known(folder: Path) -> None:
    config = config_of(folder, estimate="corrected")
    done = detect_models(config.detection.models, config, gpu=False)
    assert done.reused
    found = done.detected["base-1"].distribution.as_json()
    low, high = np.transpose(found["corrected"]["ci95"])
    assert np.isclose(sum(found["corrected"]["share"]), 1)
    assert np.mean(high - low) > 0.4
    assert np.mean(high - low) > 4 * np.mean(np.ptp(found["ci95"], axis=1))


@pytest.mark.usefixtures("ray_cluster", "killed")
def test_correction_by_a_judge_that_always_says_the_same_is_refused(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    shutil.copytree(folder / "classifier", folder / "constant")
    network = AutoModelForSequenceClassification.from_pretrained(folder / "classifier")
    with torch.no_grad():
        network.score.weight.zero_()
    network.save_pretrained(folder / "constant")
    judge = quick_judge(folder) | {"path": str(folder / "constant")}
    config = config_of(folder, estimate="corrected", judge=judge)
    with pytest.raises(
        UserError,
        match=r"detection\.estimate: corrected cannot be had: .*cannot tell some domains apart",
    ) as caught:
        detect_models(config.detection.models, config, gpu=False)
    assert "\n" not in str(caught.value)
    config = config_of(folder, judge=judge)
    done = detect_models(config.detection.models, config, gpu=False)
    found = done.detected["base-1"].distribution.as_json()
    np.testing.assert_allclose(found["share"], 1 / len(DOMAINS), atol=1e-9)
    assert "cannot tell some domains apart" in found["corrected"]["problem"]
    np.testing.assert_allclose(
        found["judge_quality"]["mass"], len(DOMAINS) / len(CLASSES), atol=1e-6
    )


def test_broken_models_do_not_stop_the_others_and_alone_are_tried_again(folder: Path) -> None:
    base_model(folder / "base-2", 2)
    base_model(folder / "cut-off", 3)
    weights = folder / "cut-off" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    models = [folder / "missing", folder / "cut-off", folder / "base-1", folder / "base-2"]
    config = write(
        folder, "broken", settings(folder, "broken", models, samples=10, judge=quick_judge(folder))
    )

    def check(done: subprocess.CompletedProcess[str], good: list[str], bad: list[str]) -> None:
        assert done.returncode == 1, done.stdout + done.stderr
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert error.startswith(f"error: {len(good)} of 4 models are detected") and all(
            name in error for name in bad
        ), error
        failed = json.loads((folder / "broken" / "detection" / "failed.json").read_text())
        assert set(failed) == set(bad) and all(
            reason.strip() and "\n" not in reason for reason in failed.values()
        )
        for name in good:
            found = distribution(folder, "broken", name)
            assert_complete(samples(folder / "broken" / "detection" / name / "samples"), found, 20)

    first = run_job(config)
    check(first, ["base-1", "base-2"], ["missing", "cut-off"])
    failed = json.loads((folder / "broken" / "detection" / "failed.json").read_text())
    assert "no such model folder" in failed["missing"]
    assert "safetensors" in failed["cut-off"].casefold(), (
        "the reason is not the engine's start but what is wrong with the file"
    )

    weights.write_bytes(whole)
    second = run_job(config)
    check(second, ["base-1", "base-2", "cut-off"], ["missing"])
    assert (
        "base-1 (2 of 3): 0 sequences generated" in second.stdout
        and "base-2 (3 of 3): 0 sequences generated" in second.stdout
    )
    assert "cut-off (1 of 3): 20 sequences generated" in second.stdout
    for vague in ("SystemException", "See root cause above"):
        assert vague not in failed["cut-off"], (
            "the reason does not say what is wrong with the model"
        )


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A disk of 64 KiB at ``place``; skips the test where none may be mounted."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if (
        os.name != "posix"
        or shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("no disk may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_told_in_one_line_and_the_same_command_goes_on(folder: Path) -> None:
    storage = folder / "disk"
    place = storage / ".cache" / "generated"
    with small_disk(place):
        tree = settings(folder, "full", [folder / "base-1"], samples=100, judge=quick_judge(folder))
        config = write(folder, "full", tree | {"storage": str(storage)})
        done = run_job(config)
        assert done.returncode == 2, done.stdout + done.stderr
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "no space left" in error and str(place) in error
        full = done.stderr
        (store,) = stores(storage, "generated", str(folder / "base-1"))
        before = parts(store)
        assert 0 < len(ids(before)) < 200
        assert not list(store.glob("*.tmp"))

        subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
        done = run_job(config)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (
            f"{200 - len(ids(before))} sequences generated, {len(ids(before))} were there before"
            in done.stdout
        )
        assert before.items() <= parts(store).items()
        found = distribution(storage, "full", "base-1")
        assert_complete(samples(storage / "full" / "detection" / "base-1" / "samples"), found, 200)
    assert "Traceback" not in full
