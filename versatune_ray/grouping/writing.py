"""What the job leaves of the groups that it found.

| file, in the run's ``group/`` | content |
|---|---|
| ``NAME.parquet`` | the records of a domain, as turns (or raw text), whatever shape they had |
| ``ungrouped.parquet`` | those that the judge did not answer for, or not with ``confidence`` |
| ``domains.yaml`` | the section, to be given as one more ``--config``; where domains are grouped
anew, it takes the old ones away |
| ``assignments.parquet`` | every good record: location, domain, how near or how likely |
| ``groups.json``, ``groups.html`` | sizes, words, examples, silhouettes; the same as a page |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import yaml
from numpy.typing import NDArray

from versatune_ray.grouping.clusters import Vectors
from versatune_ray.grouping.heap import RECORD, records_of
from versatune_ray.pipeline import Run
from versatune_ray.runs.cache import appear, temporary_name
from versatune_ray.runs.storage import push, remove
from versatune_ray.settings import Domain
from versatune_ray.settings.location import uri_of

UNGROUPED = "ungrouped"
ASSIGNMENTS = "assignments"
_ASSIGNED = pa.schema({"location": pa.string(), "domain": pa.string(), "near": pa.float64()})


@dataclass
class Grouped:
    """Every good record of the heap: ids (sorted), group (−1: none), and how near or how likely
    [n]; sample: places of those that were looked at, and their vectors; names: of the groups, where
    they have some.
    """

    ids: NDArray[np.int64]
    group: NDArray[np.int64]
    near: NDArray[np.float64]
    sample: NDArray[np.int64]
    vectors: Vectors
    count: int
    names: list[str] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    silhouettes: dict[int, float] = field(default_factory=dict)


def write(run: Run, heap: Path, found: Grouped, content: dict[str, Any]) -> str:
    """The files of the domains and what is said of them; returns the section as text."""
    folder = run.folder.path / "group"
    folder.mkdir(parents=True, exist_ok=True)
    for half_written in folder.glob(".*.tmp"):
        half_written.unlink()
    names = [one["name"] for one in content["domains"]] + [UNGROUPED]
    used = [number for number in range(len(names)) if (found.group % len(names) == number).any()]
    files = {number: folder / f"{names[number]}.parquet" for number in used}
    temporary = {number: temporary_name(file) for number, file in files.items()}
    writers = {
        number: pyarrow.parquet.ParquetWriter(file, RECORD) for number, file in temporary.items()
    }
    every = folder / f"{ASSIGNMENTS}.parquet"
    files[len(names)], temporary[len(names)] = every, temporary_name(every)
    writers[len(names)] = pyarrow.parquet.ParquetWriter(temporary[len(names)], _ASSIGNED)
    seen = np.zeros(len(found.ids), bool)
    for part in sorted(heap.glob("*.parquet")):
        table = pyarrow.parquet.read_table(part, columns=["id", "example", "location", "discarded"])
        table = table.filter(table["discarded"].is_null())
        rows = np.searchsorted(found.ids, table["id"].to_numpy())
        new = ~seen[rows]
        table, rows = table.filter(pa.array(new)), rows[new]
        seen[rows] = True
        group = found.group[rows] % len(names)
        for number in np.unique(group):
            own = np.flatnonzero(group == number)
            writers[number].write_table(records_of(table["example"], own))
        domain = pa.array(names).take(pa.array(group))
        near = pa.array(found.near[rows])
        writers[len(names)].write_table(
            pa.table([table["location"], domain, near], schema=_ASSIGNED)
        )
    for number, file in files.items():
        writers[number].close()
        appear(temporary[number], file)
        push(file)
    run.folder.write("group/groups.json", content)
    section: dict[str, dict[str, str | None] | None] = {
        one["name"]: {
            "train": uri_of(folder / f"{one['name']}.parquet"),
            "description": one["description"],
        }
        for one in content["domains"]
        if one["records"]
    }
    if not run.given_config.group.sources:
        _replace(section, run.given_config.domains)
    text = yaml.safe_dump({"domains": section}, sort_keys=False, allow_unicode=True, width=100)
    (folder / "domains.yaml").write_text(text, encoding="utf-8")
    push(folder / "domains.yaml")
    for old in set(folder.glob("*.parquet")) - set(files.values()):
        remove(old)
        old.unlink()
    return text


def _replace(
    section: dict[str, dict[str, str | None] | None], before: Mapping[str, Domain]
) -> None:
    """Let ``section``, given after the file that has the domains ``before``, stand for all of
    them: null takes away what an earlier file says. Records are written without the columns that
    theirs were chosen and read by.
    """
    for name, domain in before.items():
        section.setdefault(name, None)
        if (one := section[name]) is not None:
            one |= {key: None for key in ("fields", "where") if getattr(domain, key)}
