"""Cached results: built once, whole or not at all, keyed by content."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from versatune_ray.domains import spec
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import cached, key_of
from versatune_ray.runtime import models
from versatune_ray.runtime.engine import engine_options
from versatune_ray.runtime.models import check_length, model_fingerprint
from versatune_ray.settings import Engine


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
    shutil.copytree(tiny_model, copy)
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


@pytest.mark.parametrize("name", ["modeling.py", "qwen.tiktoken", "tokenizer.model"])
def test_a_models_code_and_vocabulary_are_part_of_it(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "copy")
    found = set()
    for text in ("", "a", "b"):
        (tmp_path / "copy" / name).write_text(text)
        found.add(model_fingerprint(str(tmp_path / "copy")))
    assert len(found) == 3 and model_fingerprint(str(tiny_model)) not in found


def test_a_hub_model_is_loaded_at_the_commit_that_its_fingerprint_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the hub says later: its main branch moves between two look-ups here."""
    commits = iter(["c0ffee", "moved"])
    loaded: list[str | None] = []

    class Auto:
        max_position_embeddings = 8

        @classmethod
        def from_pretrained(cls, path: str, *, revision: str | None, **_: object) -> type[Auto]:
            loaded.append(revision)
            return cls

    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda path, **_: f"/cache/{next(commits)}"
    )
    for name in ("AutoConfig", "AutoTokenizer"):
        monkeypatch.setattr(f"transformers.{name}", Auto)
    models._commit.cache_clear()
    try:
        assert model_fingerprint("owner/name") == "owner/name@c0ffee"
        models.load_plain_tokenizer.__wrapped__("owner/name", False)
        check_length("key", 8, "owner/name", False)
        assert loaded == ["c0ffee", "c0ffee"]
        options = engine_options(
            Engine(), True, trust_remote_code=False, revision=models.commit("owner/name")
        )
        assert {options[key] for key in ("revision", "tokenizer_revision", "code_revision")} == {
            "c0ffee"
        }
    finally:
        models._commit.cache_clear()
    assert models.commit("/a/folder") is None


def test_a_dataset_that_was_not_looked_up_is_known_by_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "datasets--owner--name" / "refs"
    refs.mkdir(parents=True)
    found = []
    for commit in ("one", "two"):
        (refs / "main").write_text(commit)
        found.append(spec._dataset("owner/name", "key").revision)
    assert found == ["one", "two"] and spec._commit_here("owner/other") is None
