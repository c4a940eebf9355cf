"""Records of all domains → token stores, in one Ray Data execution over whatever is not cached yet.

One task reads each input and hands on its conversations in small blocks; encoding tasks, which do
the real work, take a block each, on any node; the driver appends what they return, in order, and
holds a few blocks at a time. Sources must be readable from every node (a shared folder or a URI);
token stores are written by the driver alone.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from versatune_ray.domains import chat, records, sources
from versatune_ray.domains.split import DomainPaths
from versatune_ray.domains.store import STORE_FORMAT, Batch, TokenStore, TokenStoreWriter
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import have, held, key_of
from versatune_ray.runs.folder import say
from versatune_ray.settings import Config, Domain

if TYPE_CHECKING:
    import pyarrow as pa

# one encoding task's work: a second or two, so that a single large file keeps every CPU busy
_BLOCK_BYTES = 2 << 20
_READ_ROWS = 256
_A_LOOK = 32 << 20  # bytes of records that are read for a look at what a run would do


@dataclass(frozen=True)
class _Encoding:
    """What an encoding task needs to know."""

    tokenizer: str
    template: str
    trust_remote_code: bool
    max_length: int
    too_long: str


@dataclass(frozen=True)
class _Job:
    """One list of sources and the store it becomes."""

    key: str
    inputs: list[sources.Input]
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

    A store is reused when the content of its sources, the tokenizer, the chat template and the
    length settings are the same. Two runs that need the same store at once build it once. Ray must
    be initialised, or is by Ray Data; unless ``distributed`` is false, which does all of it in this
    process.

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
    encoding = _Encoding(
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

    def job(key: str, specs: Sequence[str]) -> _Job:
        inputs = [source for spec in specs for source in sources.expand(spec, key)]
        parts = variant | {"content": sources.fingerprint(inputs)}
        return _Job(key, inputs, (cache / "tokens" / key_of(parts)).absolute())

    jobs = {
        (name, side): job(f"domains.{name}.{side}", specs)
        for name, domain in domains.items()
        for side, specs in (("train", domain.train), ("validation", domain.validation))
        if specs
    }
    _build_missing({one.folder: one for one in jobs.values()}, encoding, distributed)
    for one in jobs.values():
        _check(one, data.max_bad_fraction)
    return {
        name: DomainPaths(
            jobs[name, "train"].folder,
            jobs[name, "validation"].folder if (name, "validation") in jobs else None,
        )
        for name in domains
    }


def small_enough_for_a_look(domains: Mapping[str, Domain]) -> bool:
    """Whether all records lie in files of this machine that are tokenised in seconds."""
    specs = [spec for domain in domains.values() for spec in (*domain.train, *domain.validation)]
    files = [Path(spec).expanduser() for spec in specs]
    return (
        all(file.is_file() for file in files)
        and sum(file.stat().st_size for file in files) < _A_LOOK
    )


def _build_missing(jobs: Mapping[Path, _Job], encoding: _Encoding, distributed: bool) -> None:
    with ExitStack() as locks:
        # one order for every run, so that two runs cannot wait for each other
        for folder in sorted(jobs):
            if not have(folder):
                locks.enter_context(held(folder))
        missing = [job for folder, job in jobs.items() if not have(folder)]
        if missing:
            _build(missing, encoding, distributed)


def _build(jobs: Sequence[_Job], encoding: _Encoding, distributed: bool) -> None:
    """Run the pipeline over all ``jobs`` and write each store as soon as its last record is
    there.
    """
    items = [
        {"store": store, "input": number, "source": json.dumps(asdict(source))}
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


@dataclass(frozen=True)
class _Part:
    """Encoded records of one store. bad: (input, number, problem) of each that is none; fatal: why
    its file cannot be read at all.
    """

    store: int
    fatal: str | None
    bad: list[tuple[int, int, str]]
    good: Batch | None
    too_long: int


def _distributed(items: list[dict[str, Any]], encoding: _Encoding) -> Generator[_Part]:
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
        yield from _parts_of(table)


def _alone(items: list[dict[str, Any]], encoding: _Encoding) -> Generator[_Part]:
    """The same in this process, and without pyarrow, which a bare training machine lacks."""
    for item in items:
        for rows in _read(item):
            encoded = _encode(rows, encoding)
            good = [row for row in encoded if not row["problem"]]
            yield _Part(
                store=item["store"],
                fatal=next((row["problem"] for row in encoded if row["fatal"]), None),
                bad=[
                    (row["input"], row["number"], row["problem"])
                    for row in encoded
                    if row["problem"]
                ],
                good=_batch(good) if good else None,
                too_long=sum(row["too_long"] for row in good),
            )


def _batch(rows: list[dict[str, Any]]) -> Batch:
    return Batch(
        tokens=np.concatenate([np.asarray(row["tokens"], np.int32) for row in rows]),
        mask=np.concatenate([row["mask"] for row in rows]).view(np.bool_),
        lengths=np.array([len(row["tokens"]) for row in rows], np.int64),
        hashes=np.array([row["hash"] for row in rows], np.uint64),
        response_bytes=np.array([row["response_bytes"] for row in rows], np.int64),
        locations=np.array([(row["input"], row["number"]) for row in rows], np.int64),
    )


def _writer(job: _Job, encoding: _Encoding) -> TokenStoreWriter:
    return TokenStoreWriter(job.folder, job.inputs, asdict(encoding))


def _write(writer: TokenStoreWriter, part: _Part, job: _Job, encoding: _Encoding) -> None:
    if part.fatal is not None:
        raise UserError(f"{part.fatal} ({job.key})")
    for bad in part.bad:
        writer.reject(*bad)
    if part.good is not None:
        cut = encoding.too_long == "cut"
        writer.append(
            part.good, cut=part.too_long if cut else 0, over_long_kept=0 if cut else part.too_long
        )


def _parts_of(table: pa.Table) -> Iterator[_Part]:
    """A block by store; it holds several where inputs are small."""
    store = table["store"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(store)) + 1), len(store)]
    for start, end in pairwise(starts):
        if end > start:
            yield _part_of(int(store[start]), table.slice(start, end - start))


def _part_of(store: int, table: pa.Table) -> _Part:
    import pyarrow.compute as pc

    fatal = table.filter(table["fatal"])
    bad = table.filter(pc.not_equal(table["problem"], "")).select(["input", "number", "problem"])
    rejected = [(row["input"], row["number"], row["problem"]) for row in bad.to_pylist()]
    good = table.filter(pc.equal(table["problem"], "")).combine_chunks()
    batch = None
    if good.num_rows:
        tokens, mask = good["tokens"].combine_chunks(), good["mask"].combine_chunks()
        batch = Batch(
            tokens=tokens.flatten().to_numpy(),
            mask=mask.flatten().to_numpy().view(np.bool_),
            lengths=pc.list_value_length(tokens).to_numpy().astype(np.int64),
            hashes=good["hash"].to_numpy(),
            response_bytes=good["response_bytes"].to_numpy(),
            locations=np.stack([good["input"].to_numpy(), good["number"].to_numpy()], axis=1),
        )
    return _Part(
        store,
        fatal["problem"][0].as_py() if fatal.num_rows else None,
        rejected,
        batch,
        int(pc.sum(good["too_long"]).as_py() or 0),
    )


def _schemas() -> tuple[pa.Schema, pa.Schema]:
    """Of blocks that are read, and that are encoded."""
    import pyarrow as pa

    where = [
        ("store", pa.int32()),
        ("input", pa.int32()),
        ("number", pa.int64()),
        ("problem", pa.string()),
        ("fatal", pa.bool_()),
    ]
    encoded = [
        ("tokens", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.uint8())),
        ("hash", pa.uint64()),
        ("response_bytes", pa.int64()),
        ("too_long", pa.bool_()),
    ]
    return pa.schema([*where, ("conversation", pa.string())]), pa.schema([*where, *encoded])


def _read_tables(items: pa.Table) -> Iterator[pa.Table]:
    """UDF: inputs → rows with a conversation or a problem."""
    schema, _ = _schemas()
    for item in items.to_pylist():
        for rows in _read(item):
            yield type(items).from_pylist(rows, schema)


def _encode_table(table: pa.Table, encoding: _Encoding) -> pa.Table:
    """UDF: rows with a conversation → rows with tokens, or a problem."""
    return type(table).from_pylist(_encode(table.to_pylist(), encoding), _schemas()[1])


def _read(item: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Rows with a conversation or a problem, ``_READ_ROWS`` at a time."""
    rows: list[dict[str, Any]] = []
    for row in _read_input(sources.Input(**json.loads(item["source"]))):
        rows.append(
            {
                "store": item["store"],
                "input": item["input"],
                "conversation": "",
                "problem": "",
                "fatal": False,
            }
            | row
        )
        if len(rows) == _READ_ROWS:
            yield rows
            rows = []
    yield rows


