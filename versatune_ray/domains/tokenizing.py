"""Records of all domains → token stores, in one Ray Data execution over whatever is not cached yet.

Tasks read, encode and write shards of them (see ``tasks``); the driver makes a store of its shards
once they are there. A job that was ended goes on with those that it finished. Sources and storage
must be seen by every node: shared folders, or URIs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from versatune_ray.domains import chat, near_duplicates, records
from versatune_ray.domains.encoding import Encoding, Item
from versatune_ray.domains.example import tolerating
from versatune_ray.domains.keys import store_folder
from versatune_ray.domains.loading import DomainPaths
from versatune_ray.domains.ranges import BREAKS, size_of
from versatune_ray.domains.readers import remarks
from versatune_ray.domains.shards import finish
from versatune_ray.domains.spec import Input, expand
from versatune_ray.domains.split import SourcePart
from versatune_ray.domains.store import STORE_FORMAT, TokenStore
from versatune_ray.domains.tasks import alone, by_ray, items, shards
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import held
from versatune_ray.runs.folder import say
from versatune_ray.runs.storage import bring
from versatune_ray.settings import Config, Domain

_A_LOOK = 32 << 20  # bytes of records that are read for a look at what a run would do
# Bytes of files of this machine below which they are tokenised in this process: that takes a few
# seconds, which is less than an execution of Ray Data and its worker processes need to begin.
_FEW = 8 << 20


@dataclass(frozen=True)
class _Job:
    """One list of sources, how their records are read, and the store it becomes. sizes: inputs of
    each source.
    """

    key: str
    inputs: list[Input]
    sizes: list[int]
    rules: records.Rules
    folder: Path


def build_stores(
    config: Config,
    domains: Mapping[str, Domain],
    tokenizer_path: str,
    cache: Path,
    *,
    distributed: bool = True,
) -> dict[str, DomainPaths]:
    """Tokenise the records of ``domains`` and return the folders of their stores (see
    ``split.load_domains``).

    A store is reused when its sources (see ``data.fingerprint``), the tokenizer, the chat template
    and the length settings are the same. Two runs that need the same store at once build it once.
    Ray must be initialised, or is by Ray Data; unless ``distributed`` is false, or sources are
    small files of this machine, which does all of it in this process.

    Raises:
        UserError: a source is missing, unreadable or without a record, or has more bad records than
            ``data.max_bad_fraction``.
    """
    data = config.data
    path = (
        str(Path(tokenizer_path).expanduser().absolute())
        if Path(tokenizer_path).expanduser().exists()
        else tokenizer_path
    )
    remote = config.model.trust_remote_code
    tokenizer = chat.load_tokenizer(path, data.chat_template, remote, data.chat_template_kwargs)
    chat.check_embeddings(tokenizer, path, remote)
    for warning in chat.template_warnings(tokenizer):
        say("records", f"warning: {warning}")
    encoding = Encoding(
        path,
        tokenizer.get_chat_template(),
        config.model.trust_remote_code,
        data.max_length,
        data.too_long,
    )
    variant = {
        "format": STORE_FORMAT,
        "encoding": chat.ENCODING,
        "tokenizer": chat.tokenizer_fingerprint(tokenizer),
        "max_length": data.max_length,
        "too_long": data.too_long,
    }

    def job(name: str, domain: Domain, side: str) -> _Job:
        key = f"domains.{name}.{side}"
        groups = [expand(spec, key) for spec in domain.specs(side)]
        inputs = [source for group in groups for source in group]
        rules = records.Rules(domain.fields, domain.allowed, data.preference)
        parts = variant | {"rules": asdict(rules)}
        folder = store_folder(cache, parts, inputs, data.fingerprint, key)
        return _Job(key, inputs, [len(group) for group in groups], rules, folder)

    jobs = {
        (name, side): job(name, domain, side)
        for name, domain in domains.items()
        for side in ("train", "validation")
        if domain.specs(side)
    }
    _build_missing({one.folder: one for one in jobs.values()}, encoding, distributed)
    over = {
        one.key: found
        for one in jobs.values()
        if (found := _bad(one, data.max_bad_fraction)) is not None
    }
    if over:
        raise _too_many(over)
    paths = {
        name: DomainPaths(
            jobs[name, "train"].folder,
            jobs[name, "validation"].folder if (name, "validation") in jobs else None,
            _sources(domain, jobs[name, "train"].sizes),
        )
        for name, domain in domains.items()
    }
    return near_duplicates.mark(paths, data.near_duplicates, cache, distributed)


def _sources(domain: Domain, sizes: Sequence[int]) -> tuple[SourcePart, ...] | None:
    """What the split has to know of a domain's sources; None where all its records are alike."""
    if domain.weights is None and all(domain.held_out):
        return None
    weights: Sequence[float | None] = domain.weights or [None] * len(sizes)
    return tuple(map(SourcePart, weights, sizes, domain.held_out))


def small_enough_for_a_look(domains: Mapping[str, Domain]) -> bool:
    """Whether all records lie in files of this machine that are tokenised in seconds."""
    specs = [
        spec
        for domain in domains.values()
        for side in ("train", "validation")
        for spec in domain.specs(side)
    ]
    files = [Path(spec).expanduser() for spec in specs]
    return (
        all(file.is_file() for file in files)
        and sum(file.stat().st_size for file in files) < _A_LOOK
    )


