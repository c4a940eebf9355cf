"""Sweeps and studies as a user runs them: on shared artefacts, resumed after a kill, pruned, with
failures told and not fatal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from processes import call_job, finish_job, kill_job, start_job
from tiny import words_per_domain

from versatune_ray.tuning.objectives import achieved
from versatune_ray.tuning.plan import name_of

NAMES = ("law", "medicine", "code")
STEPS, EVERY = 60, 10
DELTAS, EPSILONS = [0.05, 0.2], [0.0, 5.0]


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("data")
    return {
        "run": "search",
        "model": {"path": str(tiny_model)},
        "data": {"max_length": 64},
        "domains": words_per_domain(folder, NAMES),
        "mixture": {"start": "uniform", "policy": "expansion", "targets": ["law"], "sigma": 1.0},
        "reference": {"epochs": 6, "learning_rate": 1e-2, "batch_size": 8, "workers": 1},
        "training": {
            "workers": 1,
            "epochs": 1,
            "samples_per_epoch": STEPS * 8,
            "batch_size": 8,
            "learning_rate": 1e-2,
            "adjust_every": EVERY,
            "metrics": [],
        },
        "sweep": {"space": {"mixture.delta": DELTAS, "mixture.epsilon": EPSILONS}},
    }


def logs(folder: Path) -> dict[str, float]:
    """When the log of each finished trial was last written."""
    return {
        file.parent.name: (file.parent / "finetune" / "adjustments.jsonl").stat().st_mtime
        for file in folder.glob("trials/*/outcome.json")
    }


def lines_of(trial: Path) -> list[dict[str, Any]]:
    text = (trial / "finetune" / "adjustments.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def finished(trial: Path, changes: Mapping[str, Any], losses: Sequence[float]) -> None:
    """What a trial leaves whose domains all had these losses, and shares that moved from law to
    medicine.
    """
    lines = [
        {
            "step": EVERY * number,
            "loss": dict.fromkeys(NAMES, loss),
            "share": dict(zip(NAMES, (0.5 - number / 20, 0.2 + number / 20, 0.3), strict=True)),
        }
        for number, loss in enumerate(losses)
    ]
    (trial / "finetune" / "model").mkdir(parents=True)
    (trial / "finetune" / "model" / "model.safetensors").touch()
    (trial / "finetune" / "adjustments.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    before, after = (dict.fromkeys(NAMES, losses[place]) for place in (0, -1))
    objectives = achieved(before, after, ["law"])
    outcome = {"changes": changes, "before": before, "after": after, "by_epoch": [after]}
    outcome |= {"accuracy": None, "objectives": objectives, "pruned_at": None}
    (trial / "outcome.json").write_text(json.dumps(outcome))


@pytest.mark.slow
def test_a_sweep_survives_a_kill_and_repeats_no_finished_trial(
    job: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "search"
    printed = kill_job(
        start_job(job, "sweep.py", tmp_path, "sweep.concurrency=2"), lambda: len(logs(run)) >= 2
    )
    before = logs(run)
    assert 2 <= len(before) < 4, printed

    printed = finish_job(start_job(job, "sweep.py", tmp_path, "sweep.concurrency=2"))
    assert f"{len(before)} of 4 trials were done before" in printed
    after = logs(run)
    assert len(after) == 4 and {name: after[name] for name in before} == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_repeats_no_finished_trial_and_its_best_is_a_configuration(
    job: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "search"
    losses = {"unit": "nats/token", "domains": {name: {"loss": 1.0} for name in NAMES}}
    (tmp_path / "losses.json").write_text(json.dumps(losses))
    job = job | {"reference": {"losses": str(tmp_path / "losses.json")}}
    # two of four are there already, and all domains learned a little in them
    for epsilon in EPSILONS:
        changes = {"mixture.delta": DELTAS[0], "mixture.epsilon": epsilon}
        finished(run / "trials" / name_of(changes), changes, [4.0, 3.9])
    before = logs(run)
    assert len(before) == 2
    printed = call_job(job, "sweep.py", tmp_path, "sweep.concurrency=2")
    assert "2 of 4 trials were done before" in printed
    after = logs(run)
    assert len(after) == 4 and {name: after[name] for name in before} == before

    table = pq.read_table(run / "sweep" / "results.parquet").to_pylist()
    assert sorted((row["mixture.delta"], row["mixture.epsilon"]) for row in table) == [
        (d, e) for d in DELTAS for e in EPSILONS
    ]
    for row in table:
        lines = lines_of(run / "trials" / row["trial"])
        first, last = lines[0]["loss"], lines[-1]["loss"]
        gain = {name: 1 - last[name] / first[name] for name in NAMES}
        np.testing.assert_allclose(row["target_gain"], gain["law"], atol=1e-12)
        np.testing.assert_allclose(
            row["forgetting"], -(gain["medicine"] + gain["code"]) / 2, atol=1e-12
        )
        np.testing.assert_allclose(row["score"], row["target_gain"] - row["forgetting"], atol=1e-12)
        if row["trial"] not in before:
            opened = [line["guard"]["open"] for line in lines[1:]]
            assert any(opened) == (row["mixture.epsilon"] > 0)  # ε = 0 never opens the guard
    best = max(table, key=lambda row: row["score"])
    assert best["trial"] not in before
    front = json.loads((run / "sweep" / "pareto.json").read_text())
    assert best["trial"] in [row["trial"] for row in front]

    # Its best is a configuration that the fine-tuning job takes as is, and that gives the same
    # numbers.
    call_job(yaml.safe_load((run / "sweep" / "best.yaml").read_text()), "finetune.py", tmp_path)
    tuned = lines_of(tmp_path / "runs" / "search-best")
    assert tuned[-1]["loss"] == lines_of(run / "trials" / best["trial"])[-1]["loss"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_falls_behind_is_stopped_early_and_one_that_failed_is_told(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune, its scheduler and the account of trials, on trials that train nothing: each gains
    by its rate at every mark.
    """

    def scripted(params: Mapping[str, Any], plan: Any) -> None:
        import json
        import time

        from ray import tune

        from versatune_ray.errors import Incomplete

        name, changes = params["trial"]
        rate = changes["training.learning_rate"]
        if rate > 1:
            raise Incomplete("adjustment at step 0: law: loss is not finite")
        for step in range(1, 9):
            mark = {"samples": step * plan.marks, "step": 10 * step}
            tune.report({"gain": step * rate, "score": step * rate} | mark)
            time.sleep(0.2)
        outcome = {"changes": changes, "objectives": {"gain": 8 * rate}, "pruned_at": None}
        plan.trials.joinpath(name).mkdir(parents=True, exist_ok=True)
        (plan.trials / name / "outcome.json").write_text(json.dumps(outcome))

    monkeypatch.setattr("versatune_ray.tuning.trials.train", scripted)
    rates = [1e-2, 5e-3, 1e-7, 1e30]
    sweep = {
        "space": {"training.learning_rate": rates},
        "objective": {"gain": 1.0},
        "prune": True,
        "grace": 2,
        "concurrency": 1,
    }
    policy = {"start": "uniform", "policy": "constant"}
    job = job | {"run": "scripted", "mixture": policy, "sweep": sweep}
    checkpoints = (
        (tmp_path / "runs" / "scripted" / "trials" / name_of({"training.learning_rate": 1e-7}))
        / "finetune"
        / "checkpoints"
    )
    checkpoints.mkdir(parents=True)
    printed = call_job(job, "sweep.py", tmp_path, status=1)
    run = tmp_path / "runs" / "scripted"
    rows = {
        row["training.learning_rate"]: row
        for row in pq.read_table(run / "sweep" / "results.parquet").to_pylist()
    }
    assert set(rows) == set(rates)
    assert rows[1e-2]["pruned_at"] is None and rows[1e-2]["score"] == 8e-2
    # stopped where it was first compared, after two marks, by what it had reached there
    assert rows[1e-7]["pruned_at"] == 20 and rows[1e-7]["score"] == pytest.approx(2e-7)
    assert not checkpoints.exists()
    assert "is not finite" in rows[1e30]["error"]
    assert "1 trials failed" in printed and "is not finite" in printed

    # Those that ended, early or not, are not begun again; the one that failed is.
    printed = call_job(job, "sweep.py", tmp_path, status=1)
    assert "3 of 4 trials were done before" in printed and printed.count("begins: ") == 1


