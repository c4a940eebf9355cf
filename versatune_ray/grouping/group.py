"""The job: read the heap, find its groups, name them, and leave a ``domains`` section ready to run.

| file, in the run's ``group/`` | content |
|---|---|
| ``NAME.parquet`` | the records of a domain, as turns (or raw text), whatever shape they had |
| ``ungrouped.parquet`` | those that the judge did not answer for, or not with ``confidence`` |
| ``domains.yaml`` | the section, to be given as one more ``--config`` |
| ``assignments.parquet`` | every good record: location, domain, how near or how likely |
| ``groups.json``, ``groups.html`` | sizes, words, examples, silhouettes; the same as a page |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet
import yaml
from numpy.typing import NDArray

from versatune_ray.detection.answers import read_answers
from versatune_ray.detection.judge import judge
from versatune_ray.detection.judge_spec import judge_spec
from versatune_ray.detection.texts import Texts
from versatune_ray.domains.example import tolerating
from versatune_ray.errors import UserError
from versatune_ray.grouping.clusters import Vectors, find_groups, unit
from versatune_ray.grouping.embedding import Words, check_installed
from versatune_ray.grouping.heap import RECORD, read_heap, records_of, sources
from versatune_ray.grouping.naming import names_of, telling_words
from versatune_ray.grouping.page import page
from versatune_ray.grouping.vectors import assign, column_of, embed, good_ids, vectors_of
from versatune_ray.pipeline import Run
from versatune_ray.runs.cache import appear, temporary_name
from versatune_ray.runs.folder import Step, say
from versatune_ray.runs.storage import push
from versatune_ray.runtime.models import find_model
from versatune_ray.settings import Config, Domain
from versatune_ray.settings.location import uri_of

UNGROUPED = "ungrouped"
_EXAMPLES, _EXAMPLE = 3, 300  # of a domain; characters of each
_FEW = 10


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


def check_group(config: Config) -> None:
    """What this job alone cannot do without.

    Raises:
        UserError: a package, a source, a model, a judge or its labels are missing.
    """
    settings = config.group
    check_installed(settings)
    sources(config)
    if settings.by == "judge":
        if config.detection.judge.path is None:
            raise UserError("detection.judge.path: missing; group.by=judge asks the judge it names")
        if UNGROUPED in _labels(config):
            raise UserError(f"group.labels: {UNGROUPED!r} is what is in no domain; rename it")
        if len(_labels(config)) < 2:
            raise UserError(
                "group.labels: missing; name at least two, as {law: statutes and rulings, …}"
            )
    elif settings.embedding != "words":
        path, key = _model(config)
        if path is None:
            raise UserError(f"{key}: missing; group.embedding={settings.embedding} needs a model")
        find_model(key, path)


def plan_group(config: Config) -> str:
    """What ``group`` would do, as text."""
    settings = config.group
    lines = [f"one heap of {len(sources(config))} input(s)"]
    if settings.by == "judge":
        labels = ", ".join(_labels(config))
        return "\n".join(
            [*lines, f"a judge ({config.detection.judge.path}) labels every record: {labels}"]
        )
    path, _ = _model(config)
    by = (
        "words, without a model"
        if settings.embedding == "words"
        else f"{settings.embedding}, {path}"
    )
    many = settings.domains or f"{settings.least} to {settings.most}, as the silhouette says"
    return "\n".join(
        [
            *lines,
            f"vectors of {settings.dimensions} dimensions by {by}",
            f"domains: {many}, found on at most {settings.sample:,} records",
        ]
    )


def _labels(config: Config) -> dict[str, str]:
    own = {name: domain.description for name, domain in config.domains.items()}
    return config.group.labels or own


def _model(config: Config) -> tuple[str | None, str]:
    """The embedding's model, and the key that names it."""
    if config.group.model is not None or config.group.embedding == "sentences":
        return config.group.model, "group.model"
    return config.model.path, "model.path"


