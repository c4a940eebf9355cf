"""What the trials of a study or sweep share."""

from __future__ import annotations

from typing import Any

import pytest

from versatune_ray.settings import Config
from versatune_ray.settings.loading import load
from versatune_ray.tuning.plan import with_artefacts


class StandIn:
    """In place of a run: notes whether a judge was wanted when the models were made."""

    def __init__(self, config: Config):
        self.given_config, self.needs_judge, self.wanted = config, False, False
        self.stores: dict[str, Any] = {}
        self.detection = self.reference = None

    @property
    def config(self) -> Config:
        self.wanted = self.needs_judge
        return self.given_config


@pytest.mark.parametrize(
    ("base", "starts", "wanted"),
    [
        (["mixture.start=uniform"], ["uniform", "detected"], True),
        (["mixture.start=detected"], ["uniform", "proportional"], False),
        (["mixture.start=uniform", "detection.distribution=llama-2-7b"], ["detected"], False),
    ],
)
def test_a_judge_is_made_where_a_trial_needs_it_and_nowhere_else(
    base: list[str], starts: list[str], wanted: bool
) -> None:
    own = ["model.path=m", "domains.law=a.jsonl", "domains.code=b.jsonl"]
    run = StandIn(load([], [*own, *base]))
    with_artefacts(
        run,
        [load([], [*own, *base, f"mixture.start={start}"]) for start in starts],
        [],
        {"gain": 1.0},
    )  # type: ignore[arg-type]
    assert run.wanted is wanted
