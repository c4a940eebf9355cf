"""The configuration: layering, types, and errors that a newcomer can act on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from versatune_ray.errors import UserError
from versatune_ray.settings import Config, Detection
from versatune_ray.settings.keys import describe
from versatune_ray.settings.loading import changed_keys, dump, load, parse, with_keys

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "jobs" / "configs").glob("*.yaml"))


def test_later_files_win_over_earlier_ones_and_overrides_over_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("training: {epochs: 1, batch_size: 8, learning_rate: 1e-3}\n")
    second.write_text("training: {epochs: 2}\n")
    training = load([first, second], ["training.batch_size=4"]).training
    assert (training.epochs, training.batch_size, training.learning_rate) == (2, 4, 1e-3)


def test_null_takes_away_what_an_earlier_source_has_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "study: {baseline: a, methods: {a: {mixture.sigma: 0.5}, b: {training.lora.rank: null}, "
        "c: {mixture.sigma: 1}}}\n"
        "evaluation: {models: {one: /m/1, two: /m/2}}\n"
        "domains: {law: a.jsonl, code: b.jsonl, art: {train: c.jsonl, questions: q.jsonl}}\n"
        "model: {path: /m}\n"
    )
    taken = ["study.methods.c=null", "evaluation.models.two=null", "domains.law=null"]
    config = load([file], [*taken, "domains.art.questions=null"])
    assert list(config.study.methods) == ["a", "b"]
    assert config.study.methods["b"] == {"training.lora.rank": None}
    assert list(config.evaluation.models) == ["one"]
    assert list(config.domains) == ["code", "art"] and config.domains["art"].questions == []


def test_a_name_with_a_dot_or_an_equals_sign_is_quoted_in_a_key(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("study: {baseline: a, methods: {a: {}, 'k = 1.5': {mixture.sigma: 1}}}\n")
    quoted, plain = 'study.methods."k = 1.5"', "study.methods.a.training.output='b.c=d'"
    changed = load([file], [f"{quoted}.mixture.sigma=0.5", plain]).study.methods
    assert changed == {"a": {"training.output": "b.c=d"}, "k = 1.5": {"mixture.sigma": 0.5}}
    assert list(load([file], [f"{quoted}=null"]).study.methods) == ["a"]
    with pytest.raises(UserError, match="no override"):
        load([file], ['study.methods."open=1'])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "training.lerning_rate=1",
            ["training.lerning_rate", "did you mean 'training.learning_rate'"],
        ),
        ("trainning.epochs=2", ["trainning", "did you mean 'training'"]),
        ("training.epochs=many", ["training.epochs", "'many'", "number"]),
        ("training.workers=0", ["training.workers", "0", "least ≤ most"]),
        ("mixture.start=unifrom", ["mixture.start", "'unifrom'", "uniform"]),
        ("mixture.policy=expansion", ["mixture.targets: missing"]),
        ("run=../elsewhere", ["run", "'../elsewhere'"]),
        ("domains.law=a.jsonl", ["'law'", "at least two"]),
        ("epochs", ["epochs", "dotted.key=value"]),
        ("run=a b", ["run: 'a b'", "use letters from a to z"]),
        ("domains.a=[x, {path: y, wieght: 1}]", ["domains.a.train.1.wieght", "mean 'weight'"]),
        ("domains.a=[x, {path: y, weight: -1}]", ["a.train.1.weight: -1", "greater than 0"]),
        ("mixture.targets=[code, code]", ["mixture.targets", "code is there more than once"]),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_way_out(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load([], [override])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_own_domains_need_a_model_or_corpora() -> None:
    with pytest.raises(UserError, match=r"model\.path: missing"):
        load([], ["domains.law=a.jsonl", "domains.code=b.jsonl"])


def test_a_domain_may_be_given_by_its_file_alone() -> None:
    config = load([], ["domains.law=a.jsonl", "domains.code=[b.jsonl, c.jsonl]", "model.path=m"])
    assert config.domains["law"].train == ["a.jsonl"]
    assert config.domains["code"].train == ["b.jsonl", "c.jsonl"]


@pytest.mark.parametrize("name", ["id", "discarded", "a/b", ""])
def test_names_that_would_clash_with_columns_or_folders_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="domains"):
        parsed({"domains": {name: "a.jsonl", "code": "b.jsonl"}, "model": {"path": "m"}})


def parsed(tree: dict[str, object]) -> Config:
    from versatune_ray.settings.loading import parse

    return parse(tree)


def test_the_resolved_configuration_can_be_loaded_again(tmp_path: Path) -> None:
    config = load([], ["training.epochs=3", f"storage={tmp_path}"])
    saved = tmp_path / "config.yaml"
    saved.write_text(dump(config) + yaml.safe_dump({"versions": {"ray": "2.60.0"}}))
    assert load([saved]) == config


def test_changed_keys_are_named_with_old_and_new_value() -> None:
    old, new = (load([], [f"training.epochs={epochs}"]) for epochs in (1, 2))
    assert list(changed_keys(old, new)) == [("training.epochs", 1.0, 2.0)]


def test_help_lists_every_key_with_type_unit_and_default() -> None:
    text = describe()
    for part in (
        "training.batch_size",
        "[samples] = 128",
        "detection.judge.engine.replicas",
        "domains.NAME.train",
        "true|false = true",
    ):
        assert part in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    commands = [
        re.findall(r"--config \S*?(\w+\.yaml)", line)
        for line in path.read_text().splitlines()
        if line.startswith("#")
    ]
    # it says what it goes on top of
    below = next((files[: files.index(path.name)] for files in commands if path.name in files), [])
    assert load([*(path.parent / name for name in below), path]).run


def test_a_preset_of_the_mixture_gives_way_to_keys_beside_it_and_overrules_earlier_ones() -> None:
    config = load([], ["mixture.preset=balanced", "mixture.sigma=3"])
    assert (config.mixture.start, config.mixture.length_correction, config.mixture.sigma) == (
        "uniform",
        0.5,
        3,
    )
    paper = parse(
        with_keys(config.model_dump(mode="json"), {"mixture.preset": "paper", "mixture.sigma": 0.5})
    )
    assert (paper.mixture.start, paper.mixture.length_correction, paper.mixture.sigma) == (
        "detected",
        0,
        0.5,
    )
    assert (
        load([], ["detection.preset=paper"]).detection.samples
        == Detection.model_validate({"preset": "paper"}).samples
        == 40_000
    )
