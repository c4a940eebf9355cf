"""What the trials of a study or sweep share."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from versatune_ray.settings import Config
from versatune_ray.settings.loading import load
from versatune_ray.tuning.account import Account
from versatune_ray.tuning.plan import with_artefacts


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
        [load([], [*own, *base, f"mixture.start={start}"]) for start in starts],
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
