"""A run's steps: nothing happens on looking at one, each is done once, and what it needs is asked
for and no more.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from versatune_ray.errors import UserError
from versatune_ray.microworld import prepare as preparing
from versatune_ray.pipeline import Run
from versatune_ray.runs.folder import RunFolder
from versatune_ray.settings import Config
from versatune_ray.settings.loading import parse


def config_of(folder: Path, **sections: Any) -> Config:
    if "model" in sections:
        sections["domains"] = {"law": "law.jsonl", "code": "code.jsonl"}
    tree = {"run": "test", "storage": str(folder), "mixture": {"start": "uniform"}, **sections}
    config: Config = parse(tree)
    return config


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    """What was prepared: (base model, judge)."""
    calls: list[tuple[bool, bool]] = []

    def prepare(config: Config, base: bool, judge: bool) -> tuple[Config, bool]:
        calls.append((base, judge))
        named = config.model.model_copy(update={"path": "/models/made"}) if base else config.model
        return config.model_copy(update={"model": named}), False

    monkeypatch.setattr(preparing, "prepare", prepare)
    return calls


def test_looking_at_a_run_does_nothing() -> None:
    members = {name: inspect.getattr_static(Run, name) for name in dir(Run)}
    lazy = [name for name, member in members.items() if hasattr(member, "__get__")]
    assert [name for name in lazy if not callable(members[name]) and name[:2] != "__"] == []


def test_models_are_prepared_once_and_no_more_of_them_than_is_asked_for(
    tmp_path: Path, asked: list[tuple[bool, bool]]
) -> None:
    with RunFolder(config_of(tmp_path)) as folder:
        run = Run(folder)
        assert run.model() == run.model() == "/models/made"
        assert asked == [(True, False)]
        run.prepare(judge=True)
        run.prepare()
        assert asked == [(True, False), (True, True)]


def test_what_has_more_serves_who_needs_less(
    tmp_path: Path, asked: list[tuple[bool, bool]]
) -> None:
    with RunFolder(config_of(tmp_path)) as folder:
        run = Run(folder)
        run.prepare(judge=True)
        assert run.prepare() is run.prepare(base=False, judge=True)
        assert asked == [(True, True)]


def test_a_run_on_stores_that_are_there_looks_nothing_up(
    tmp_path: Path, asked: list[tuple[bool, bool]]
) -> None:
    config = config_of(tmp_path, model={"path": "/models/given"})
    stores: dict[str, Any] = {"law": (tmp_path, None), "code": (tmp_path, None)}
    with RunFolder(config) as folder:
        run = Run(folder, stores=stores)
        assert run.tokenize() is stores and run.model() == "/models/given"
        assert run.prepare(judge=True) is config and asked == []


def test_a_given_distribution_is_noted_and_read_once(tmp_path: Path) -> None:
    given = tmp_path / "given.json"
    given.write_text('{"domains": ["code", "law"], "share": [3, 1]}')
    config = config_of(
        tmp_path, model={"path": "/models/given"}, detection={"distribution": str(given)}
    )
    with RunFolder(config) as folder:
        run = Run(folder)
        assert run.detect()["share"] == [0.25, 0.75]
        given.unlink()
        assert run.detect()["share"] == [0.25, 0.75]
        assert (folder.path / "detection" / "given" / "distribution.json").is_file()


def test_a_fine_tuning_that_was_begun_on_something_else_is_refused(tmp_path: Path) -> None:
    with RunFolder(config_of(tmp_path)) as folder:
        folder.begin({"model": "a", "detected": None})
        (folder.path / "finetune" / "adjustments.jsonl").write_text('{"step": 0}\n')
        folder.begin({"model": "a", "detected": None})
        with pytest.raises(UserError, match="finetune: model changed since this fine-tuning began"):
            folder.begin({"model": "b", "detected": None})


def test_a_run_of_many_models_has_no_model_to_fine_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "prepare", lambda config, *_: (config, True))
    with (
        RunFolder(config_of(tmp_path, detection={"models": ["/models/a"]})) as folder,
        pytest.raises(UserError, match=r"model\.path: missing; detection\.models are for"),
    ):
        Run(folder).model()
