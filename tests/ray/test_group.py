"""Domains out of one heap, on Ray: what the job leaves is a configuration that is read, and a job
that was killed makes the missing vectors only.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest

pytest.importorskip("sklearn")

from versatune_ray.domains.readers import read_records
from versatune_ray.domains.spec import expand
from versatune_ray.errors import UserError
from versatune_ray.grouping.group import group
from versatune_ray.pipeline import Run
from versatune_ray.runs.folder import RunFolder
from versatune_ray.settings.loading import load, parse

WORDS = {
    "law": "court judge tenant statute appeal verdict clause lawyer",
    "code": "python loop list function variable compile string array",
    "food": "soup onion bread butter oven recipe sugar flour",
}


def heap(folder: Path) -> str:
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        words = WORDS[list(WORDS)[number % 3]].split()
        said = [" ".join(rng.choice(words, 5)) for _ in range(2)]
        shape = ("instruction", "output") if number % 2 else ("prompt", "completion")
        rows.append(dict(zip(shape, said, strict=True)))
    file = folder / "heap.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half": 1}\n')
    return str(file)


def test_a_heap_becomes_domains_and_a_killed_job_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    given = {
        "run": "grouped",
        "storage": str(tmp_path / "runs"),
        "model": {"path": "no/model"},
        "group": {"sources": [heap(tmp_path)], "most": 5, "batch_size": 8},
    }

    def run(**data: float) -> Path:
        with RunFolder(parse(given | {"data": data})) as folder:
            return group(Run(folder))

    with pytest.raises(
        UserError, match=r"group.sources: 1 of 121 records are bad: .*heap.jsonl:121: "
    ):
        run()
    page = run(max_bad_fraction=0.01)
    folder = page.parent
    content = json.loads((folder / "groups.json").read_text())
    assert [one["records"] for one in content["domains"]] == [40, 40, 40]
    rows = parquet.read_table(folder / "assignments.parquet").to_pylist()
    assert len(rows) == 120
    for name in {row["domain"] for row in rows}:
        places = {
            int(row["location"].rpartition(":")[2]) % 3 for row in rows if row["domain"] == name
        }
        assert len(places) == 1
    config = load([folder / "domains.yaml"], ["model.path=no/model"])
    assert list(config.domains) == [one["name"] for one in content["domains"]]
    for name, domain in config.domains.items():
        (source,) = expand(domain.specs("train")[0], f"domains.{name}.train")
        assert len([one for one in read_records(source) if one.record]) == 40

    (entry,) = (tmp_path / "runs" / ".cache" / "vectors").glob("*[0-9a-f]")
    entry.rename(entry.with_name(f"{entry.name}.partial"))
    parts = sorted(entry.with_name(f"{entry.name}.partial").glob("*.parquet"))
    lost, kept = parts[0], {part.name: part.stat().st_mtime_ns for part in parts[1:]}
    gone = parquet.read_table(lost)
    lost.unlink()
    run(max_bad_fraction=0.01)
    again = {part.name: part.stat().st_mtime_ns for part in entry.glob("*.parquet")}
    assert kept.items() <= again.items() and len(again) > len(kept)
    made = [parquet.read_table(entry / name) for name in again.keys() - kept.keys()]
    ids = [one for table in made for one in table["id"].to_pylist()]
    assert sorted(ids) == sorted(gone["id"].to_pylist())
    assert json.loads((folder / "groups.json").read_text()) == content
