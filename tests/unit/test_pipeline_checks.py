"""What is told before Ray starts, and before a GPU works."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pytest

from versatune_ray.errors import UserError
from versatune_ray.pipeline.checks import TUNING, Use, check_models, check_named
from versatune_ray.settings import Config
from versatune_ray.settings.loading import load


def check(config: Config, uses: Collection[Use] = TUNING) -> None:
    check_named(config, uses)
    check_models(config, uses)


@pytest.fixture
def given(tmp_path: Path, tiny_model: Path) -> list[str]:
    for name in ("law", "code"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "w3", "completion": "w4"}))
    return [
        f"model.path={tiny_model}",
        f"storage={tmp_path / 'runs'}",
        f"domains={{law: {tmp_path / 'law.jsonl'}, code: {tmp_path / 'code.jsonl'}}}",
        *("data.max_length=32", "mixture.start=uniform", "mixture.policy=constant"),
    ]


def test_what_is_there_is_taken(given: list[str]) -> None:
    check(load([], given))
    check(load([], []))  # the microworld


@pytest.mark.parametrize(
    ("change", "words", "uses"),
    [
        ("model.path=/no/model", "model.path: /no/model: no such model folder", TUNING),
        ("domains.law.train=/no/x.jsonl", r"/no/x.jsonl \(domains.law.train\)", TUNING),
        ("domains.law.validation=x.foo", "x.foo.*domains.law.validation", TUNING),
        ("domains.code.questions=/no/q.jsonl", "domains.code.questions", TUNING),
        ("data.max_length=2048", "data.max_length: this makes 2048 tokens, more than the", TUNING),
        ("data.chat_template=none.jinja", "data.chat_template: none.jinja: no such", TUNING),
        ("training.lora={rank: 4, targets: [q_porj]}", "lora.targets: .*q_porj", TUNING),
        ("training.trainable.layers=2-3", "holds layers beyond the last", ("records",)),
        ("training.soft_mask=[/no/i.safetensors]", "/no/i.safetensors", TUNING),
        ("mixture.start=detected", "detection.judge.path: missing; name a judge model", TUNING),
        ("mixture.start=detected", "detection.judge.path: missing", ("detection",)),
        ("mixture.min_share=0.6", "mixture.min_share: 0.6 for each of 2 domains", TUNING),
        ("run=mine/finetune", "lie in the folder of run 'mine'.*such as mine-finetune", TUNING),
        ("run=a/trials/b", "in the folder of run 'a'", ("records",)),
        ("evaluation.models={other: /no/m}", "evaluation.models.other: /no/m", ("models",)),
        ("reference.model=/no/m", "reference.model: /no/m: no such", ("reference",)),
        ("reference.losses=/no/l", "reference.losses: /no/l: no such file", ("reference",)),
    ],
)
def test_what_is_not_there_is_told_by_its_key(
    given: list[str], change: str, words: str, uses: Collection[Use]
) -> None:
    with pytest.raises(UserError, match=words):
        check(load([], [*given, change]), uses)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("judge.path=/no/judge", "detection.judge.path: /no/judge: no such model folder"),
        ("judge={path: MODEL, prompt: none}", "detection.judge.prompt: 'none' has no {text}"),
        ("generation.max_tokens=500", "detection.generation.max_tokens: this makes 501 tokens"),
        ("distribution=/no/file", "detection.distribution: '/no/file' is neither a file"),
    ],
)
def test_detection_is_checked_where_the_start_needs_it(
    given: list[str], tiny_model: Path, change: str, words: str
) -> None:
    judge = "" if "judge" in change else f"detection.judge.path={tiny_model}"
    change = f"detection.{change.replace('MODEL', str(tiny_model))}"
    overrides = [*given, *filter(None, [judge]), "detection.generation.max_tokens=30", change]
    check(load([], overrides))
    with pytest.raises(UserError, match=words):
        check(load([], [*overrides, "mixture.start=detected"]))


def test_trials_may_have_a_mixture_that_needs_less(given: list[str]) -> None:
    check(load([], [*given, "mixture.start=detected"]), ("records",))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("detection.distribution", r"no distribution \(needs `domains` and `share`\)"),
        ("reference.losses", "no losses.json"),
        ("domains.law.questions", r"bad\.jsonl:.* \(domains\.law\.questions\)"),
    ],
)
def test_files_that_hold_something_else_are_told_before_anything_starts(
    tmp_path: Path, given: list[str], key: str, words: str
) -> None:
    wants = ["mixture.start=detected", "mixture.policy=versatune", "detection.judge.path=m"]
    for content in ("null", "[]", "[1, 2]"):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(content + "\n")
        with pytest.raises(UserError, match=words):
            check_named(load([], [*given, *wants, f"{key}={bad}"]))
