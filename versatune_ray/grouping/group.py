"""The job: read the heap, find its groups, name them, and leave a ``domains`` section (``writing``)
ready to run.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from versatune_ray.detection.answers import read_answers
from versatune_ray.detection.judge import judge
from versatune_ray.detection.judge_spec import judge_spec
from versatune_ray.detection.texts import Texts
from versatune_ray.domains.example import tolerating
from versatune_ray.errors import UserError
from versatune_ray.grouping.clusters import Vectors, find_groups, unit
from versatune_ray.grouping.embedding import Words, check_installed
from versatune_ray.grouping.heap import read_heap, rows_of, sources
from versatune_ray.grouping.naming import names_of, telling_words
from versatune_ray.grouping.page import page
from versatune_ray.grouping.vectors import assign, column_of, embed, good_ids, vectors_of
from versatune_ray.grouping.writing import ASSIGNMENTS, UNGROUPED, Grouped, write
from versatune_ray.pipeline import Run
from versatune_ray.runs.folder import Step, say
from versatune_ray.runs.storage import push
from versatune_ray.runtime.models import find_model
from versatune_ray.settings import Config, Domain
from versatune_ray.settings.location import shown

_EXAMPLES, _EXAMPLE = 3, 300  # of a domain; characters of each
_FEW = 10


def check_group(config: Config) -> None:
    """What this job alone cannot do without.

    Raises:
        UserError: a package, a source, a model, a judge or its labels are missing.
    """
    settings = config.group
    check_installed(settings)
    own = shown(config.run_folder / "group")
    for source in sources(config):
        if shown(source.input.path).startswith(f"{own}/"):
            raise UserError(
                f"{source.key}: {source.input.label} lies in this run's own group folder, which is "
                f"written anew; choose another run with run=…"
            )
    if settings.by == "judge":
        if config.detection.judge.path is None:
            raise UserError("detection.judge.path: missing; group.by=judge asks the judge it names")
        seen = {UNGROUPED: UNGROUPED, ASSIGNMENTS: ASSIGNMENTS}
        key = "group.labels" if settings.labels else "domains"
        for name in _labels(config):
            file = unicodedata.normalize("NFC", name).casefold()
            if file in seen:
                raise UserError(
                    f"{key}: the file of {name!r} would be that of {seen[file]!r}, to some "
                    f"machines at least; rename it"
                )
            seen[file] = name
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
        raise UserError(
            f"{listed[0].key}: {len(ids)} good record(s) are too few to group; at least {_FEW}"
        )
    sample = np.random.default_rng(config.seed).permutation(len(ids))[: config.group.sample]
    sample.sort()
    texts = column_of(heap, "text", ids[sample])
    find = _by_judge if config.group.by == "judge" else _by_embedding
    found: Grouped = run.folder.step(
        "grouping", lambda: Step(find(run, heap, ids, sample, texts), False)
    )
    none = int((found.group < 0).sum())
    if none == len(found.ids):
        raise UserError(
            f"group.by=judge: it put none of {none:,} records in a domain; lower group.confidence "
            f"(here {config.group.confidence:g}), or ask another judge"
        )
    content = _account(config, found, texts) | {"left_out": bad}
    domains = run.folder.step("writing", lambda: Step(write(run, heap, found, content), False))
    for one in content["domains"]:
        say("group", f"{one['name']}: {one['records']:,} records; {', '.join(one['words'][:6])}")
    if none:
        say("group", f"{none:,} records are in no domain: {UNGROUPED}.parquet")
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
    every = len(np.unique(rows_of(heap, ["id"])["id"].to_numpy()))
    columns = ["id", "location", "discarded", "left_out"]
    table = rows_of(heap, columns, pc.field("discarded").is_valid())
    table = table.take(np.unique(table["id"].to_numpy(), return_index=True)[1])
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
        key = "group.domains" if settings.domains else "group.least"
        raise UserError(f"{key}: {error} make no {counts[0]} groups") from None
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
    return Grouped(
        ids, group, near, sample, _places(texts, config), len(labels),
        names=list(labels), descriptions=list(labels.values()),
    )  # fmt: skip


def _places(texts: Sequence[str], config: Config) -> Vectors:
    """Vectors for the map, where none were needed to find groups."""
    try:
        return unit(Words(texts, min(config.group.dimensions, 64), config.seed)(texts))
    except UserError:  # without words, all lie in one place
        return np.zeros((len(texts), 2), np.float32)


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
