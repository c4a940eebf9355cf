"""The table of a sweep."""

from __future__ import annotations

import pytest

from versatune_ray.config import load
from versatune_ray.tuning.sweep import _column, check


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


@pytest.mark.parametrize("files", [("stages_dmt", "sweep_dmt"), ("stages_multi_task", "sweep_ratio")])
def test_the_searches_over_stages_can_be_written_as_a_table(files: tuple[str, str]) -> None:
    config = load([f"jobs/configs/{name}.yaml" for name in ("quickstart", *files)], [])
    check(config)
    for values in config.sweep.space.values():
        numbers = _column(values).to_pylist()
        assert all(isinstance(number, float) for number in numbers) and numbers == sorted(numbers)
