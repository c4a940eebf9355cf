"""What the keys of ``mixture`` refuse together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from versatune_ray.errors import UserError
from versatune_ray.settings import semantics
from versatune_ray.settings.loading import load

NAMES = ("law", "code", "general")


def stages(*overrides: str) -> None:
    domains = [f"domains.{name}=a" for name in NAMES]
    config = load([], ["model.path=m", *domains, "mixture.start=uniform", *overrides])
    semantics.stages(config, NAMES, [100, 100, 100], None, "nats/token")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["mixture.start=proportional"], "mixture.start=proportional"),
        (["mixture.start=temperature"], "mixture.start=temperature"),
        (
            ["mixture.start={law: 3 epochs, code: 1 epochs, general: 1 epochs}"],
            "mixture.start in epochs",
        ),
        (
            ["mixture.start={a: {share: 1, members: {law: 2 epochs, code: 1 epoch}}, general: 1}"],
            "mixture.start in epochs",
        ),
        (["mixture.policy=powerlaw"], "mixture.policy=powerlaw"),
        (["mixture.policy=dynamix"], "mixture.policy=dynamix"),
        (["mixture.policy=schedule"], "mixture.policy=schedule"),
    ],
)
def test_what_counts_records_does_not_share_out_tokens(given: list[str], named: str) -> None:
    with pytest.raises(UserError, match=f"mixture.unit=tokens: {named} goes by numbers of records"):
        stages("mixture.policy=constant", *given, "mixture.unit=tokens")
    stages("mixture.policy=constant", *given)


@pytest.mark.parametrize("policy", ["mixture.policy=aioli", "mixture.policy=constrained"])
def test_a_run_too_short_to_try_its_domains_is_refused(policy: str) -> None:
    # 4 epochs of 300 records by 10 are 120 steps. Three probes come after the first interval, and
    # an answer after them: five intervals of 24.
    run = [policy, "mixture.targets=[law]", "training.epochs=4", "training.batch_size=10"]
    stages(*run, "training.adjust_every=24")
    with pytest.raises(UserError, match=r"needs 5 intervals .*, and 120 steps have 4; lower"):
        stages(*run, "training.adjust_every=30")


def test_a_floor_above_what_a_probe_leaves_is_refused() -> None:
    # half of a uniform mixture is a sixth for each of three
    run = ["mixture.policy=aioli", "training.adjust_every=1"]
    stages(*run, "mixture.min_share=0.16")
    with pytest.raises(UserError, match=r"mixture\.min_share: 0\.17 .*aioli leave.*0\.1667"):
        stages(*run, "mixture.min_share=0.17")


def test_an_average_of_shares_of_samples_is_none_of_tokens(tmp_path: Path) -> None:
    log = tmp_path / "run" / "finetune" / "adjustments.jsonl"
    log.parent.mkdir(parents=True)
    share = dict(zip(NAMES, (0.5, 0.25, 0.25), strict=True))
    log.write_text("".join(json.dumps({"step": n, "share": share}) + "\n" for n in (0, 5)))
    given = ["mixture.start=trajectory", f"mixture.trajectory={log}"]

    def start(unit: str) -> list[float]:
        config = load([], [*given, "mixture.policy=constant", f"mixture.unit={unit}"])
        return semantics.starting_shares(config, NAMES, None, [1, 1, 1]).tolist()

    assert start("tokens") == start("samples") == [0.5, 0.25, 0.25], "nothing says what it counts"
    (tmp_path / "run" / "config.yaml").write_text("mixture: {unit: samples}\n")
    assert start("samples") == [0.5, 0.25, 0.25]
    with pytest.raises(UserError, match=r"its shares count samples, and those here tokens; set"):
        start("tokens")