@pytest.mark.slow
def test_hopeless_trials_are_stopped_early_and_failed_ones_are_told(
    job: dict[str, Any], tmp_path: Path
) -> None:
    # Learning rates of which the smallest learns nothing; one of 1e30 makes a loss that is no
    # number.
    sweep = {
        "space": {"training.learning_rate": [1e-2, 5e-3, 1e-7, 1e30]},
        "objective": {"gain": 1.0},
        "prune": True,
        "grace": 2,
        "concurrency": 1,
    }
    # long enough to be stopped in midst
    training = job["training"] | {"samples_per_epoch": 15 * STEPS * 8, "adjust_every": 15 * EVERY}
    job = job | {
        "run": "pruned",
        "mixture": {"start": "uniform", "policy": "constant"},
        "training": training,
        "sweep": sweep,
    }
    printed = finish_job(start_job(job, "sweep.py", tmp_path), status=1)
    run = tmp_path / "runs" / "pruned"
    rows = {
        row["training.learning_rate"]: row
        for row in pq.read_table(run / "sweep" / "results.parquet").to_pylist()
        if row["error"] is None
    }
    assert set(rows) == {1e-2, 5e-3, 1e-7}
    assert rows[1e-2]["pruned_at"] is None and rows[1e-7]["pruned_at"] is not None
    lines = (
        (run / "trials" / rows[1e-7]["trial"] / "finetune" / "adjustments.jsonl")
        .read_text()
        .splitlines()
    )
    assert json.loads(lines[-1])["step"] < 15 * STEPS
    assert "1 trials failed" in printed and "is not finite" in printed


