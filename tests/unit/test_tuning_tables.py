"""Intervals, differences, Holm's correction and the tables of a study, against numbers worked by
hand.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from versatune_ray.domains.choices import Choices
from versatune_ray.domains.records import Question
from versatune_ray.runs.cache import write_json
from versatune_ray.settings.loading import load
from versatune_ray.tuning.plan import Plan
from versatune_ray.tuning.statistics import Estimate, adjusted, estimate, paired_difference
from versatune_ray.tuning.study import _write_tables
from versatune_ray.tuning.study_tables import NOTE, absent, study_tables
from versatune_ray.tuning.tables import Table, table


def test_the_interval_is_students() -> None:
    # sd 1, so 1 / √3 times t(0.975; 2) = 4.302653 (from a table)
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert math.isnan(estimate([1.0]).half_width)
    with pytest.raises(ValueError, match="none"):
        estimate([])


def test_none_or_all_right_in_every_run_gets_wilsons_interval() -> None:
    # z² = 3.841459: from 0 of 50 up to 3.841459 / 53.841459 = 0.0713475, and from 50 as far down
    assert estimate([0.0] * 3, asked=50).half_width == pytest.approx(0.0713475, abs=1e-6)
    assert estimate([100.0] * 3, 50, 100.0).half_width == pytest.approx(7.13475, abs=1e-4)
    # what is between has Student's, and so have losses, of which nothing was asked
    assert estimate([50.0] * 3, 50, 100.0).half_width == 0
    assert estimate([0.0] * 3).half_width == 0


def test_differences_are_taken_seed_by_seed() -> None:
    # 1, 2, 3 over the common seeds: t = 2 / (1 / √3) = 3.4641, whose p with 2 degrees of freedom
    # is 1 − t / √(t² + 2) = 1 − 3.4641 / 3.7417 = 0.0742
    ours, theirs = {0: 1.0, 1: 6.0, 2: 11.0, 3: 7.0}, {2: 8.0, 1: 4.0, 0: 0.0}
    found = paired_difference(ours, theirs)
    assert found is not None and (found.mean, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert found.p == pytest.approx(0.07418, abs=1e-5) and not found.sure
    for order in itertools.permutations(theirs):
        assert paired_difference(ours, {seed: theirs[seed] for seed in order}) == found
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    alone = paired_difference({0: 1.0}, {0: 3.0})
    assert alone is not None and alone.mean == -2 and math.isnan(alone.p) and not alone.sure


def test_differences_that_are_all_alike_are_as_sure_as_their_signs() -> None:
    # one question more in each of n seeds: by chance both signs are as likely, 2 · 2^-n
    for n, p in ((2, 0.5), (3, 0.25), (6, 0.03125)):
        found = paired_difference(dict.fromkeys(range(n), 0.3), dict.fromkeys(range(n), 0.1))
        assert found is not None and found.p == p and found.sure is (p < 0.05)
    same = paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same is not None and same.p == 1


def test_holms_correction() -> None:
    # Ascending 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and none below one
    # before it: 0.06 for the last, too. What has no p is not counted.
    given: dict[str, Estimate | None] = {
        name: Estimate(1.0, 0.1, 3, p)
        for name, p in {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "one seed": math.nan}.items()
    }
    found = adjusted(given | {"baseline": None})
    assert found["baseline"] is None and list(found) == [*given, "baseline"]
    holm = {name: one.holm for name, one in found.items() if one is not None}
    assert math.isnan(holm.pop("one seed"))
    assert holm == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert [one.sure_among_all for one in found.values() if one] == [
        True,
        False,
        False,
        True,
        False,
    ]
    # never above 1
    pair = adjusted({"a": Estimate(0.0, 1.0, 3, 0.9), "b": Estimate(0.0, 1.0, 3, 0.8)})
    assert [one.holm for one in pair.values() if one] == [1.0, 1.0]


def test_methods_that_do_not_differ_are_seldom_told_apart_however_many_there_are() -> None:
    # 13 methods over three seeds, all of them noise
    rng, single, among_all = np.random.default_rng(0), 0, 0
    for _ in range(300):
        values = {
            f"m{method}": {seed: {"mean": float(rng.normal())} for seed in range(3)}
            for method in range(13)
        }
        found = table("", values, ["mean"], "mean", "m0").differences.values()
        single += any(one.sure for one in found if one)
        among_all += any(one.sure_among_all for one in found if one)
    assert single > 0.3 * 300 and among_all < 0.08 * 300


def test_both_marks_are_shown() -> None:
    def runs(*values: float) -> dict[int, dict[str, float]]:
        return {seed: {"mean": value} for seed, value in enumerate(values)}

    values = {
        "base": runs(0, 0, 0),
        "far": runs(1, 1.001, 0.999),
        "near": runs(1, 1.3, 0.7),
        "not": runs(1, 2, 3),
    }
    shown = table("t", values, ["mean"], "mean", "base").markdown().splitlines()
    assert shown[0] == "| method | mean | mean − base |"
    assert shown[2].endswith("| 0.000 ± 0.000 |  |")
    assert shown[3].endswith("| **+1.000 ± 0.002** † |")
    # t = 1 / (0.3 / √3) = 5.774: p = 1 − 5.774 / √(5.774² + 2) = 0.0287, with Holm 2 · 0.0287
    assert shown[4].endswith("| **+1.000 ± 0.745** |")
    assert shown[5].endswith("| +2.000 ± 2.484 |")
    assert "†" in NOTE and "one base model" in NOTE


def outcome(law: float, accuracy: dict[str, float] | None) -> dict[str, Any]:
    after = {"law": law, "code": 2.0}
    return {
        "before": {"law": 4.0, "code": 2.0},
        "after": after,
        "by_epoch": [],
        "accuracy": accuracy,
        "objectives": {"gain": 0.1, "target_gain": 0.2, "forgetting": 0.0},
    }


def of(found: Any, asked: dict[str, int], targets: tuple[str, ...] = ()) -> list[Table]:
    return study_tables(found, ["law", "code"], "nats/token", targets, "uniform", asked)


def test_domains_without_questions_have_no_accuracy_and_the_others_do() -> None:
    found = {
        "uniform": {0: outcome(3.0, {"law": 0.5}), 1: outcome(3.0, {"law": 0.7})},
        "mine": {0: outcome(2.0, {"law": 0.6}), 1: outcome(2.0, {"law": 0.9})},
    }
    loss, accuracy = of(found, {"law": 10})
    assert loss.title.startswith("Held-out loss") and loss.columns == ("law", "code", "mean")
    assert accuracy.title == "Greedy accuracy after training (%, higher is better)"
    assert accuracy.columns == ("law", "mean")
    assert accuracy.rows["mine"]["law"].mean == pytest.approx(75)
    difference = accuracy.differences["mine"]
    assert difference is not None and difference.mean == pytest.approx(15)
    assert absent(found, [0, 1], ["law", "code"], {"law": 10}) == [
        "No accuracy of code: no questions there."
    ]
    assert absent(found, [0, 1, 2], ["law", "code"], {}) == [
        "Not done: uniform, seed 2.",
        "Not done: mine, seed 2.",
    ]


def test_the_time_of_a_method_for_measuring_is_over_that_of_its_steps() -> None:
    found = {
        "uniform": {
            seed: outcome(3.0, None) | {"seconds": {"training": 10.0, "measuring": 1.0 + seed}}
            for seed in (0, 1)
        },
        "before": {0: outcome(2.0, None), 1: outcome(2.0, None) | {"seconds": {"training": 0}}},
    }
    _, time = of(found, {})
    assert time.title == "Time for measuring (% of the time for training, lower is better)"
    assert time.rows["uniform"]["measuring"].mean == pytest.approx(15)
    assert time.rows["before"] == {}  # what an earlier version left says nothing of it


def test_a_method_without_a_seed_of_the_baseline_is_in_the_table_and_told() -> None:
    found = {
        "uniform": {0: outcome(3.0, None)},
        "mine": {1: outcome(2.0, None)},
        "none": {},
    }
    for one in of(found, {"law": 10}, ("law",)):
        assert list(one.rows) == ["uniform", "mine"] and one.differences["mine"] is None
        assert one.missing == ("mine shares no measured seed with uniform.",)
        text = one.markdown()
        assert text.splitlines()[3].endswith("| – |")
        assert text.endswith("\n\nmine shares no measured seed with uniform.")
        assert "mine,law" in one.csv() or "mine,gain" in one.csv()


def test_tables_are_written_without_a_run_of_the_baseline() -> None:
    (loss,) = of({"uniform": {}, "mine": {0: outcome(2.0, None)}}, {})
    assert list(loss.rows) == ["mine"] and loss.differences == {"mine": None}
    assert loss.missing == ("No run of the baseline uniform is done, so there are no differences.",)
    assert of({"uniform": {}, "mine": {}}, {"law": 3}, ("law",)) == []


def test_a_study_ends_with_files_whatever_is_missing(tmp_path: Path) -> None:
    methods = "study.methods={uniform: {}, mine: {mixture.sigma: 2}, late: {mixture.sigma: 3}}"
    own = ["model.path=m", "domains={law: {train: a.jsonl, questions: q.jsonl}, code: b.jsonl}"]
    config = load([], [*own, methods, "study.seeds=[0, 1]", f"storage={tmp_path}"])
    choices = {"code": [[Choices("?", ("a", "b"), 0)] * 50]}
    plan = Plan(config, questions={"law": [Question("?", "a")] * 4}, choices=choices)
    for name, seed, law in (("uniform", 0, 0.5), ("mine", 1, 0.75)):
        write_json(
            plan.trials / f"{name}-{seed}" / "outcome.json",
            {**outcome(3.0, {"law": law}), "pruned_at": None, "choices": {"code": law}},
        )
    written: dict[str, Any] = {}
    folder = SimpleNamespace(path=tmp_path, write=written.__setitem__)
    run: Any = SimpleNamespace(
        given_config=config,
        folder=folder,
        domain_names=lambda: ["law", "code"],
        unit=lambda: "nats/token",
    )
    _write_tables(run, plan, {"code": 0.6})
    text = (tmp_path / "study" / "tables.md").read_text(encoding="utf-8")
    assert text.startswith(NOTE)
    for sentence in (
        "Not done: uniform, seed 1.",
        "Not done: mine, seed 0.",
        "Not done: late, seeds 0, 1.",
        "No accuracy of code: no questions there.",
        "mine shares no measured seed with uniform.",
        # √(0.6 · 0.4 / 50) = 0.0693
        "Before training, in points above chance with one standard error (questions): "
        "code +10.0 ± 6.9 (50).",
    ):
        assert f"\n{sentence}\n" in text, text
    assert "| mine | 75.0 | 75.0 | – |" in text
    assert "| mine | 25.0 | 25.0 | – |" in text and "| uniform | 0.0 | 0.0 |  |" in text
    assert len(list((tmp_path / "study").glob("table_*.csv"))) == 3
    assert len(written["study/tables.json"]) == 3
