"""Records of all domains → token stores, in one Ray Data execution over whatever is not cached yet.

One task reads each input and hands on its conversations in small blocks; encoding tasks, which do
the real work, take a block each, on any node; the driver appends what they return, in order, and
holds a few blocks at a time. Sources must be readable from every node (a shared folder or a URI);
token stores are written by the driver alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from versatune_ray.domains import chat, records
from versatune_ray.domains.blocks import Part, part_of_rows, parts_of, schemas
from versatune_ray.domains.encoding import Encoding, encode, packed, read, unpacked
from versatune_ray.domains.example import BadRecord, printable
from versatune_ray.domains.keys import store_folder
from versatune_ray.domains.readers import remarks
from versatune_ray.domains.spec import Input, expand
from versatune_ray.domains.split import DomainPaths
from versatune_ray.domains.store import (
    STORE_FORMAT,
    TokenStore,
)
from versatune_ray.domains.store_writer import TokenStoreWriter
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import have, held
from versatune_ray.runs.folder import say
from versatune_ray.settings import Config, Domain

if TYPE_CHECKING:
    import pyarrow as pa

# one encoding task's work: a second or two, so that a single large file keeps every CPU busy
_BLOCK_BYTES = 2 << 20
_A_LOOK = 32 << 20  # bytes of records that are read for a look at what a run would do


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
    Ray must be initialised, or is by Ray Data; unless ``distributed`` is false, which does all of
    it in this process.

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
    for one in jobs.values():
        _check(one, data.max_bad_fraction)
    return {
        name: DomainPaths(
            jobs[name, "train"].folder,
            jobs[name, "validation"].folder if (name, "validation") in jobs else None,
            None
            if domain.weights is None
            else tuple(zip(domain.weights, jobs[name, "train"].sizes, strict=True)),
        )
        for name, domain in domains.items()
    }


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
            if not have(folder):
                locks.enter_context(held(folder))
        missing = [job for folder, job in jobs.items() if not have(folder)]
        if missing:
            _build(missing, encoding, distributed)


def _build(jobs: Sequence[_Job], encoding: Encoding, distributed: bool) -> None:
    """Run the pipeline over all ``jobs`` and write each store as soon as its last record is
    there.
    """
    for job in jobs:
        for remark in remarks(job.inputs):
            print(f"[data] {remark} ({job.key})", flush=True)
    items = [
        {
            "store": store,
            "input": number,
            "source": json.dumps(asdict(source)),
            "rules": json.dumps(asdict(job.rules)),
        }
        for store, job in enumerate(jobs)
        for number, source in enumerate(job.inputs)
    ]
    # Closing stops the pipeline at once where a store cannot be written.
    with closing(
        _distributed(items, encoding) if distributed else _alone(items, encoding)
    ) as parts:
        for store, group in groupby(parts, key=attrgetter("store")):
            with _writer(jobs[store], encoding) as writer:
                for part in group:
                    _write(writer, part, jobs[store], encoding)
    for job in jobs:
        if not job.folder.exists():  # its sources hold no record at all
            with _writer(job, encoding):
                pass


def _distributed(items: list[dict[str, Any]], encoding: Encoding) -> Generator[Part]:
    """Encoded blocks in the order of ``items``, by Ray Data."""
    import ray.data

    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), 256))
    # A dataset owns a copy of the process-wide context, and what follows it shares that copy:
    # nothing leaks out of here.
    dataset.context.execution_options.preserve_order = True
    dataset.context.target_max_block_size = _BLOCK_BYTES
    # Different CPU requests keep Ray Data from fusing the two steps, which would leave each input
    # to one task.
    encoded = dataset.map_batches(
        _read_tables, batch_size=1, batch_format="pyarrow", num_cpus=0.5
    ).map_batches(
        _encode_table,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        fn_kwargs={"encoding": encoding},
    )
    for table in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from parts_of(table)


def _alone(items: list[dict[str, Any]], encoding: Encoding) -> Generator[Part]:
    """The same in this process, and without pyarrow, which a bare training machine lacks."""
    for item in items:
        for rows in read(item):
            yield part_of_rows(item["store"], encode(rows, encoding))


def _writer(job: _Job, encoding: Encoding) -> TokenStoreWriter:
    return TokenStoreWriter(job.folder, job.inputs, asdict(encoding))


def _write(writer: TokenStoreWriter, part: Part, job: _Job, encoding: Encoding) -> None:
    if part.fatal is not None:
        raise UserError(f"{part.fatal} ({job.key})")
    for bad in part.bad:
        writer.reject(*bad)
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
        writer.append(
            part.good, cut=part.too_long if cut else 0, over_long_kept=0 if cut else part.too_long
        )


def _read_tables(items: pa.Table) -> Iterator[pa.Table]:
    """UDF: inputs → rows with an example or a problem."""
    schema, _ = schemas()
    for item in items.to_pylist():
        for rows in read(item):
            for row in rows:
                try:
                    row["example"] = packed(row["example"]) if row["example"] else ""
                except BadRecord as error:
                    row |= {"example": "", "account": "", "problem": printable(str(error))}
            yield type(items).from_pylist(rows, schema)


def _encode_table(table: pa.Table, encoding: Encoding) -> pa.Table:
    """UDF: rows with an example → rows with tokens, or a problem."""
    rows = table.to_pylist()
    for row in rows:
        row["example"] = unpacked(row["example"]) if row["example"] else None
    return type(table).from_pylist(encode(rows, encoding), schemas()[1])


def _check(job: _Job, tolerated: float) -> None:
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
        return
    examples = store.bad_examples(job.inputs)[:3]
    shown = "; ".join(examples) + ("; …" if bad > len(examples) else "")
    enough = math.ceil(bad / read * 1000) / 1000
    way_out = (
        f"mend them, or set data.max_bad_fraction={enough:g}"
        if len(store)
        else "none is left to use"
    )
    raise UserError(f"{job.key}: {bad} of {read} records are bad: {shown}; {way_out}")
