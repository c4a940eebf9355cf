"""A shard of a token store: what one task reads, encodes and writes, straight into the storage.

What is in it follows from the inputs alone, and its report is written last: one that has a report
of the same plan is there, whoever wrote it and whatever ended the job. Of a store in the making the
shards are where they are to be, in a storage behind a URI, or in a folder beside its place.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ray.domains.blocks import Part
from versatune_ray.domains.encoding import Encoding, Item, Read, encoded, read
from versatune_ray.domains.spec import Input
from versatune_ray.domains.store import COLUMNS, MASK, TOKENS
from versatune_ray.domains.store_writer import ROWS, ShardWriter, assemble
from versatune_ray.errors import UserError
from versatune_ray.runs.storage import here, push, read_small, take
from versatune_ray.settings.location import is_mirrored

Report = dict[str, Any]
_FILES = (TOKENS, MASK, ROWS)


@dataclass(frozen=True)
class Shard:
    """A shard of the store at ``folder``: some of its inputs or ranges of them, in order. chunk: of
    the records of an input that is read apart, where this is one of several.
    """

    store: int
    folder: Path
    number: int
    items: tuple[Item, ...]
    chunk: int | None = None

    @property
    def apart(self) -> bool:
        return self.items[0].apart

    @property
    def name(self) -> str:
        chunk = "" if self.chunk is None else f"-{self.chunk:05}"
        return f"{self.number:05}{chunk}"

    def plan(self, found: Sequence[Read] | None) -> list[Any]:
        """What tells it from another shard of this name; as JSON has it."""
        ranges = [
            [item.input, *([item.part.start, item.part.end] if item.part else [])]
            for item in self.items
        ]
        if found is None:
            return [ranges]
        rows = [row["number"] for one in found for row in one.rows]
        return [ranges, rows[:1], len(rows)]


def write(shard: Shard, encoding: Encoding, found: Sequence[Read] | None = None) -> Report:
    """Write a shard unless it is there, and report what is in it. One whose inputs cannot be read,
    or not in ranges, is none: its report says so (``fatal``, ``whole``).

    Args:
        found: what was read of it, where that was done apart.
    """
    folder, plan = place(here(shard.folder)), shard.plan(found)
    if (known := _known(folder, shard.name)) and known["plan"] == plan:
        return known
    with _scratch(folder) as scratch:
        writer = ShardWriter(scratch, shard.name)
        lines: Counter[int] = Counter()  # of earlier ranges of an input
        try:
            for item in shard.items:
                for one in read(item) if found is None else found:
                    part = encoded(item, one, encoding)
                    if part.whole or part.fatal is not None:
                        return {"whole": part.whole, "fatal": part.fatal, "input": part.input}
                    _add(writer, part, encoding, lines[part.input])
                    lines[part.input] += part.lines
            report = writer.finish()
        finally:
            writer.close()
        report |= {"plan": plan, "lines": [[*pair] for pair in lines.items() if pair[1]]}
        files = [scratch / name.format(shard.name) for name in _FILES]
        report["bytes"] = [file.stat().st_size for file in files]
        said = scratch / f"{shard.name}.json"
        said.write_text(json.dumps(report), encoding="utf-8")
        for file in (*files, said):
            if is_mirrored(folder):
                push(folder / file.name, file)
            else:
                file.replace(folder / file.name)
    return report


def finish(
    folder: Path, reports: Sequence[Report], inputs: Sequence[Input], settings: Mapping[str, Any]
) -> None:
    """Make a store of its shards.

    Raises:
        UserError: this machine does not see what another one wrote.
    """
    work = place(folder)
    kept = {
        "meta.json",
        *(f"{name}.npy" for name in COLUMNS),
        *(name.format(report["name"]) for report in reports for name in (TOKENS, MASK)),
    }
    if not is_mirrored(folder):
        work.mkdir(parents=True, exist_ok=True)
        try:
            assemble(work, reports, lambda name: work / ROWS.format(name), inputs, settings)
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename}: this machine does not see it; set storage to a folder that all "
                f"machines share, or to a URI"
            ) from None
        os.replace(work, folder)  # noqa: PTH105 - Path.replace is documented for files only
        for file in folder.iterdir():
            if file.name not in kept:
                file.unlink() if file.is_file() else shutil.rmtree(file, ignore_errors=True)
        return
    with _scratch(folder) as partial:

        def rows(shard: str) -> Path:
            file = partial / ROWS.format(shard)
            take(folder / file.name, file)
            return file

        assemble(partial, reports, rows, inputs, settings)
        for file in partial.iterdir():
            if file.name not in kept:
                file.unlink()
        push(folder, partial, keep=kept)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)  # noqa: PTH105


def place(folder: Path) -> Path:
    """Where shards of the store at ``folder`` are, as long as it is none."""
    return folder if is_mirrored(folder) else folder.with_name(f"{folder.name}.partial")


def _known(folder: Path, name: str) -> Report | None:
    """The report of a shard that is there."""
    said = folder / f"{name}.json"
    try:
        if is_mirrored(folder):  # where files appear whole
            found = read_small(said)
            return None if found is None else dict(json.loads(found[0]))
        report: Report = json.loads(said.read_text(encoding="utf-8"))
        sizes = [(folder / one.format(name)).stat().st_size for one in _FILES]
    except (OSError, ValueError):
        return None
    return report if report.get("bytes") == sizes else None


def _add(writer: ShardWriter, part: Part, encoding: Encoding, before: int) -> None:
    for number, problem in part.bad:
        writer.reject(part.input, before + number, problem)
    for reason, count in part.left_out.items():
        writer.account("left_out", reason, count)
    for account, count in part.accounts.items():
        if account:  # rows of a text behind its first have none
            shape, unused, missing, *turns = json.loads(account)
            for kind, names in (
                ("shapes", [shape]),
                ("unused_fields", unused),
                ("missing_columns", missing),
            ):
                for name in names:
                    writer.account(kind, name, count)
            if turns:
                writer.account("template_drops", "the reasoning of turns", count * turns[0])
    if part.good is not None:
        cut = encoding.too_long == "cut"
        good = part.good._replace(locations=part.good.locations + np.array([0, before]))
        writer.append(
            good, cut=part.too_long if cut else 0, over_long_kept=0 if cut else part.too_long
        )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder to write in, on the disk that ``folder`` is on, gone afterwards."""
    hidden = f".{folder.name}.{uuid.uuid4().hex[:8]}"
    found = folder.with_name(hidden) if is_mirrored(folder) else folder / hidden
    found.mkdir(parents=True)
    try:
        yield found
    finally:
        shutil.rmtree(found, ignore_errors=True)
