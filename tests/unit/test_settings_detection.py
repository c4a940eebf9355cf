"""Settings of detection: presets, lists of models, and combinations that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from versatune_ray.cli import QUICKSTART
from versatune_ray.errors import UserError
from versatune_ray.settings.loading import dump, load, parse


def detection(*overrides: str) -> object:
    return load([], [f"detection.{override}" for override in overrides]).detection


def test_a_preset_fills_what_is_not_set() -> None:
    found = load(
        [],
        ["detection.preset=release", "detection.samples=7", "detection.generation.max_tokens=20"],
    ).detection
    assert (found.samples, found.repeats) == (7, 1)
    assert (
        found.generation.max_tokens,
        found.generation.repetition_penalty,
        found.generation.start,
    ) == (20, 1.1, "eos")
    assert (found.judge.answer, found.judge.permute) == ("label", False)
    # what is said later overrules the file
    paper = load([QUICKSTART], ["detection.preset=paper"]).detection
    assert paper.samples * paper.repeats == 200_000


def test_models_take_their_names_from_their_paths_and_their_engines_from_the_common_one() -> None:
    config = load(
        [],
        [
            "detection.models=[a/one, {path: b/two, engine: {tensor_parallel: 4}}]",
            "detection.engine.batch_size=64",
        ],
    )
    one, two = config.detection.models
    assert (one.name, one.engine.tensor_parallel, one.engine.batch_size) == ("one", 1, 64)
    assert (two.name, two.engine.tensor_parallel, two.engine.batch_size) == ("two", 4, 64)
    assert parse(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize(
    ("name", "text"), [("m.txt", "# ours\na/one\n\nb/two\n"), ("m.yaml", "[a/one, {path: b/two}]")]
)
def test_models_come_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert [
        model.path for model in load([], [f"detection.models={tmp_path / name}"]).detection.models
    ] == ["a/one", "b/two"]


def test_local_models_are_named_by_their_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    (model,) = load([], ["detection.models=mine"]).detection.models
    assert (model.path, model.name) == (str(tmp_path / "mine"), "mine")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("models=[a/x, b/x]", "'x' is there 2 times"),
        ("models=none.txt", "no such file of models"),
        ("models=[{path: a/x, name: ../x}]", "cannot be a model's name"),
        ("engine.replicas=[3, 2]", "1 ≤ least ≤ most"),
        ("tolerance=0", "has to be above 0"),
        ("judge.kind=http", "judge.http.url"),
        (
            "judge={kind: http, path: x, http: {url: 'http://me:secret@host/v1'}}",
            "put the key in the environment",
        ),
        ("judge.kind=classifier", "judge.path: missing"),
        ("preset=papr", "'paper' or 'release'"),
    ],
)
def test_settings_that_cannot_work_are_refused(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        detection(override)


def test_a_correction_needs_a_measured_judge() -> None:
    with pytest.raises(UserError, match=r"judge\.records: 0"):
        detection("estimate=corrected", "judge.records=0")


def test_replicas_that_share_vllms_seed_are_refused() -> None:
    for replicas in ("engine.replicas=4", "models=[{path: a/x, engine: {replicas: 4}}]"):
        with pytest.raises(UserError, match="the same texts"):
            detection("generation.seeded=false", replicas)
