"""Storage behind a URI, with a local folder in the part of the remote one, and machines that differ
in $VERSATUNE_WORK.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from conftest import random_samples, write_store

from versatune_ray.domains import TokenStore
from versatune_ray.errors import UserError
from versatune_ray.runs import lock, storage
from versatune_ray.runs.cache import cached, have
from versatune_ray.runs.folder import RunFolder
from versatune_ray.runs.parts import finished_ids
from versatune_ray.settings import location
from versatune_ray.settings.loading import dump, load, parse

Machine = Callable[[str], Path]


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """What everyone sees."""
    (tmp_path / "remote").mkdir()
    return tmp_path / "remote"


@pytest.fixture
def machine(tmp_path: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Go on, on another machine; gives the mirror."""

    def go(name: str) -> Path:
        monkeypatch.setenv("VERSATUNE_WORK", str(tmp_path / name))
        return location.root(location.resolve(f"file://{there}"))

    return go


def tree(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file.read_text()
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".whole"
    }


def test_a_local_path_is_its_own_place_and_nothing_is_copied(tmp_path: Path) -> None:
    assert location.root(location.resolve(str(tmp_path))) == tmp_path
    (tmp_path / "x").write_text("1")
    storage.push(tmp_path / "x")
    storage.pull(tmp_path, exact=True)
    assert (
        storage.fetch(tmp_path / "x") == tmp_path / "x"
        and storage.fetch("Qwen/Qwen2.5-1.5B") == "Qwen/Qwen2.5-1.5B"
    )
    assert location.shown(tmp_path) == str(tmp_path) and location.uri_of(tmp_path) == str(tmp_path)
    assert tree(tmp_path) == {"x": "1"}


def test_an_entry_made_on_one_machine_is_there_on_another(machine: Machine, there: Path) -> None:
    def build(work: Path) -> None:
        (work / "deep").mkdir()
        (work / "deep" / "file").write_text("content")

    first, reused = cached(machine("a"), "kind", {"x": 1}, build)
    assert not reused
    mirror = machine("b")
    second, reused = cached(mirror, "kind", {"x": 1}, build)
    assert reused and second.is_relative_to(mirror) and second != first
    assert tree(second) == tree(first)
    assert storage.fetch(str(first / "deep")) == str(second / "deep"), (
        "a path of one machine is understood by another"
    )
    assert not list(there.rglob("*.partial")) and not list(there.rglob("*.tmp"))


def test_an_entry_without_its_manifest_is_built_again(machine: Machine, there: Path) -> None:
    entry, _ = cached(
        machine("a"), "kind", {}, lambda work: (work / "file").write_text("whole") and None
    )
    (there / "kind" / entry.name / ".whole").unlink()
    (there / "kind" / entry.name / "file").write_text("ha")
    rebuilt, reused = cached(
        machine("b"), "kind", {}, lambda work: (work / "file").write_text("again") and None
    )
    assert not reused and (there / "kind" / rebuilt.name / "file").read_text() == "again"


def test_an_entry_that_was_removed_from_the_storage_is_sent_again(
    machine: Machine, there: Path
) -> None:
    entry, _ = cached(
        machine("a"), "kind", {}, lambda work: (work / "file").write_text("x") and None
    )
    storage.remove(entry)
    assert not (there / "kind" / entry.name).exists()
    assert have(entry) and (there / "kind" / entry.name / "file").read_text() == "x"


def test_a_folder_pushed_again_replaces_the_copies_of_the_old_one(machine: Machine) -> None:
    model = machine("a") / "run" / "model"
    model.mkdir(parents=True)
    (model / "one").write_text("1")
    storage.push(model)
    copy = machine("b") / "run" / "model"
    assert storage.bring(copy)
    machine("a")
    (model / "one").unlink()
    (model / "two").write_text("2")
    storage.push(model)
    machine("b")
    assert storage.bring(copy) and tree(copy) == {"two": "2"}


def test_a_file_that_differs_from_the_manifest_is_not_taken(machine: Machine, there: Path) -> None:
    entry, _ = cached(
        machine("a"), "kind", {}, lambda work: (work / "file").write_text("x") and None
    )
    (there / "kind" / entry.name / "file").write_text("longer")
    with pytest.raises(OSError, match="changed while it was fetched"):
        storage.fetch(machine("b") / "kind" / entry.name)
    assert not (machine("b") / "kind" / entry.name).exists()


def test_what_is_nowhere_is_told(machine: Machine, there: Path) -> None:
    with pytest.raises(UserError, match=f"file://{there}/model: not in the storage"):
        storage.fetch(machine("a") / "model")


def test_a_token_store_opens_on_any_machine(machine: Machine) -> None:
    store = TokenStore(write_store(machine("a") / "tokens" / "key", random_samples(0, 5)))
    sent = pickle.dumps(store)
    mirror = machine("b")
    found = pickle.loads(sent)
    assert found.folder == mirror / "tokens" / "key"
    assert found.tokens(3).tolist() == store.tokens(3).tolist()


def test_parts_of_all_machines_are_seen(machine: Machine) -> None:
    from versatune_ray.runs.parts import _write_part

    folder = machine("a") / "parts"
    _write_part(pa.table({"id": [1, 2]}), folder)
    machine("b")
    _write_part(pa.table({"id": [3]}), folder)
    machine("a")
    assert finished_ids(folder).tolist() == [1, 2, 3]
    assert storage.fetch(next(folder.glob("*.parquet"))).is_file()


def config(there: Path, **changes: Any) -> Any:
    return parse({"run": "r", "storage": f"file://{there}"} | changes)


