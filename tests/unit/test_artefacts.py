"""Those who write a run's files and those who read them mean the same."""

from __future__ import annotations

import dataclasses

import pytest
from pydantic import ValidationError

from versatune_ray.detection.distribution_file import Distribution
from versatune_ray.evaluation.results import results
from versatune_ray.runs.artefacts import Adjustment, Detection, Evaluation
from versatune_ray.runs.comparisons import Mean, Replay, StudyTable
from versatune_ray.runs.training_log import TrainingLog
from versatune_ray.tuning.tables import Table as WrittenTable


def names(written: type) -> set[str]:
    return {field.name for field in dataclasses.fields(written)}


def test_what_is_written_has_every_field_that_is_read() -> None:
    assert set(Detection.model_fields) <= names(Distribution)
    assert set(StudyTable.model_fields) <= names(WrittenTable)


def test_an_evaluation_is_read_as_it_was_written() -> None:
    lines = [{"step": step, "loss": {"law": loss}} for step, loss in ((0, 2.0), (8, 1.5))]
    log = TrainingLog(lines, 8)
    found = Evaluation.model_validate(results({}, {}, log, {"law": 9}, "nats/byte"))
    assert [(one.model, one.value, one.n) for one in found.results] == [
        *(("base", 2.0, 9), ("tuned", 1.5, 9))
    ]
    assert not found.results[0].is_benchmark


def test_what_is_not_finite_was_not_measured_and_what_is_not_known_is_left_alone() -> None:
    line = {"step": 3, "loss": {"law": float("nan"), "code": 1.0}, "invented_later": 7}
    assert Adjustment.model_validate(line).loss == {"law": None, "code": 1.0}


def test_lists_of_other_lengths_than_the_domains_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match="ci95 has 1 entries for 2 domains"):
        Detection(model="m", domains=["a", "b"], share=[0.5, 0.5], ci95=[(0.4, 0.6)])
    with pytest.raises(ValidationError, match=r"shares\.x has 2 rows for 1 steps"):
        Replay(steps=[0], domains=["a"], shares={"x": [[1.0], [1.0]]})


def test_a_difference_without_a_p_is_clear_where_its_interval_leaves_zero_out() -> None:
    assert Mean(mean=-0.02, half_width=0.01).clear and not Mean(mean=0.02, half_width=0.03).clear
    assert not Mean(mean=-0.02, half_width=0.01, p=0.2).clear
