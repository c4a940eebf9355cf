"""Shards of a store: whatever ends a job, the next one makes the others; a machine brings those
that it reads.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import byte_tokenizer

from versatune_ray.domains import (
    DomainPaths,
    TokenStore,
    encoding,
    ranges,
    shards,
    tasks,
    tokenizing,
)
from versatune_ray.errors import UserError
from versatune_ray.runs import storage
from versatune_ray.settings import location
from versatune_ray.settings.loading import parse

COLUMNS = ("offsets", "hashes", "prompts", "response_tokens", "response_bytes", "weights")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards of a kilobyte; the names of those that were written, and not found."""
    names: list[str] = []
    monkeypatch.setattr(ranges, "STEP", 1000)
    monkeypatch.setattr(tasks, "_APART", 4000)
    monkeypatch.setattr(encoding, "_READ_ROWS", 40)
    begin = shards.ShardWriter

    def counted(folder: Path, name: str) -> Any:
        names.append(name)
        return begin(folder, name)

    monkeypatch.setattr(shards, "ShardWriter", counted)
    return names


@pytest.fixture
def law(tmp_path: Path) -> str:
    """Some 12 kB in two files, of which one cannot be split, with a bad record in each."""
    folder = tmp_path / "law"
    folder.mkdir()
    rows = [
        json.dumps({"prompt": f"q{n}?", "completion": f"a{n}" * (n % 9 + 1)}) for n in range(150)
    ]
    rows.insert(120, "{broken")
    (folder / "a.jsonl").write_text("\n".join(rows))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(rows).encode(), 0))
    return str(folder)


def build(law: str, tokenizer: str, cache: Path) -> DomainPaths:
    data = {"max_bad_fraction": 0.1}
    config = parse({"model": {"path": "x"}, "data": data, "domains": {"law": law, "b": law}})
    args = (config, config.domains, tokenizer, cache)
    return tokenizing.build_stores(*args, distributed=False)["law"]


def test_a_store_does_not_depend_on_its_shards(
    law: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = TokenStore(build(law, tokenizer, tmp_path / "one").train)
    monkeypatch.setattr(ranges, "STEP", 1000)
    monkeypatch.setattr(tasks, "_APART", 4000)
    monkeypatch.setattr(encoding, "_READ_ROWS", 40)
    many = TokenStore(build(law, tokenizer, tmp_path / "many").train)
    found = many.meta["shards"]
    assert len(found) > 8 and {name[5:] for name, *_ in found} >= {"", "-00000", "-00001"}
    assert many.meta | {"shards": one.meta["shards"]} == one.meta and len(many) == 300
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(many, name), getattr(one, name))
    for n in range(300):
        assert many.location(n) == one.location(n)
        np.testing.assert_array_equal(many.tokens(n), one.tokens(n))
        np.testing.assert_array_equal(many.mask(n), one.mask(n))
    assert one.location(119).endswith("a.jsonl:120") and one.location(120).endswith("a.jsonl:122")
    assert many.bad_examples() == one.bad_examples()
    first, everything = 0, []
    while first < len(many):
        first, tokens = many.run(first, 100)
        everything.append(tokens)
    np.testing.assert_array_equal(np.concatenate(everything), one.run(0, 10**9)[1])


def test_a_job_that_was_ended_loses_no_shard(
    law: str, tokenizer: str, tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TokenStore(build(law, tokenizer, tmp_path / "whole").train)
    names = [*written]
    written.clear()
    write, done = tasks.write, []

    def ended(*args: Any) -> Any:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(write(*args))
        return done[-1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tasks, "write", ended)
        build(law, tokenizer, tmp_path / "cache")
    assert written == names[:5]
    (work,) = (tmp_path / "cache" / "tokens").glob("*.partial")
    # half a file, and a shard of another plan, are made again
    (work / "00001.tokens.npy").write_bytes(b"")
    report = json.loads((work / "00003.json").read_text())
    (work / "00003.json").write_text(json.dumps(report | {"plan": [[[0, 0, 9]]]}))
    written.clear()
    store = TokenStore(build(law, tokenizer, tmp_path / "cache").train)
    assert written == ["00001", "00003", *names[5:]]
    assert store.meta == expected.meta
    assert sorted(file.name for file in store.folder.iterdir()) == sorted(
        file.name for file in expected.folder.iterdir()
    )
    assert (store.folder / "00001.mask.npy").read_bytes() == (
        expected.folder / "00001.mask.npy"
    ).read_bytes()


def test_a_shard_that_this_machine_does_not_see_is_told(
    law: str, tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(*args: Any) -> Any:
        report = shards.write(*args)
        next((tmp_path / "cache" / "tokens").glob("*/*.rows.npy")).unlink()
        return report

    monkeypatch.setattr(tasks, "write", elsewhere)
    with pytest.raises(UserError, match=r"rows.npy: this machine does not see it; set storage to"):
        build(law, tokenizer, tmp_path / "cache")


def test_shards_go_straight_to_the_storage_and_come_as_they_are_read(
    law: str, tokenizer: str, tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TokenStore(build(law, tokenizer, tmp_path / "local").train)
    there = tmp_path / "remote"
    there.mkdir()

    def machine(name: str) -> Path:
        monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / name))
        return location.root(location.resolve(f"file://{there}"))

    def shards_of(folder: Path) -> int:
        return len([*folder.glob("*.tokens.npy")])

    write = tasks.write

    def ended(*args: Any) -> Any:
        if len(written) == 4:
            raise KeyboardInterrupt
        return write(*args)

    written.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tasks, "write", ended)
        build(law, tokenizer, machine("a"))
    names = [*written]
    folder = build(law, tokenizer, machine("b")).train  # goes on from another machine
    assert len(set(written)) == len(written) > len(names) == 4
    assert shards_of(folder) == 0 and shards_of(there / "tokens" / folder.name) > 8
    assert not [*(there / "tokens" / folder.name).glob("*.rows.npy")]
    assert not [*folder.parent.glob(".*")]
    store = TokenStore(machine("c") / "tokens" / folder.name)
    assert shards_of(store.folder) == 0
    np.testing.assert_array_equal(store.tokens(140), expected.tokens(140))
    assert shards_of(store.folder) == 1
    assert store.meta == expected.meta
    written.clear()
    build(law, tokenizer, machine("d"))
    assert written == []
    storage.remove(folder)  # whoever finds nothing there makes it again, shards and all
    build(law, tokenizer, machine("b"))
    assert shards_of(there / "tokens" / folder.name) > 8
