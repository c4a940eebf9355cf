"""What a sweep refuses, and its table."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from versatune_ray.domains import DomainPaths
from versatune_ray.domains.records import Question
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import write_json
from versatune_ray.runs.folder import RunFolder
from versatune_ray.settings.loading import load, parse
from versatune_ray.tuning.plan import Plan, with_artefacts
from versatune_ray.tuning.results import _column, outcomes, write_results
from versatune_ray.tuning.study import check_study
from versatune_ray.tuning.sweep import check_objective, check_sweep


@pytest.mark.parametrize(
    ("values", "column"),
    [
        ([0, "1/256", "1/4", 1, None], [0.0, 1 / 256, 0.25, 1.0, None]),
        (["uniform", {"law": 0.5}, None], ["uniform", "{'law': 0.5}", None]),
        ([0.5, 1, None], [0.5, 1.0, None]),
        (["law", "code"], ["law", "code"]),
    ],
)
def test_values_of_any_key_make_a_column(values: list[object], column: list[object]) -> None:
    assert _column(values).to_pylist() == column


@pytest.mark.parametrize(
    "files", [("stages_dmt", "sweep_dmt"), ("stages_multi_task", "sweep_ratio")]
)
def test_the_searches_over_stages_can_be_written_as_a_table(files: tuple[str, str]) -> None:
    config = load([f"jobs/configs/{name}.yaml" for name in ("quickstart", *files)], [])
    check_sweep(config)
    for values in config.sweep.space.values():
        numbers = _column(values).to_pylist()
        assert all(isinstance(number, float) for number in numbers) and numbers == sorted(numbers)


OWN = ["model.path=m", "domains.law={train: a.jsonl, questions: q.jsonl}", "domains.code=b.jsonl"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["sweep.objective={target_gain: 1}"],
            "sweep.objective: target_gain needs mixture.targets",
        ),
        (
            ["mixture.targets=[law, code]"],
            "mixture.targets: every domain is one, so that target_gain has nothing to compare",
        ),
        (
            ["sweep.objective={other_accuracy: 1}", "mixture.targets=[law]"],
            "other_accuracy needs domains.NAME.questions or evaluation",
        ),
        (
            ["sweep.objective={accuracy: 1}", "sweep.prune=true"],
            "sweep.prune: accuracy is measured at the end of a trial",
        ),
        (
            ["sweep.objective={precision: 1}"],
            "weights of target_gain, forgetting, gain, target_accuracy, other_accuracy, accuracy, "
            "not",
        ),
    ],
)
def test_an_objective_that_cannot_be_measured_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        check_objective(load([], [*OWN, *overrides]), ["law", "code"])


def test_accuracies_are_of_questions_or_benchmarks() -> None:
    weights = "sweep.objective={target_accuracy: 1, other_accuracy: 1}"
    check_objective(
        load(
            [], [*OWN, weights, "mixture.targets=[law]", "evaluation.benchmarks.exam=[exam.jsonl]"]
        ),
        ["law", "code"],
    )
    # the microworld has questions for all
    check_objective(load([], [weights, "mixture.targets=[law]"]), ["law", "medicine"])


def test_a_search_asks_nothing_of_the_trials_of_another(tmp_path: Path) -> None:
    plan = Plan(load([], [f"storage={tmp_path}"]), weights={"accuracy": 1.0})
    write_json(
        plan.trials / "mine" / "outcome.json",
        {"changes": {"seed": 1}, "objectives": {"accuracy": 0.5}, "pruned_at": None},
    )
    write_json(
        plan.trials / "other" / "outcome.json",
        {"changes": {"mixture.sigma": 2}, "objectives": {"gain": 0.1}, "pruned_at": None},
    )
    assert [(name, one["objectives"]["score"]) for name, one in outcomes(plan, ["seed"])] == [
        ("mine", 0.5)
    ]
    with pytest.raises(UserError, match="accuracy was not measured in this trial"):
        list(outcomes(plan, ["mixture.sigma"]))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "mixture.delta",
            [0.1, 1.0],
            r"mixture.delta: 1.0 is not valid: it has to be above 0 and below 1",
        ),
        ("mixture.epsilon", [-0.5], r"mixture.epsilon: -0.5 is not valid: it has to be at least 0"),
        ("mixture.targets", [["lew"]], "mixture.targets: unknown domain 'lew'; did you mean 'law'"),
        ("mixture.sgima", [1.0], "mixture.sgima: unknown key; did you mean 'mixture.sigma'"),
        ("training.epochs", [1, 2, 1.0], "space.training.epochs: 1.* is there more than once"),
        ("training.epochs", [1, "1"], "epochs='1': the same settings as .*epochs=1; leave one"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(
    key: str, value: Any, told: str
) -> None:
    config = parse(
        {
            "model": {"path": "m"},
            "domains": {name: f"{name}.jsonl" for name in ("law", "medicine", "code")},
            "mixture": {"policy": "expansion", "targets": ["law"]},
            "sweep": {"space": {key: value}},
        }
    )
    with pytest.raises(UserError, match=told):
        check_sweep(config)


def test_keys_that_need_each_other_are_checked_together() -> None:
    space = "sweep.space={mixture.policy: [expansion], mixture.targets: [[law], [code]]}"
    objective = "sweep.objective={gain: 1}"
    domains = ["model.path=m", "domains.law=a.jsonl", "domains.code=b.jsonl"]
    check_sweep(load([], [*domains, objective, space]))
    with pytest.raises(UserError, match=r"mixture\.targets: missing"):
        check_sweep(
            load([], [*domains, objective, "sweep.space.mixture.policy=[versatune, expansion]"])
        )
    many = "sweep.space={mixture.sigma: [0, 1, 2], mixture.tau: %s, seed: %s}"
    ninety = list(range(1, 91))
    domains.append("mixture.start=temperature")
    check_sweep(load([], [*domains, objective, many % (ninety, ninety)]))
    with pytest.raises(UserError, match=r"mixture\.tau: 0 is not valid"):
        check_sweep(load([], [*domains, objective, many % ([*ninety, 0], ninety)]))


def test_two_methods_of_a_study_that_are_one_are_refused() -> None:
    methods = "study={baseline: a, methods: {a: {mixture.sigma: 2}, b: {mixture.sigma: 2.0}}}"
    told = "study.methods.b: the same settings as study.methods.a; leave one of them out"
    with pytest.raises(UserError, match=told):
        check_study(load([], [*OWN, "mixture.start=uniform", methods]))


def test_trials_of_other_settings_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*overrides: str) -> Plan:
        return Plan(load([], [*OWN, f"storage={tmp_path}", *overrides]))

    for name, epochs, changes in (("old", 4, {"seed": 1}), ("new", 8, {"seed": 2})):
        config = plan(f"training.epochs={epochs}").config(name, changes)
        with RunFolder(config) as folder:
            folder.begin({"model": "m"})
            (folder.path / "finetune" / "adjustments.jsonl").write_text('{"step": 0}\n')
            folder.write(
                "outcome.json", {"changes": changes, "objectives": {"gain": 1}, "pruned_at": None}
            )
    now = plan("training.epochs=8", "training.workers=3")
    assert [name for name, _ in outcomes(now, ["seed"])] == ["new"]
    assert "1 earlier trial(s) had other settings, left out: old" in capsys.readouterr().out


def test_a_trial_is_done_that_was_asked_the_same_or_stopped_where_trials_are_stopped(
    tmp_path: Path,
) -> None:
    plan = Plan(load([], [*OWN, f"storage={tmp_path}"]), marks=8)
    for name, pruned in (("whole", None), ("stopped", 40)):
        write_json(
            plan.trials / name / "outcome.json",
            {"changes": {"seed": 1}, "objectives": {"gain": 0.5}, "pruned_at": pruned},
        )
    now = Question("is it?", "yes")
    write_json(
        plan.trials / "other" / "outcome.json",
        {"changes": {}, "objectives": {"gain": 0.5}, "pruned_at": None, "asked": plan.asked},
    )
    assert plan.is_done("other")
    assert not replace(plan, questions={"law": [now]}).is_done("other")  # asked other things
    names = ("whole", "stopped", "none")
    assert [plan.is_done(name) for name in names] == [True, True, False]
    assert [replace(plan, marks=None).is_done(name) for name in names] == [True, False, False]


def test_trials_stopped_early_failed_or_without_a_number_are_last_and_on_no_front(
    tmp_path: Path,
) -> None:
    config = load([], [*OWN, f"storage={tmp_path}", "sweep.objective={gain: 1, accuracy: 1}"])
    plan = Plan(config, weights={"gain": 1.0, "accuracy": 1.0})
    trials: dict[str, tuple[dict[str, float], int | None]] = {
        "a-stopped": ({"gain": 0.9}, 40),
        "b-nan": ({"gain": math.nan, "accuracy": 0.9}, None),
        "c-second": ({"gain": 0.1, "accuracy": 0.4}, None),
        "d-best": ({"gain": 0.2, "accuracy": 0.4}, None),
    }
    for place, (name, (objectives, pruned)) in enumerate(trials.items()):
        write_json(
            plan.trials / name / "outcome.json",
            {"changes": {"seed": place}, "objectives": objectives, "pruned_at": pruned},
        )
    written: dict[str, Any] = {}
    run: Any = SimpleNamespace(
        given_config=config, folder=SimpleNamespace(path=tmp_path, write=written.__setitem__)
    )
    failed: Any = {"e-failed": SimpleNamespace(changes={"seed": 9}, reason="no number")}
    write_results(run, plan, ["seed"], failed)
    rows = pq.read_table(tmp_path / "sweep" / "results.parquet").to_pylist()
    assert [row["trial"] for row in rows] == [
        "d-best",
        "c-second",
        "b-nan",
        "a-stopped",
        "e-failed",
    ]
    assert rows[0]["accuracy"] == 0.4 and rows[3]["accuracy"] is None
    assert [one["trial"] for one in written["sweep/pareto.json"]] == ["d-best"]
    assert yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())["seed"] == 3
    # where nothing but a stopped one and one without a number is left, there is no best
    for name in ("c-second", "d-best"):
        (plan.trials / name / "outcome.json").unlink()
    (tmp_path / "sweep" / "best.yaml").unlink()
    write_results(run, plan, ["seed"], {})
    assert written["sweep/pareto.json"] == [] and json.dumps(written)
    assert not (tmp_path / "sweep" / "best.yaml").exists()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training.keep.replay_samples": 9}, "training.keep.replay_samples"),
        ({"data.max_length": 64}, "data.max_length"),
        ({"domains.law.where.split": "train"}, "domains.law.where.split"),
        ({"domains.law.order": "given", "data.max_train": 9, "training.keep.kl": 1.0}, None),
    ],
)
def test_trials_share_their_records_of_files(changes: dict[str, Any], key: str | None) -> None:
    plan = Plan(parse({"model": {"path": "m"}, "domains": {"law": "a", "code": "b"}}))
    if key is None:
        assert plan.config("one", changes).training.keep.kl == 1
        return
    with pytest.raises(UserError, match=rf"^{re.escape(key)}: all trials share the same records"):
        plan.config("one", changes)


def test_a_trial_that_replays_what_the_base_wrote_has_stores_of_its_own() -> None:
    base = parse({"model": {"path": "m"}, "domains": {"law": "a", "code": "b"}})
    plain, other = ({"law": DomainPaths(Path(name), None)} for name in ("plain", "other"))
    made: list[Any] = []
    checked: list[Any] = []

    def replayed(keep: Any) -> Any:
        made.append(keep.replay)
        return other

    def check_stages(config: Any, stores: Any) -> None:
        checked.append(stores)
        if len(checked) > 3:
            raise UserError("too few records")

    run: Any = SimpleNamespace(
        given_config=base,
        prepare=lambda judge: base,
        tokenize=lambda: plain,
        replayed=replayed,
        check_stages=check_stages,
    )
    fixed = {"mixture.start": "uniform", "mixture.policy": "constant"}
    changes = [fixed | {"training.keep.replay.law": part} for part in (0.0, 0.2, 0.2)]
    configs = [Plan(base).config("check", one) for one in changes]
    plan = with_artefacts(run, dict(zip("abc", configs, strict=True)), [], {})
    assert made == [{"law": 0.2}]  # once for all that replay alike
    assert [plan.stores_of(one) for one in configs] == checked == [plain, other, other]
    with pytest.raises(UserError, match="mine: too few records"):
        with_artefacts(run, {"mine": base}, [], {})


def test_a_sweep_over_what_is_replayed_is_told_what_to_do_instead() -> None:
    config = load([], ["sweep.space.training.keep.replay.law=[0.1,0.2]"])
    with pytest.raises(UserError, match=r"sweep.space.training.keep.replay.law: .* jobs/study.py"):
        check_sweep(config)
