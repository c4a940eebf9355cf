"""What another mixture makes of the same budget, beside a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from versatune_ray.pipeline import beside
from versatune_ray.settings import semantics
from versatune_ray.settings.loading import load


def row(model: str, domain: str, value: float, metric: str = "exact_match") -> dict[str, Any]:
    return {"model": model, "domain": domain, "metric": metric, "value": value}


def test_a_table_has_before_after_and_the_other_by_domain_and_on_average() -> None:
    ours = [row("base", "law", 0.0), row("base", "code", 0.1), row("base", "law", 4.0, "loss")]
    ours += [row("tuned", "law", 0.9), row("tuned", "code", 0.7)]
    theirs = [row("tuned", "law", 1.0), row("tuned", "code", 0.9)]
    assert list(beside.side_by_side(ours, theirs)) == [
        "right answers, %      base  this run  balanced",
        "law                    0.0      90.0     100.0",
        "code                  10.0      70.0      90.0",
        "mean                   5.0      80.0      95.0",
    ]
    losses = [row("base", "law", 4.0, "loss"), row("tuned", "law", 3.0, "loss")]
    assert next(iter(beside.side_by_side(losses, losses))).startswith("held-out loss")


def test_the_other_run_differs_in_its_mixture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    class StandIn:
        """A run that is done."""

        def __init__(self, folder: Any) -> None:
            self.given_config = folder.config
            made.append(folder.config)

        def evaluate(self) -> dict[str, Any]:
            return {"results": [row("base", "law", 0.0), row("tuned", "law", 1.0)]}

        def report(self) -> None:
            pass

    monkeypatch.setattr(beside, "Run", StandIn)
    config = load(overrides=[f"storage={tmp_path}", "mixture.sigma=0.5", "training.epochs=3"])
    beside.balanced_beside(StandIn(SimpleNamespace(config=config)))  # type: ignore[arg-type]
    other = made[1]
    assert (other.run, other.mixture.policy) == ("quickstart-balanced", "balanced")
    assert other.mixture.start == "uniform" and other.mixture.length_correction == 0.5
    same = {"run", "mixture"}
    assert other.model_dump(exclude=same) == config.model_dump(exclude=same)
    assert "[beside] mean" in capsys.readouterr().out
    beside.balanced_beside(StandIn(SimpleNamespace(config=other)))  # type: ignore[arg-type]
    assert len(made) == 3  # nothing stands beside itself


def test_the_options_of_a_runs_own_policy_are_left_out() -> None:
    own = ["mixture.policy=doremi", "mixture.options.eta=2", "mixture.min_share=0.01"]
    found = beside._balanced(load([], own))
    semantics.check(found, ["law", "code"])
    assert (found.mixture.policy, found.mixture.options) == ("balanced", {})