def _read_input(source: sources.Input) -> Iterator[dict[str, Any]]:
    try:
        for item in sources.read_records(source):
            problem, conversation = item.problem, ""
            if item.record is not None:
                try:
                    conversation = json.dumps(records.to_conversation(item.record))
                except records.BadRecord as error:
                    problem = str(error)
            yield {"number": item.number, "conversation": conversation, "problem": problem or ""}
    # as a row: an exception would reach the driver wrapped in Ray's traceback
    except UserError as error:
        yield {"number": 0, "problem": str(error), "fatal": True}


def _encode(rows: Sequence[dict[str, Any]], encoding: _Encoding) -> list[dict[str, Any]]:
    """Rows with a conversation → rows with tokens, or a problem."""
    tokenizer = _tokenizer(encoding)
    empty = {"tokens": [], "mask": [], "hash": 0, "response_bytes": 0, "too_long": False}
    encoded_rows = []
    for row in ({**row, **empty} for row in rows):
        conversation = row.pop("conversation")
        encoded_rows.append(row)
        if row["problem"]:
            continue
        try:
            turns = json.loads(conversation)
            encoded, too_long = _fit(tokenizer, chat.encode(tokenizer, turns), encoding)
        except records.BadRecord as error:
            row["problem"] = str(error)
            continue
        row["tokens"], row["response_bytes"] = encoded.tokens, encoded.response_bytes
        row["mask"] = np.array(encoded.loss_mask, np.uint8)
        row["hash"], row["too_long"] = records.content_hash(turns), too_long
    return encoded_rows


