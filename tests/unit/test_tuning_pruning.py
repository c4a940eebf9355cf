"""Trials are compared after equal numbers of samples, and stopped no earlier than asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from versatune_ray.mixture import Constant
from versatune_ray.settings.loading import load
from versatune_ray.settings.recipe import Recipe, StagePlan
from versatune_ray.tuning import trial
from versatune_ray.tuning.plan import Plan
from versatune_ray.tuning.pruning import Marks, between_marks, samples_seen, scheduler


def stage(batch: int, steps: int, every: int, first: int = 0) -> StagePlan:
    recipe = Recipe(
        steps,
        batch,
        100,
        learning_rate=1e-3,
        warmup=0.0,
        weight_decay=0.0,
        max_grad_norm=0.0,
        seed=0,
    )
    start = np.array([0.5, 0.5])
    return StagePlan(None, (0, 1), (9, 9), start, Constant(), recipe, every, 80, first=first)


def test_samples_are_those_of_every_stage_with_its_own_batches() -> None:
    stages = [stage(8, 10, 5), stage(4, 20, 5, first=10)]
    # ten steps of 8, then of 4
    assert [samples_seen(stages, step) for step in (0, 3, 10, 12, 30)] == [0, 24, 80, 88, 160]
    assert between_marks(stages) == 40


def test_scores_at_marks_lie_on_the_lines_between_adjustments() -> None:
    # adjustments after 0, 30, 60, 90 samples; marks at 40, 80: a third of the way from 30 to 60,
    # and two thirds from 60 to 90
    marks = Marks(40, [stage(10, 9, 3)])
    told = [list(marks.reached(step, score)) for step, score in ((0, 0.0), (3, 0.3), (6, 0.6))]
    assert told[:2] == [[], []]  # neither the one before step 1 nor the first is a mark
    assert told[2] == [(40, pytest.approx(0.4))]
    assert list(marks.reached(9, 1.2)) == [(80, pytest.approx(1.0))]
    # an adjustment may pass several
    wide = Marks(40, [stage(50, 9, 3)])
    assert list(wide.reached(0, 0.0)) == []
    assert [mark for mark, _ in wide.reached(3, 1.5)] == [40, 80, 120]
    assert list(wide.reached(6, None)) == []  # without a loss there is no score


def test_a_trial_that_goes_on_from_a_checkpoint_tells_no_mark_that_it_did_not_see() -> None:
    marks = Marks(40, [stage(10, 9, 2)])
    assert list(marks.reached(6, 0.6)) == []
    assert list(marks.reached(8, 0.8)) == [(80, pytest.approx(0.8))]
    assert list(Marks(40, [stage(10, 9, 2)]).reached(4, 0.4)) == [(40, pytest.approx(0.4))]


def test_trials_of_other_batch_sizes_are_stopped_by_samples_and_after_the_grace() -> None:
    # One sees 8 samples a step and gains 0.01 for each; the other sees 16 and gains half of that,
    # which after as many adjustments would be as much.
    every = between_marks([stage(8, 100, 5)])
    asha = scheduler(every, grace=2)
    stopped: dict[str, int] = {}
    for name, batch, gain in (("good", 8, 0.01), ("bad", 16, 0.005)):
        one: Any = SimpleNamespace(trial_id=name)
        controller: Any = None
        asha.on_trial_add(controller, one)
        stages = [stage(batch, 100, 5)]
        marks = Marks(every, stages)
        for step in range(0, 45, 5):
            score = gain * samples_seen(stages, step)
            for seen, value in marks.reached(step, score):
                result = {"samples": seen, "score": value}
                if asha.on_trial_result(controller, one, result) == "STOP":
                    stopped.setdefault(name, seen)
    assert stopped == {"bad": 2 * every}  # two adjustments of 40 samples: the first does not count


def test_a_fine_tuning_tells_its_score_at_the_marks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    class Callback:
        def after_report(
            self, context: Any, metrics: list[dict[str, Any]], checkpoint: Any
        ) -> None:
            told.append(metrics[0])

    monkeypatch.setattr("ray.tune.integration.ray_train.TuneReportCallback", Callback)
    monkeypatch.setattr(trial, "stages_of", lambda config, stores: [stage(8, 100, 5)])
    config = load([], ["model.path=m", "domains={law: a.jsonl, code: b.jsonl}"])
    assert trial._reports(config, Plan(config)) == []  # nothing is compared, nothing is told
    (callback,) = trial._reports(config, Plan(config, marks=80))
    before = {"loss_before.law": 4.0, "loss_before.code": 2.0}
    # a checkpoint between adjustments has no losses; gains of the two: 0, 0.25 and 0.5, and 0
    for step, law, code in ((0, 4.0, 2.0), (5, 3.0, 2.0), (7, None, None), (15, 2.0, 2.0)):
        losses = {} if law is None else {"loss.law": law, "loss.code": code}
        callback.after_report(None, [before | losses | {"step": step}], None)
    # after 80 samples, half of the way from 40 (mean gain 0.125) to 120 (0.25)
    assert told == [
        {"gain": 0.25, "score": pytest.approx(0.1875), "samples": 80, "step": 15},
    ]
