"""Cached results: built once, whole or not at all, keyed by content."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from versatune_ray.errors import UserError
from versatune_ray.runs.cache import cached, key_of, place
from versatune_ray.runtime.models import check_length, model_fingerprint


def test_the_second_call_reuses_what_the_first_built(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(work: Path) -> None:
        calls.append(work)
        (work / "x").write_text("1")

    first = cached(tmp_path, "kind", {"a": 1}, build)
    second = cached(tmp_path, "kind", {"a": 1}, build)
    other = cached(tmp_path, "kind", {"a": 2}, build)
    assert (first[0], first[1], second) == (second[0], False, (first[0], True))
    assert other[0] != first[0]
    assert len(calls) == 2


def test_a_build_that_fails_leaves_its_work_for_the_next_and_no_entry(tmp_path: Path) -> None:
    def fails(work: Path) -> None:
        (work / "half").write_text("1")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cached(tmp_path, "kind", {}, fails)
    seen = []
    cached(tmp_path, "kind", {}, lambda work: seen.extend(file.name for file in work.iterdir()))
    assert seen == ["half"]


def test_two_at_once_build_once(tmp_path: Path) -> None:
    calls = []
    gate = threading.Barrier(2)

    def run() -> None:
        gate.wait()
        cached(tmp_path, "kind", {}, calls.append)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_the_key_does_not_depend_on_order() -> None:
    assert (
        key_of({"a": 1, "b": [1, 2]})
        == key_of({"b": [1, 2], "a": 1})
        != key_of({"a": 1, "b": [2, 1]})
    )


def test_a_model_is_known_by_its_content(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    place(tiny_model, copy)
    assert model_fingerprint(str(copy)) == model_fingerprint(str(tiny_model))
    (copy / "config.json").unlink()
    (copy / "config.json").write_text("{}")
    assert model_fingerprint(str(copy)) != model_fingerprint(str(tiny_model))


@pytest.mark.parametrize("path", ["/nowhere/model", "nothing-here"])
def test_a_model_that_is_nowhere_is_refused(path: str) -> None:
    with pytest.raises(UserError, match="no such model folder"):
        model_fingerprint(path)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        model_fingerprint(str(tmp_path))


def test_more_tokens_than_a_model_takes_are_refused_by_key_and_number(tiny_model: Path) -> None:
    check_length("data.max_length", 64, str(tiny_model), False)
    with pytest.raises(
        UserError, match=r"data\.max_length: this makes 65 tokens, more than the 64"
    ):
        check_length("data.max_length", 65, str(tiny_model), False)