def group(run: Run) -> Path:
    """Group the heap; returns the page.

    Raises:
        UserError: too few records, or more bad ones than ``data.max_bad_fraction`` tolerates.
    """
    config = run.given_config
    listed = sources(config)
    heap = run.folder.step(
        "reading", lambda: Step(*read_heap(listed, run.cache, config.data.fingerprint))
    )
    bad = _bad(heap, config.data.max_bad_fraction, sorted({source.key for source in listed}))
    ids = good_ids(heap)
    if len(ids) < _FEW:
        raise UserError(f"{listed[0].key}: {len(ids)} records are too few to group")
    sample = np.random.default_rng(config.seed).permutation(len(ids))[: config.group.sample]
    sample.sort()
    texts = column_of(heap, "text", ids[sample])
    find = _by_judge if config.group.by == "judge" else _by_embedding
    found: Grouped = run.folder.step(
        "grouping", lambda: Step(find(run, heap, ids, sample, texts), False)
    )
    content = _account(config, found, texts) | {"left_out": bad}
    domains = run.folder.step("writing", lambda: Step(_write(run, heap, found, content), False))
    for one in content["domains"]:
        say("group", f"{one['name']}: {one['records']:,} records; {', '.join(one['words'][:6])}")
    print(f"\n{domains}", flush=True)
    file = run.folder.path / "group" / "groups.html"
    file.write_text(page(content, found.vectors, found.group[found.sample]), encoding="utf-8")
    push(file)
    return file


def _bad(heap: Path, tolerated: float, keys: Sequence[str]) -> dict[str, int]:
    """Why records are none, counted.

    Raises:
        UserError: more are bad than is tolerated.
    """
    table = pyarrow.dataset.dataset(sorted(map(str, heap.glob("*.parquet")))).to_table(
        columns=["id", "location", "discarded", "left_out"]
    )
    every = len(np.unique(table["id"].to_numpy()))
    table = table.filter(table["discarded"].is_valid())
    wrong = table.filter(pc.invert(table["left_out"]))
    where, count = " and ".join(keys[:3]), wrong.num_rows
    if count > tolerated * every:
        said = [f"{row['location']}: {row['discarded']}" for row in wrong.slice(0, 3).to_pylist()]
        raise UserError(
            f"{where}: {count} of {every} records are bad: {'; '.join(said)}; mend them, or set "
            f"{tolerating(count, every)}"
        )
    reasons = dict(Counter(table["discarded"].to_pylist()))
    for reason, n in reasons.items():
        say("group", f"{n:,} records are left out: {reason}")
    return reasons


def _by_embedding(
    run: Run,
    heap: Path,
    ids: NDArray[np.int64],
    sample: NDArray[np.int64],
    texts: Sequence[str],
) -> Grouped:
    config, settings = run.given_config, run.given_config.group
    path, _ = (None, "") if settings.embedding == "words" else _model(config)
    folder = embed(
        heap, texts, len(ids), settings, path, config.seed, run.cache,
        gpu=run.gpu(), trust_remote_code=config.model.trust_remote_code,
    )  # fmt: skip
    counts = [settings.domains] if settings.domains else range(settings.least, settings.most + 1)
    vectors = vectors_of(folder, ids[sample])
    try:
        groups = find_groups(
            vectors, list(counts), settings.dimensions, config.seed,
            centred=settings.embedding != "words",
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"group: {error} make no {counts[0]} groups") from None
    ids, group, near = assign(folder, groups)
    return Grouped(
        ids, group, near, sample, groups.place(vectors), len(groups.centres),
        silhouettes=groups.silhouettes,
    )  # fmt: skip


