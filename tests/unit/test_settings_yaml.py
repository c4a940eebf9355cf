"""YAML as it is read: what is a number, what a text; names once; short forms through a merge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from versatune_ray.errors import UserError
from versatune_ray.settings.loading import load, no_option
from versatune_ray.settings.yaml12 import plain, read_yaml

TWO = ["domains.law=a.jsonl", "domains.code=b.jsonl", "model.path=m"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-5", 1e-5), ("1e5", 1e5), (".5", 0.5), ("-3", -3), ("0x10", 16), ("0o17", 15)),
        *(("1:30", "1:30"), ("no", "no"), ("on", "on"), ("yes", "yes"), ("007", "007")),
        *(("true", True), ("False", False), ("~", None), ("", None), ("2024-01-01", "2024-01-01")),
        *(('"7"', "7"), ("1.2.3", "1.2.3"), ("{no: 1, 1: ~}", {"no": 1, "1": None})),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = plain(read_yaml(text))
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("text", ["&a [*a]", "[" * 3000, "!!python/object:os.x {}", "!!int x"])
def test_what_is_no_plain_tree_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            b"domains:\n  law: {train: a.jsonl\n  code: b\n",
            ":3:7: no valid YAML: expected ',' or '}', but got ':', while parsing a flow mapping "
            "that begins in line 2",
        ),
        (b"run: a\n\tseed: 1\n", ":2:1: no valid YAML: found character '\\t'"),
        (b"seed: 1\nrun: caf\xe9\n", ":2: no text in UTF-8; save it as such"),
    ],
)
def test_what_is_no_yaml_is_told_by_its_place(text: bytes, place: str, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(text)
    with pytest.raises(UserError, match=re.escape(f"{file}{place}")):
        load([file])


def test_what_is_empty_is_nothing_given() -> None:
    assert load([], [*TWO, "domains.law.validation="]).domains["law"].validation == []
    with pytest.raises(UserError, match=r"^domains\.law\.train: missing; name a file"):
        load([], [*TWO, "domains.law.train="])
    with pytest.raises(UserError, match=r"^training\.epochs: nothing is given; "):
        load([], ["training.epochs="])


def test_a_name_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("run: a\ndomains:\n  law: x\n  code: y\n  law: z\n")
    with pytest.raises(UserError, match=r"a\.yaml: 'law' is there twice, in lines 3 and 5"):
        load([file])


def test_mappings_may_be_shared_with_anchors(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("reference: &r {batch_size: 4}\ntraining: {<<: *r, epochs: 2}\n")
    config = load([file])
    assert (config.training.batch_size, config.training.epochs) == (4, 2)


@pytest.mark.parametrize("name", ["007", "7", "1e5", "0x1f", "2024"])
def test_a_text_that_looks_like_a_number_stays_as_it_is_written(name: str, tmp_path: Path) -> None:
    assert load([], [f"run={name}"]).run == name
    file = tmp_path / "a.yaml"
    file.write_text(f"run: {name}\ndomains: {{{name}: a, no: b}}\nmodel: {{path: m}}\n")
    assert load([file]).run == name and list(load([file]).domains) == [name, "no"]


def test_an_empty_section_is_one_without_keys(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("training:\n  # epochs: 2\nrun: a\n")
    assert load([tmp_path / "a.yaml"]).training.epochs == 4


def test_a_short_form_survives_a_merge() -> None:
    law = load([], [*TWO, "domains.law.validation=v.jsonl"]).domains["law"]
    assert (law.train, law.validation) == (["a.jsonl"], ["v.jsonl"])
    (model,) = load([], ["detection.models=[a/x]", "detection.models.x.name=y"]).detection.models
    assert (model.path, model.name) == ("a/x", "y")
    benchmarks = [
        "evaluation.benchmarks.law=[arc, mmlu]",
        "evaluation.benchmarks.law.mmlu.shots=2",
    ]
    found = load([], benchmarks).evaluation.benchmarks["law"]
    assert [(one.task, one.shots) for one in found] == [("arc", None), ("mmlu", 2)]


@pytest.mark.parametrize("value", [".nan", ".inf", "1e999", "9" * 5000])
@pytest.mark.parametrize("key", ["training.learning_rate", "mixture.options.eta", "seed"])
def test_numbers_that_are_none_are_refused_by_key(key: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{key}: .*finite"):
        load([], [f"{key}={value}"])


@pytest.mark.parametrize("value", ["yes", "on", "1", "'true'"])
def test_a_switch_is_true_or_false(value: str) -> None:
    with pytest.raises(UserError, match=r"training\.no_sync: .*true or false"):
        load([], [f"training.no_sync={value}"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("learning_rate=1", "learning_rate: unknown key; did you mean 'training.learning_rate'"),
        ("sigma=1", "did you mean 'mixture.sigma'"),
        ("detecton.samples=1", "did you mean 'detection'"),
        ("training.cpu_offload={a: 1}", "training.cpu_offload: "),
        (
            "training=3",
            "training: 3 is not valid: it has keys of its own; write training.KEY=VALUE",
        ),
        ("my.yaml", "my.yaml: a configuration file is given as --config my.yaml"),
        ("judge.path=x", "did you mean 'detection.judge'"),
        ("domains.law.trian=x", "did you mean 'domains.NAME.train'"),
    ],
)
def test_a_mistake_says_where_to_go(given: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load([], [*TWO, given])
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "a\\b", "a\tb", "x" * 300, "id"])
def test_names_that_are_none_of_a_domain_are_refused(name: str) -> None:
    from versatune_ray.settings.loading import parse

    tree = {"domains": {name: "a", "code": "b"}, "model": {"path": "m"}}
    with pytest.raises(UserError, match="cannot be a domain's name"):
        parse(tree)


def test_an_option_that_there_is_not_says_what_to_type() -> None:
    for words in (["--epochs=2"], ["--training.epochs=2"]):
        assert no_option(words).endswith("no such option; write training.epochs=2")
    assert no_option(["--epochs"]).endswith("write training.epochs=VALUE")
    assert (
        no_option(["--foo"])
        == "--foo: no such option; --help lists options, --keys what a configuration may say"
    )


def test_names_that_stand_for_more_values_than_there_can_be_are_refused() -> None:
    lines = ["a0: &a0 [" + ",".join("1" * 9) + "]"]
    lines += [f"a{n}: &a{n} [" + ",".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 9)]
    assert len(read_yaml("\n".join(lines[:3]))["a2"]) == 9
    with pytest.raises(yaml.YAMLError, match="stand for more than 1,000,000 values"):
        read_yaml("\n".join(lines))
