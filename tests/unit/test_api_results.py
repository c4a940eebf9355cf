"""What the steps as functions return of a run's files, without a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from versatune_ray import api
from versatune_ray.errors import UserError
from versatune_ray.settings.loading import load, parse
from versatune_ray.tuning import sweep as search


def test_changes_take_the_place_of_defaults_as_overrides_do() -> None:
    own = "jobs/configs/own_data.yaml"
    space = {"mixture.strength": [0.5, 0.7]}
    asked = {"run": "a", "sweep.space": space, "sweep.objective": {"gain": 1}}
    found = api._load(own, asked)
    assert (found.sweep.space, found.sweep.objective) == (space, {"gain": 1.0})
    search.check_sweep(found)
    overrides = ["run=a", "sweep.space.mixture.strength=[0.5, 0.7]", "sweep.objective={gain: 1}"]
    assert found == load([own], overrides)
    preset = {"mixture.preset": "paper", "domains.code": "c.jsonl"}
    assert api._load([own], preset).mixture.start == "detected"
    with pytest.raises(UserError, match=r"training\.epoch: unknown key"):
        api._load(own, {"training.epoch": 1})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = SimpleNamespace(
        folder=SimpleNamespace(path=tmp_path),
        detect_all=lambda: tmp_path / "report.html",
        model=lambda: "/models/base",
        given_config=parse({}),
    )

    @contextmanager
    def opened(*_: Any, **__: Any) -> Iterator[Any]:
        yield found

    monkeypatch.setattr(api, "_run", opened)
    return found


def put(folder: Path, name: str, **more: Any) -> None:
    (folder / "detection" / name).mkdir(parents=True)
    content = {"domains": ["law", "code"], "share": [0.25, 0.75]} | more
    (folder / "detection" / name / "distribution.json").write_text(json.dumps(content))


def test_given_shares_have_no_intervals(run: Any) -> None:
    run.given_config = parse({"detection": {"distribution": "mine.json"}})
    put(run.folder.path, "base", given="mine.json")
    found = api.detect({})
    assert found.shares == {"base": {"law": 0.25, "code": 0.75}} and found.ci95 == {}
    assert str(found).splitlines()[1] == "base   25.0 %  75.0 %"


def test_models_of_earlier_lists_are_not_returned(run: Any) -> None:
    spans = [[0.2, 0.3], [0.7, 0.8]]
    for name in ("earlier", "b", "base"):
        put(run.folder.path, name, ci95=spans)
    run.given_config = parse({"detection": {"models": [{"path": "x/a", "name": "b"}]}})
    found = api.detect({})
    assert found.ci95 == {"b": {"law": (0.2, 0.3), "code": (0.7, 0.8)}} and [*found.shares] == ["b"]
    run.given_config = parse({})
    assert [*api.detect({}).shares] == ["base"]


def test_trials_are_returned_as_the_file_has_them_the_best_first(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "sweep", lambda run: Path("report.html"))
    (run.folder.path / "sweep").mkdir()
    rows = [
        {"trial": name, "score": score} for name, score in (("a", -0.1), ("b", -2), ("c", None))
    ]
    pq.write_table(pa.Table.from_pylist(rows), run.folder.path / "sweep" / "results.parquet")
    assert [trial["trial"] for trial in api.sweep({}).trials] == ["a", "b", "c"]