def _by_judge(
    run: Run,
    heap: Path,
    ids: NDArray[np.int64],
    sample: NDArray[np.int64],
    texts: Sequence[str],
) -> Grouped:
    config, labels = run.given_config, _labels(run.given_config)
    domains = {name: Domain(description=text) for name, text in labels.items()}
    spec = judge_spec(config.model_copy(update={"domains": domains}), gpu=run.gpu())
    spec.check_labels()
    size = int(ids[-1]) + 1
    asked = Texts(heap, size, spec.folder(run.cache, heap.name))
    judge(spec, [asked])
    answers = read_answers(spec, asked.judged, size)
    likely = np.nan_to_num(answers.shares, nan=-1.0)
    near = np.full(len(ids), -1.0)
    group = np.full(len(ids), -1)
    rows = np.searchsorted(ids, answers.ids)
    near[rows], group[rows] = likely.max(axis=1), likely.argmax(axis=1)
    group[near < max(config.group.confidence, 0.0)] = -1
    words = Words(texts, min(config.group.dimensions, 64), config.seed)
    return Grouped(
        ids, group, near, sample, unit(words(texts)), len(labels),
        names=list(labels), descriptions=list(labels.values()),
    )  # fmt: skip


def _account(config: Config, found: Grouped, texts: Sequence[str]) -> dict[str, Any]:
    """``groups.json``: the groups, largest first where they have no order of their own."""
    sizes = np.bincount(found.group[found.group >= 0], minlength=found.count)
    if not found.names:
        order = np.argsort(-sizes, kind="stable")
        found.group, sizes = np.argsort(order)[found.group], sizes[order]
    member = found.group[found.sample]
    words = telling_words(texts, member, found.count)
    names = found.names or names_of(words)
    near = found.near[found.sample]
    domains = []
    for number, name in enumerate(names):
        own = np.flatnonzero(member == number)
        nearest = own[np.argsort(-near[own], kind="stable")[:_EXAMPLES]]
        domains.append(
            {
                "name": name,
                "words": words[number],
                "description": (found.descriptions[number] if found.descriptions else "")
                or ", ".join(words[number]),
                "records": int(sizes[number]),
                "share": float(sizes[number] / len(found.ids)),
                "examples": [texts[row][:_EXAMPLE] for row in nearest],
            }
        )
    settings = config.group
    return {
        "by": settings.by,
        "embedding": settings.embedding if settings.by == "embedding" else None,
        "records": len(found.ids),
        "ungrouped": int((found.group < 0).sum()),
        "silhouettes": found.silhouettes,
        "domains": domains,
    }


def _write(run: Run, heap: Path, found: Grouped, content: dict[str, Any]) -> str:
    """The files of the domains and what is said of them; returns the section as text."""
    folder = run.folder.path / "group"
    folder.mkdir(parents=True, exist_ok=True)
    names = [one["name"] for one in content["domains"]] + [UNGROUPED]
    used = [number for number in range(len(names)) if (found.group % len(names) == number).any()]
    files = {number: folder / f"{names[number]}.parquet" for number in used}
    temporary = {number: temporary_name(file) for number, file in files.items()}
    for left in folder.glob(".*.tmp"):  # of a job that was killed
        left.unlink()
    writers = {
        number: pyarrow.parquet.ParquetWriter(file, RECORD) for number, file in temporary.items()
    }
    locations: list[pa.Table] = []
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
        locations.append(
            pa.table([table["location"], domain, near], ["location", "domain", "near"])
        )
    for number, file in files.items():
        writers[number].close()
        appear(temporary[number], file)
        push(file)
    every = folder / "assignments.parquet"
    for old in set(folder.glob("*.parquet")) - {*files.values(), every}:
        old.unlink()  # now that the new ones are there: a domain of before
    pyarrow.parquet.write_table(pa.concat_tables(locations), every)
    push(every)
    run.folder.write("group/groups.json", content)
    section = {
        one["name"]: {
            "train": uri_of(folder / f"{one['name']}.parquet"),
            "description": one["description"],
        }
        for one in content["domains"]
        if one["records"]
    }
    text = yaml.safe_dump({"domains": section}, sort_keys=False, allow_unicode=True, width=100)
    (folder / "domains.yaml").write_text(text, encoding="utf-8")
    push(folder / "domains.yaml")
    return text
