"""Records of all domains → token stores, in one Ray Data execution over whatever is not cached yet.

One task reads each input and hands on its conversations in small blocks; encoding tasks, which do
the real work, take a block each, on any node; the driver appends what they return, in order, and
holds a few blocks at a time. Sources must be readable from every node (a shared folder or a URI);
token stores are written by the driver alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from versatune_ray.domains import chat, records
from versatune_ray.domains.fingerprint import fingerprint
from versatune_ray.domains.readers import read_records, remarks
from versatune_ray.domains.spec import Input, expand
from versatune_ray.domains.split import DomainPaths
from versatune_ray.domains.store import (
    STORE_FORMAT,
    Batch,
    TokenStore,
    TokenStoreWriter,
    printable,
)
from versatune_ray.errors import UserError
from versatune_ray.runs.cache import have, held, key_of
from versatune_ray.settings import Config, Domain

if TYPE_CHECKING:
    import pyarrow as pa

# one encoding task's work: a second or two, so that a single large file keeps every CPU busy
_BLOCK_BYTES = 2 << 20
_READ_ROWS = 256
_EMPTY = {"example": "", "account": "", "problem": "", "fatal": False, "left_out": False}
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
    tokenizer = chat.load_tokenizer(path, data.chat_template, config.model.trust_remote_code)
    encoding = _Encoding(
        path,
        tokenizer.get_chat_template(),
        config.model.trust_remote_code,
        data.max_length,
        data.too_long,
    )
    variant = {
        "format": STORE_FORMAT,
        "tokenizer": chat.tokenizer_fingerprint(tokenizer),
        "max_length": data.max_length,
        "too_long": data.too_long,
    }

    def job(name: str, domain: Domain, side: str) -> _Job:
        key = f"domains.{name}.{side}"
        groups = [expand(spec, key) for spec in domain.specs(side)]
        inputs = [source for group in groups for source in group]
        rules = records.Rules(domain.fields, domain.allowed, data.preference)
        parts = variant | {"content": fingerprint(inputs), "rules": asdict(rules)}
        folder = (cache / "tokens" / key_of(parts)).absolute()
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


@dataclass(frozen=True)
class _Part:
    """Encoded records of one store. bad: (input, number, problem) of each that is none; fatal: why
    its file cannot be read at all; left_out: reasons; accounts: shape and unused fields of the good
    ones, as JSON.
    """

    store: int
    fatal: str | None
    bad: list[tuple[int, int, str]]
    left_out: Mapping[str, int]
    good: Batch | None
    accounts: Mapping[str, int]
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
                    if row["problem"] and not row["left_out"]
                ],
                left_out=Counter(row["problem"] for row in encoded if row["left_out"]),
                good=_batch(good) if good else None,
                accounts=Counter(row["account"] for row in good),
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
        weights=np.array([row["weight"] for row in rows], np.float32),
    )


def _writer(job: _Job, encoding: _Encoding) -> TokenStoreWriter:
    return TokenStoreWriter(job.folder, job.inputs, asdict(encoding))


def _write(writer: TokenStoreWriter, part: _Part, job: _Job, encoding: _Encoding) -> None:
    if part.fatal is not None:
        raise UserError(f"{part.fatal} ({job.key})")
    for bad in part.bad:
        writer.reject(*bad)
    for reason, count in part.left_out.items():
        writer.account("left_out", reason, count)
    for account, count in part.accounts.items():
        if account:  # rows of a text behind its first have none
            shape, unused, missing = json.loads(account)
            for kind, names in (
                ("shapes", [shape]),
                ("unused_fields", unused),
                ("missing_columns", missing),
            ):
                for name in names:
                    writer.account(kind, name, count)
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
    left_out = table.filter(table["left_out"])
    bad = table.filter(pc.and_not(pc.not_equal(table["problem"], ""), table["left_out"]))
    bad = bad.select(["input", "number", "problem"])
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
            weights=good["weight"].to_numpy(),
        )
    return _Part(
        store,
        fatal["problem"][0].as_py() if fatal.num_rows else None,
        rejected,
        _counted(left_out["problem"]),
        batch,
        _counted(good["account"]),
        int(pc.sum(good["too_long"]).as_py() or 0),
    )


def _counted(column: Any) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}


def _schemas() -> tuple[pa.Schema, pa.Schema]:
    """Of blocks that are read, and that are encoded."""
    import pyarrow as pa

    where = [
        ("store", pa.int32()),
        ("input", pa.int32()),
        ("number", pa.int64()),
        ("problem", pa.string()),
        ("fatal", pa.bool_()),
        ("left_out", pa.bool_()),
        ("account", pa.string()),
    ]
    encoded = [
        ("tokens", pa.list_(pa.int32())),
        ("mask", pa.list_(pa.uint8())),
        ("hash", pa.uint64()),
        ("response_bytes", pa.int64()),
        ("too_long", pa.bool_()),
        ("weight", pa.float32()),
    ]
    return pa.schema([*where, ("example", pa.string())]), pa.schema([*where, *encoded])


def _read_tables(items: pa.Table) -> Iterator[pa.Table]:
    """UDF: inputs → rows with an example or a problem."""
    schema, _ = _schemas()
    for item in items.to_pylist():
        for rows in _read(item):
            yield type(items).from_pylist(rows, schema)


def _encode_table(table: pa.Table, encoding: _Encoding) -> pa.Table:
    """UDF: rows with an example → rows with tokens, or a problem."""
    return type(table).from_pylist(_encode(table.to_pylist(), encoding), _schemas()[1])


def _read(item: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Rows with an example or a problem, ``_READ_ROWS`` at a time."""
    rows: list[dict[str, Any]] = []
    rules = records.Rules(**json.loads(item["rules"]))
    for row in _read_input(Input(**json.loads(item["source"])), rules):
        rows.append({"store": item["store"], "input": item["input"]} | _EMPTY | row)
        if len(rows) == _READ_ROWS:
            yield rows
            rows = []
    yield rows