def test_a_run_goes_on_from_another_machine_with_its_files(machine: Machine, there: Path) -> None:
    machine("a")
    with RunFolder(config(there)) as run:
        run.write("reference/losses.json", {"x": 1})
        run.write("old.json", 1)
    machine("b")
    (there / "r" / "old.json").unlink()
    with RunFolder(config(there)) as run:
        assert json.loads((run.path / "reference" / "losses.json").read_text()) == {"x": 1}
        run.write("reference/losses.json", {"x": 2})
    machine("a")
    with RunFolder(config(there)) as run:
        assert json.loads((run.path / "reference" / "losses.json").read_text()) == {"x": 2}
        assert not (run.path / "old.json").exists()
    assert not (there / "r" / ".owner.json").exists()


def test_two_machines_do_not_work_on_one_run(
    machine: Machine, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("a")
    with RunFolder(config(there)) as run:
        machine("b")
        with (
            pytest.raises(UserError, match=rf"run 'r' is in use by process {os.getpid()} on"),
            RunFolder(config(there)),
        ):
            pass
        old = (there / "r" / ".owner.json").stat().st_mtime - 1000
        os.utime(there / "r" / ".owner.json", (old, old))
        with RunFolder(config(there)):
            run._lease._look()
            with pytest.raises(UserError, match="was taken over"):
                run.write("data.json", {})


def test_a_job_that_died_on_this_machine_is_taken_over_at_once(
    machine: Machine, there: Path
) -> None:
    machine("a")
    with RunFolder(config(there)) as run:
        left = (there / "r" / ".owner.json").read_bytes()
        path = run.path
    (there / "r" / ".owner.json").write_bytes(left)
    with lock.Lease(path):
        assert (there / "r" / ".owner.json").read_bytes() != left


def test_a_storage_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(UserError, match=f"storage: file://{tmp_path}/file cannot be used: "),
        RunFolder(config(tmp_path / "file")),
    ):
        pass
    with (
        pytest.raises(
            UserError, match="storage: foo://bucket cannot be used: Unrecognized filesystem"
        ),
        RunFolder(parse({"storage": "foo://bucket"})),
    ):
        pass


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:sec/ret@bucket/x",
        "s3://bucket/x?access_key=key",
        "abfs://c@a.dfs.core.windows.net/x?sig=key",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_shown(uri: str) -> None:
    with pytest.raises(UserError, match="environment") as error:
        parse({"storage": uri})
    assert (
        "key:" not in str(error.value)
        and "=key" not in str(error.value)
        and "ret@" not in str(error.value)
    )


def test_parameters_are_used_but_neither_printed_nor_saved(tmp_path: Path) -> None:
    found = parse({"storage": "s3://bucket/prefix/?endpoint_override=localhost:1&scheme=http"})
    assert found.storage == "s3://bucket/prefix?endpoint_override=localhost:1&scheme=http"
    assert (
        location.uri_of(found.run_folder)
        == "s3://bucket/prefix/quickstart?endpoint_override=localhost:1&scheme=http"
    )
    assert location.shown(found.run_folder) == "s3://bucket/prefix/quickstart"
    assert yaml.safe_load(dump(found))["storage"] == "s3://bucket/prefix"
    (tmp_path / "again.yaml").write_text(dump(found))
    assert load([tmp_path / "again.yaml"]).storage == "s3://bucket/prefix"


OUTSIDE = ["../../../x", "/etc/x", "a/../../x", "a//x", "./x", "", "a\\..\\x", "a\x1bx", "link/x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_names_nothing_outside_its_folder(
    machine: Machine, there: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    entry = machine("a") / "kind" / "key"
    entry.mkdir(parents=True)
    (entry / "link").symlink_to(outside)
    (there / "kind" / "key").mkdir(parents=True)
    (there / "x").write_text("theirs")  # what "../../x" would bring
    files = {"id": "1", "files": {name: 6}}
    (there / "kind" / "key" / ".whole").write_text(json.dumps(files))
    with pytest.raises(UserError, match="leads out of this folder") as caught:
        storage.bring(entry)
    assert "\x1b" not in str(caught.value) and not list(outside.iterdir())
    assert not list(machine("a").rglob("x"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', '{"files": {"x": "y"}}'])
def test_what_is_no_manifest_is_told_in_one_line(
    machine: Machine, there: Path, content: str
) -> None:
    (there / "key").mkdir()
    (there / "key" / ".whole").write_text(content)
    with pytest.raises(UserError, match=r"key/\.whole: no manifest of a folder"):
        storage.bring(machine("a") / "key")


def test_a_link_takes_no_file_from_outside_along(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    folder = machine("a") / "kind" / "key"
    folder.mkdir(parents=True)
    (folder / "file").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="'file', which leads out"):
        storage.push(folder)


def test_a_listed_name_is_held_to_its_folder(
    machine: Machine, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Object stores have keys such as ``run/../x``, file systems have not."""
    monkeypatch.setattr(storage, "_list", lambda remote: iter([("../x", None)]))
    with pytest.raises(UserError, match=r"'\.\./x', which leads out"):
        storage.pull(machine("a") / "run")


def test_a_path_that_climbs_out_of_a_mirror_is_in_none(machine: Machine) -> None:
    assert location.mirrored(machine("a") / "x") is not None
    assert location.mirrored(machine("a") / ".." / ".." / "x") is None


def test_mirrors_and_run_folders_are_their_owners_alone(
    machine: Machine, there: Path, tmp_path: Path
) -> None:
    mirror = machine("a")
    with RunFolder(config(there)) as run:
        assert mirror.stat().st_mode & 0o777 == run.path.stat().st_mode & 0o777 == 0o700
    cached(machine("b"), "kind", {}, lambda work: None)
    assert machine("b").stat().st_mode & 0o777 == 0o700
    with RunFolder(parse({"run": "r", "storage": str(tmp_path / "local")})) as run:
        assert run.path.stat().st_mode & 0o777 == 0o700