def _fit(tokenizer: Any, encoded: chat.Encoded, encoding: _Encoding) -> tuple[chat.Encoded, bool]:
    """Apply ``data.too_long``; the flag says whether the record was longer than
    ``data.max_length``.
    """
    too_long = len(encoded.tokens) > encoding.max_length
    if too_long and encoding.too_long == "refuse":
        raise records.BadRecord("longer than max_length")
    limit = encoding.max_length if encoding.too_long == "cut" else len(encoded.tokens)
    return chat.cut(tokenizer, encoded, limit), too_long


@lru_cache(maxsize=1)
def _tokenizer(encoding: _Encoding) -> Any:
    """Loaded once per worker process."""
    # Ray counts one CPU for this task; threads of its own would take the others'
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = chat.load_tokenizer(encoding.tokenizer, None, encoding.trust_remote_code)
    tokenizer.chat_template = encoding.template
    return tokenizer


def _check(job: _Job, tolerated: float) -> None:
    """Hold a store against ``data.max_bad_fraction``, however long ago it was written."""
    store = TokenStore(job.folder)
    read, bad = store.meta["read"], store.meta["read"] - store.meta["kept"]
    if read == 0:
        raise UserError(
            f"{', '.join(source.label for source in job.inputs)}: no record in it ({job.key})"
        )
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