def _read_input(source: Input, rules: records.Rules) -> Iterator[dict[str, Any]]:
    try:
        for item in read_records(source):
            row: dict[str, Any] = {"number": item.number}
            if item.record is None:
                row["problem"] = item.problem
            else:
                try:
                    read = records.interpret(item.record, rules)
                    row["example"] = _packed(read.example)
                    row["account"] = json.dumps([read.shape, read.unused, read.missing])
                except records.BadRecord as error:
                    row["problem"] = printable(str(error))
                    row["left_out"] = isinstance(error, records.LeftOut)
            yield row
    # as a row: an exception would reach the driver wrapped in Ray's traceback
    except UserError as error:
        yield {"number": 0, "problem": printable(str(error)), "fatal": True}


def _packed(example: records.Example) -> str:
    return json.dumps(
        [example.messages, example.trains, example.tools, example.weight, example.text]
    )


def _unpacked(packed: str) -> records.Example:
    messages, trains, tools, weight, text = json.loads(packed)
    return records.Example(tuple(messages), tuple(trains), tools, weight, text)


def _encode(rows: Sequence[dict[str, Any]], encoding: _Encoding) -> list[dict[str, Any]]:
    """Rows with an example → rows with tokens, or a problem; a text may become several."""
    tokenizer = _tokenizer(encoding)
    empty = {"tokens": [], "mask": [], "hash": 0, "response_bytes": 0, "too_long": False}
    encoded_rows = []
    for row in ({**row, **empty, "weight": 1.0} for row in rows):
        packed = row.pop("example")
        if row["problem"]:
            encoded_rows.append(row)
            continue
        try:
            example = _unpacked(packed)
            encoded = chat.encode(tokenizer, example)
            if example.text is not None and encoding.too_long == "cut":
                fitted, too_long = _pieces(tokenizer, encoded, encoding.max_length), False
            else:
                one, too_long = _fit(tokenizer, encoded, encoding)
                fitted = [one]
        except records.BadRecord as error:
            encoded_rows.append({**row, "problem": printable(str(error))})
            continue
        for number, piece in enumerate(fitted):
            hashed = records.content_hash(example) if len(fitted) == 1 else _hash(piece.tokens)
            encoded_rows.append(
                row
                | {
                    "tokens": piece.tokens,
                    "mask": np.array(piece.loss_mask, np.uint8),
                    "response_bytes": piece.response_bytes,
                    "hash": hashed,
                    "too_long": too_long,
                    "weight": example.weight,
                    "account": "" if number else row["account"],
                }
            )
    return encoded_rows


def _pieces(tokenizer: Any, encoded: chat.Encoded, limit: int) -> list[chat.Encoded]:
    """A text in rows of at most ``limit`` tokens that are records of their own. Each begins with
    the last token of the one before, as context, so that every token is learned once; the first of
    all cannot be.
    """
    tokens, mask = encoded.tokens, [False, *encoded.loss_mask[1:]]
    if len(tokens) <= 1:
        raise records.BadRecord("the text has no token to learn")
    if len(tokens) <= limit:
        return [chat.Encoded(tokens, mask, encoded.response_bytes)]
    pieces, left = [], encoded.response_bytes
    for start in range(0, len(tokens) - 1, limit - 1):
        piece, learned = tokens[start : start + limit], mask[start : start + limit]
        own = tokenizer.decode(
            piece[1:] if start else piece,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        last = start + limit >= len(tokens)
        size = left if last else min(left, len(own.removesuffix("\ufffd").encode()))
        pieces.append(chat.Encoded(piece, [False, *learned[1:]], size))
        left -= size
    return pieces


def _hash(tokens: Sequence[int]) -> int:
    digest = hashlib.blake2b(np.asarray(tokens, np.int32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


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
    read, bad = store.meta["read"], sum(store.meta["bad"].values())
    names = ", ".join(source.label for source in job.inputs)
    if read == 0:
        raise UserError(f"{names}: no record in it ({job.key})")
    if not bad and not len(store):
        reasons = ", ".join(f"{n} × {reason}" for reason, n in store.meta["left_out"].items())
        raise UserError(f"{names}: all {read} records are left out: {reasons} ({job.key})")
    for column, n in store.meta["missing_columns"].items():
        if n == sum(store.meta["shapes"].values()):
            name = job.key.split(".")[1]
            raise UserError(f"domains.{name}.fields: no record has a column {column!r} ({job.key})")
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
