"""What the trials of a study or sweep share."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from versatune_ray.detection.distribution import given
from versatune_ray.pipeline.checks import _check_reference
from versatune_ray.runs.cache import write_json
from versatune_ray.runs.storage import fetch, push
from versatune_ray.settings import Config
from versatune_ray.settings.loading import load
from versatune_ray.settings.mixing import starting_shares
from versatune_ray.training.given_losses import given_losses
from versatune_ray.tuning.account import Account
from versatune_ray.tuning.plan import Plan, with_artefacts
from versatune_ray.tuning.results import outcomes


class StandIn:
    """In place of a run: notes whether a judge was wanted when the models were made."""

    def __init__(self, config: Config):
        self.given_config, self.wanted = config, False
        self.folder = SimpleNamespace(path=Path("run"))

    def prepare(self, *, judge: bool) -> Config:
        self.wanted = judge
        return self.given_config

    def tokenize(self) -> dict[str, Any]:
        return {}

    def check_stages(self, config: Config, stores: Any) -> None:
        """Every run has records enough."""

    def detect(self) -> None:
        """Was done before."""

    def measure_references(self) -> None:
        """Were measured before."""

    def model(self) -> str:
        return "m"


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
        {start: load([], [*own, *base, f"mixture.start={start}"]) for start in starts},
        [],
        {"gain": 1.0},
    )  # type: ignore[arg-type]
    assert run.wanted is wanted


class Bomb:
    """Unpickling it leaves a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Failure # 1\nray::x\nKeyError: 1\nThe above\na.b.TrialFailed: too big (x)\n",
            "too big (x)",
        ),
        ("TrialFailed: first\nFailure # 2\n  TrialFailed: second\n", "second"),
        ("Failure # 1\nThe actor died.\n\tIts node was lost.\n\n", "Its node was lost."),
        ("TrialFailed: \x1b[2J https://me:pass@host/x", r"\x1b[2J https://host/x"),
        ("", "it ended without a word"),
        (None, "it ended without a word"),
    ],
)
def test_a_failed_trial_is_told_by_its_text_and_nothing_is_unpickled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, reason: str
) -> None:
    (tmp_path / "error.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    if text is not None:
        (tmp_path / "error.txt").write_text(text)
    account = Account(None, "sweep", 1, 0)  # type: ignore[arg-type]
    trial = SimpleNamespace(
        config={"trial": ("t1", {"a.b": 1})},
        error_file=None if text is None else str(tmp_path / "error.txt"),
        pickled_error_file=str(tmp_path / "error.pkl"),
    )
    account.on_trial_error(0, [], trial)
    assert account.failed["t1"].reason == reason and not (tmp_path / "boom").exists()
    assert f"1/1 failed: t1 (b=1): {reason}" in capsys.readouterr().out


Machine = Callable[[str], Plan]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Go on, on another machine; gives the plan of trials in a storage that all of them share."""
    (tmp_path / "remote").mkdir()
    own = ["model.path=m", "domains.law=a.jsonl", "domains.code=b.jsonl"]

    def go(name: str) -> Plan:
        monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / name))
        return Plan(load([], [*own, f"storage=file://{tmp_path / 'remote'}"]))

    return go


def leave(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content)
    push(file)
    return file


def test_a_trial_that_another_machine_did_is_done(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = machine("worker")
    left = {"changes": {"mixture.sigma": 1}, "objectives": {"gain": 0.5}, "pruned_at": None}
    leave(plan.trials / "t1" / "outcome.json", left)
    plan = machine("driver")
    account = Account(plan, "sweep", 1, 0)
    changes = {"mixture.sigma": 1}
    trial = SimpleNamespace(config={"trial": ("t1", changes)}, last_result={"gain": 0.5})
    account.on_trial_complete(0, [], trial)
    assert "1/1 done: t1 (sigma=1)" in capsys.readouterr().out and not account.pruned
    assert [name for name, _ in outcomes(plan, ["mixture.sigma"])] == ["t1"]


def test_what_trials_share_is_read_on_every_machine(machine: Machine) -> None:
    made = machine("driver").base.run_folder
    shares = leave(made / "distribution.json", {"domains": ["law", "code"], "share": [3, 1]})
    losses = leave(
        made / "losses.json",
        {"unit": "nats/byte", "domains": {"law": {"loss": 2}, "code": {"loss": 1}}},
    )
    log = leave(made / "adjustments.jsonl", 0)
    line = {"step": 0, "share": {"law": 0.25, "code": 0.75}}
    log.write_text("".join(json.dumps(line | {"step": step}) + "\n" for step in (0, 1)))
    push(log)
    machine("worker")
    assert given(str(shares), ["law", "code"])["share"] == [0.75, 0.25]
    _check_reference(load([], [f"reference.losses={losses}"]), ["law"])  # as in a best.yaml
    assert given_losses(str(losses), ["law", "code"], "t")["domains"]["law"]["loss"] == 2.0
    config = load(
        [],
        [
            "model.path=m",
            "domains.law=a",
            "domains.code=b",
            "mixture.start=trajectory",
            f"mixture.trajectory={log}",
        ],
    )
    fetch(str(log))
    np.testing.assert_allclose(starting_shares(config, ["law", "code"], None, [1, 1]), [0.25, 0.75])