def _build_missing(jobs: Mapping[Path, _Job], encoding: Encoding, distributed: bool) -> None:
    with ExitStack() as locks:
        # one order for every run, so that two runs cannot wait for each other
        for folder in sorted(jobs):
            if not bring(folder):
                locks.enter_context(held(folder))
        missing = [job for folder, job in jobs.items() if not bring(folder)]
        if missing:
            _build(missing, encoding, distributed and not _few(missing))


def _few(jobs: Sequence[_Job]) -> bool:
    sources = [source for job in jobs for source in job.inputs]
    if any("://" in source.path for source in sources):
        return False
    sizes = [size_of(source) for source in sources]
    return None not in sizes and sum(size or 0 for size in sizes) < _FEW


def _build(jobs: Sequence[_Job], encoding: Encoding, distributed: bool) -> None:
    """Run the pipeline over all ``jobs`` and write each store as soon as its last record is
    there.
    """
    for job in jobs:
        for remark in remarks(job.inputs):
            print(f"[data] {remark} ({job.key})", flush=True)
    whole: set[tuple[Path, int]] = set()
    while missing := [job for job in jobs if not bring(job.folder)]:
        try:
            _write_all(missing, encoding, distributed, whole)
        except _Whole as found:
            job = missing[found.store]
            _say_whole(job, found.input)
            whole.add((job.folder, found.input))


def _say_whole(job: _Job, number: int) -> None:
    print(
        f"[data] {job.inputs[number].label}: {BREAKS}, so it is read in one piece ({job.key})",
        flush=True,
    )


class _Whole(Exception):
    """An input that has to be read in one piece."""

    def __init__(self, store: int, number: int) -> None:
        self.store, self.input = store, number


def _write_all(
    jobs: Sequence[_Job], encoding: Encoding, distributed: bool, whole: set[tuple[Path, int]]
) -> None:
    work = [
        shard
        for number, job in enumerate(jobs)
        for shard in shards(_items(number, job, whole), job.folder)
    ]
    # Closing stops the pipeline at once where a store cannot be written.
    with closing(by_ray(work, encoding) if distributed else alone(work, encoding)) as reports:
        for store, group in groupby(reports, key=itemgetter(0)):
            job, found = jobs[store], []
            for _, report in group:
                if report.get("whole"):
                    raise _Whole(store, report["input"])
                if report.get("fatal") is not None:
                    raise UserError(f"{report['fatal']} ({job.key})")
                found.append(report)
            finish(job.folder, found, job.inputs, asdict(encoding))


def _items(store: int, job: _Job, whole: set[tuple[Path, int]]) -> list[Item]:
    found, work = [], items(store, job.inputs, job.rules)
    for one in work:
        if one.breaks:
            _say_whole(job, one.input)
        if one.part is None or (job.folder, one.input) not in whole:
            found.append(one)
        elif one.part.start == 0:
            size = sum(other.size for other in work if other.input == one.input)
            found.append(replace(one, part=None, apart=True, size=size))
    return found


class _Bad(NamedTuple):
    """Records of a store that cannot be used: how many of all, some of them, and whether others
    can.
    """

    bad: int
    read: int
    examples: str
    is_rest: bool


def _bad(job: _Job, tolerated: float) -> _Bad | None:
    """Hold a store against ``data.max_bad_fraction``, however long ago it was written."""
    store = TokenStore(job.folder)
    read, bad = store.meta["read"], sum(store.meta["bad"].values())
    names = ", ".join(source.label for source in job.inputs)
    if read == 0:
        raise UserError(f"{names}: no record in it ({job.key})")
    if not bad and not len(store):
        reasons = ", ".join(f"{n} × {reason}" for reason, n in store.meta["left_out"].items())
        raise UserError(f"{names}: all {read} records are left out: {reasons} ({job.key})")
    name, _, side = job.key.removeprefix("domains.").rpartition(".")
    for column, n in store.meta["missing_columns"].items():
        if side == "train" and n == sum(store.meta["shapes"].values()):
            raise UserError(f"domains.{name}.fields: no record has a column {column!r}")
    if bad == 0 or (bad <= tolerated * read and len(store)):
        return None
    examples = store.bad_examples(job.inputs)[:3]
    shown = "; ".join(examples) + ("; …" if bad > len(examples) else "")
    return _Bad(bad, read, shown, bool(len(store)))


def _too_many(over: Mapping[str, _Bad]) -> UserError:
    """What is wrong in all stores at once; one of which nothing is left comes first."""
    (key, first), *others = sorted(over.items(), key=lambda item: item[1].is_rest)
    told = f"{key}: {first.bad} of {first.read} records are bad: {first.examples}"
    if not first.is_rest:
        return UserError(f"{told}; none is left to use")
    if others:
        told += f"; and {', '.join(f'{one.bad} of {one.read} of {name}' for name, one in others)}"
    worst = max(over.values(), key=lambda one: one.bad / one.read)
    return UserError(f"{told}; mend them, or set {tolerating(worst.bad, worst.read)}")
