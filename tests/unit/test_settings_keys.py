"""What stands on a key: whether it may change on resume, whether results depend on it; and that the
tables say so of the right ones.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from versatune_ray.settings import Config, Reference
from versatune_ray.settings.keys import describe, flags, is_declared, keys, without_unknown
from versatune_ray.settings.loading import load
from versatune_ray.tuning.trials import _whole_paths


@pytest.mark.parametrize(
    ("key", "resumable", "results"),
    [
        ("training.learning_rate", False, True),
        ("training.workers", True, False),
        ("training.keep_best", False, True),
        ("evaluation.benchmarks.law", True, True),
        ("detection.judge.http.retries", True, False),
        ("detection.models", True, True),
        ("detection.judge.path", False, True),
        ("domains.law.train", False, True),
        ("mixture.start.law", False, True),
        ("stages.0.epochs", False, True),
    ],
)
def test_a_key_has_the_flags_of_its_own_and_of_the_sections_it_is_in(
    key: str, resumable: bool, results: bool
) -> None:
    assert flags(key) == (resumable, results)


def test_what_results_do_not_depend_on_may_change() -> None:
    for key, _ in keys():
        resumable, results = flags(key)
        assert resumable or results, key


def test_the_deciding_keys_of_a_section_are_those_that_results_depend_on() -> None:
    deciding = Reference(workers=3).deciding("losses", "model")
    assert deciding.keys() == Reference.model_fields.keys() - {"losses", "model", "workers", "cpus"}


def test_keys_that_there_are_no_more_are_taken_out_and_named_at_any_depth() -> None:
    tree = {
        "old": 1,
        "training": {"epochs": 2, "past": {"a": 1}},
        "domains": {"law": {"train": ["x"], "gone": 1}},
        "stages": [{"name": "s", "lost": 0}],
        "mixture": {"start": {"law": 1, "code": 2}, "options": {"any": 1}},
    }
    kept, gone = without_unknown(tree)
    assert sorted(gone) == ["domains.law.gone", "old", "stages.0.lost", "training.past"]
    assert kept["mixture"] == tree["mixture"] and kept["stages"] == [{"name": "s"}]
    assert kept["training"] == {"epochs": 2}


def test_help_lists_the_names_that_a_key_takes() -> None:
    text = describe()
    assert "constant | versatune | balanced" in text and "detected | uniform" in text
    assert {name.partition(".")[0] for name, _ in keys()} == set(Config.model_fields)


def test_what_names_a_file_says_so() -> None:
    told = re.compile(r"\b(folder|file|path|corpora)s?\b|\.jsonl?\b")
    about_others = {
        *("run", "storage", "data.fingerprint", "base.held_out", "base.vocab_size"),
        *("domains.NAME.train", "group.sources"),  # sources of records
        *("detection.models", "detection.models.NAME.name"),
    }
    named = {key for key, field in keys() if told.search(field.description or "")} - about_others
    assert {key for key, field in keys() if is_declared(field, "path")} == named


def test_files_are_named_by_their_whole_paths_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").touch()
    monkeypatch.chdir(tmp_path)
    whole = str(tmp_path / "x")
    changes: dict[str, Any] = {
        key: ["x"] if key == "training.soft_mask" else "x"
        for key, field in keys()
        if is_declared(field, "path") and "NAME" not in key
        if key not in ("evaluation.models", "base.corpora")
    }
    other = ["evaluation.models.mine=x", "evaluation.benchmarks={law: [x, y]}"]
    corpora = ["base.corpora={law: [x, ab/c], code: x}", "domains={law: x, code: x}"]
    given = [f"{key}={value}" for key, value in changes.items()]
    config = load([], [*given, *other, *corpora])
    assert _whole_paths(config, changes) == {
        key: [whole] if isinstance(value, list) else whole for key, value in changes.items()
    }
    assert config.evaluation.models == {"mine": whole}
    assert [one.task for one in config.evaluation.benchmarks["law"]] == [whole, "y"]
    assert config.base.corpora == {"law": [whole, "ab/c"], "code": [whole]}
    assert config.domains["law"].train == ["x"]  # a source is told of as it was given
    at = "detection.judge={kind: http, path: x, http: {url: 'http://h/v1'}}"
    assert load([], [at]).detection.judge.path == "x"