@pytest.mark.slow
def test_optuna_searches_a_range_and_knows_what_was_tried_before(
    job: dict[str, Any], tmp_path: Path
) -> None:
    sweep = {
        "space": {"mixture.delta": {"min": 0.01, "max": 0.3, "log": True}},
        "search": "optuna_pareto",
        "trials": 2,
    }
    finish_job(start_job(job | {"run": "optuna", "sweep": sweep}, "sweep.py", tmp_path))
    before = logs(tmp_path / "runs" / "optuna")
    assert len(before) == 2
    finish_job(
        start_job(job | {"run": "optuna", "sweep": sweep | {"trials": 3}}, "sweep.py", tmp_path)
    )
    after = logs(tmp_path / "runs" / "optuna")
    assert len(after) == 3 and {name: after[name] for name in before} == before
    table = pq.read_table(tmp_path / "runs" / "optuna" / "sweep" / "results.parquet").to_pylist()
    assert len({row["mixture.delta"] for row in table}) == 3 and all(
        0.01 <= row["mixture.delta"] <= 0.3 for row in table
    )


@pytest.mark.usefixtures("ray_cluster")
def test_a_study_compares_methods_seed_by_seed_on_shared_artefacts(
    job: dict[str, Any], tmp_path: Path
) -> None:
    methods = {
        "uniform": {"mixture.start": "uniform", "mixture.policy": "constant"},
        "VersaTune, σ = 2": {"mixture.policy": "versatune", "mixture.sigma": 2.0},
        "average": {
            "mixture.start": "trajectory",
            "mixture.policy": "constant",
            "mixture.trajectory": "@VersaTune, σ = 2",
        },
    }
    job = job | {"run": "compare", "study": {"methods": methods, "seeds": [3, 4]}}
    run = tmp_path / "runs" / "compare"
    # all but one of each kind of run are there already
    for trial, end in (("uniform-3", 3.5), ("uniform-4", 3.6), ("average-4", 3.2)):
        finished(run / "trials" / trial, {}, [4.0, 3.8, end])
    finished(run / "trials" / "VersaTune-2-4", {}, [4.0, 3.8, 3.4])
    printed = call_job(job, "study.py", tmp_path)
    assert len(logs(run)) == 6
    # once for both seeds
    assert len(list((tmp_path / "runs" / ".cache" / "reference").glob("*/result.json"))) == len(
        NAMES
    )
    lines = lines_of(run / "trials" / "VersaTune-2-3")
    average = lines_of(run / "trials" / "average-3")[0]["share"]
    # adjustments are evenly spaced, so the average over steps is the one over all but the last
    for name in NAMES:
        np.testing.assert_allclose(
            average[name], np.mean([line["share"][name] for line in lines[:-1]]), atol=1e-12
        )
    assert not list(run.glob("trials/*/finetune/checkpoints"))  # their models are kept
    assert len(list(run.glob("trials/*/finetune/model/model.safetensors"))) == 6
    table = (run / "study" / "tables.md").read_text()
    assert (
        "| method | law | medicine | code | mean | mean − uniform |" in table and table in printed
    )
    ends = {
        (method, seed): np.mean(
            list(
                json.loads((run / "trials" / f"{method}-{seed}" / "outcome.json").read_text())[
                    "after"
                ].values()
            )
        )
        for method in ("uniform", "average")
        for seed in (3, 4)
    }
    differences = [ends["average", seed] - ends["uniform", seed] for seed in (3, 4)]
    # 12.706205 is t(0.975; 1), from a table.
    half = 12.706205 * np.std(differences, ddof=1) / np.sqrt(2)
    row = next(line for line in table.splitlines() if line.startswith("| average"))
    assert f"{np.mean(differences):+.3f} ± {half:.3f}" in row, row
