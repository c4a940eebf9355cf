"""Inputs → rows of tokens, in plain Python: what a task of Ray Data runs, or this process alone.

A row is a dictionary: ``number`` says where it was read, ``account`` what was read of
it, ``problem`` why it is none (``left_out``: by its own word; ``fatal``: nor is the rest of its
file).
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from versatune_ray.domains import chat, records
from versatune_ray.domains.blocks import Part, part_of_rows
from versatune_ray.domains.delimited import NotByLines
from versatune_ray.domains.example import packed, printable, prompt_key
from versatune_ray.domains.ranges import Range, read_range
from versatune_ray.domains.readers import read_records
from versatune_ray.domains.spec import Input
from versatune_ray.errors import UserError

_READ_ROWS = 256
_PLAIN = {"role", "content"}
_EMPTY = {"example": None, "account": "", "problem": "", "fatal": False, "left_out": False}


@dataclass(frozen=True)
class Encoding:
    """What an encoding task needs to know: tokenizer (a path), chat template, and what becomes of
    records longer than ``max_length`` tokens.
    """

    tokenizer: str
    template: str
    trust_remote_code: bool
    max_length: int
    too_long: str


@dataclass(frozen=True)
class Item:
    """One input of a store, or a range of it, and how its records are read. apart: it is read by
    one task and encoded by others. breaks: it would have ranges, but for line breaks in fields.
    size: in bytes, as far as it is known.
    """

    store: int
    input: int
    source: Input
    rules: records.Rules
    part: Range | None = None
    apart: bool = False
    breaks: bool = False
    size: int = 0


class Read(NamedTuple):
    """Rows with an example or a problem. lines, whole: see ``blocks.Part``."""

    rows: list[dict[str, Any]]
    lines: int = 0
    whole: bool = False


def read(item: Item) -> Iterator[Read]:
    """What is in an item, ``_READ_ROWS`` rows at a time."""
    rows: list[dict[str, Any]] = []
    try:
        for row in _read_input(item):
            rows.append(_EMPTY | row)
            if len(rows) == _READ_ROWS:
                yield Read(rows)
                rows = []
    except NotByLines:
        yield Read([], whole=True)
        return
    yield Read(rows, item.part.lines if item.part else 0)


def encoded(item: Item, found: Read, encoding: Encoding) -> Part:
    """What was read of an item, as it goes into the store."""
    if found.whole:
        return Part(item.store, item.input, whole=True)
    return part_of_rows(item.store, item.input, encode(found.rows, encoding), found.lines)


def _read_input(item: Item) -> Iterator[dict[str, Any]]:
    try:
        found = read_range(item.source, item.part) if item.part else read_records(item.source)
        for one in found:
            row: dict[str, Any] = {"number": one.number}
            if one.record is None:
                row["problem"] = one.problem
            else:
                try:
                    read = records.interpret(one.record, item.rules)
                    _check_json(read.example)
                    row["example"] = read.example
                    row["account"] = _account(read.shape, read.unused, read.missing)
                except records.BadRecord as error:
                    row["problem"] = printable(str(error))
                    row["left_out"] = isinstance(error, records.LeftOut)
            yield row
    # as a row: an exception would reach the driver wrapped in Ray's traceback
    except UserError as error:
        yield {"number": 0, "problem": printable(str(error)), "fatal": True}


@lru_cache(maxsize=4096)
def _account(shape: str, unused: tuple[str, ...], missing: tuple[str, ...]) -> str:
    return json.dumps([shape, unused, missing])


def _check_json(example: records.Example) -> None:
    """Tools and calls are written out by templates, and hashed.

    Raises:
        BadRecord: they hold what JSON cannot.
    """
    if example.tools is None and all(turn.keys() == _PLAIN for turn in example.messages):
        return
    packed(example)


def encode(rows: Sequence[dict[str, Any]], encoding: Encoding) -> list[dict[str, Any]]:
    """Rows with an example → rows with tokens, or a problem; a text may become several."""
    tokenizer = _tokenizer(encoding)
    examples = [row["example"] for row in rows if not row["problem"]]
    tokenised = iter(chat.encode_many(tokenizer, examples))
    encoded_rows = []
    for row in rows:
        if row["problem"]:
            encoded_rows.append(row)
            continue
        example, found = row["example"], next(tokenised)
        try:
            if isinstance(found, records.BadRecord):
                raise found
            fitted, too_long = _fit(tokenizer, found, encoding, example.text is not None)
        except records.BadRecord as error:
            encoded_rows.append({**row, "problem": printable(str(error))})
            continue
        account = row["account"]
        if found.dropped_reasoning and account:
            account = json.dumps([*json.loads(account), found.dropped_reasoning])
        prompt = prompt_key(example)
        for number, piece in enumerate(fitted):
            encoded_rows.append(
                {
                    "number": row["number"],
                    "problem": "",
                    "fatal": False,
                    "left_out": False,
                    "tokens": piece.tokens,
                    "mask": piece.loss_mask,
                    "response_bytes": piece.response_bytes,
                    "hash": records.content_hash(example)
                    if len(fitted) == 1
                    else _hash(piece.tokens),
                    "prompt": prompt,  # the same for all of a text: they share a side
                    "too_long": too_long,
                    "weight": example.weight,
                    "account": "" if number else account,
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


def _fit(
    tokenizer: Any, encoded: chat.Encoded, encoding: Encoding, is_text: bool
) -> tuple[list[chat.Encoded], bool]:
    """Apply ``data.too_long``; the flag says whether the record was longer than
    ``data.max_length`` and is not whole any more, or still is. Of a text that is cut nothing is
    lost.
    """
    too_long = len(encoded.tokens) > encoding.max_length
    if too_long and encoding.too_long == "refuse":
        raise records.BadRecord("longer than max_length")
    limit = encoding.max_length if encoding.too_long == "cut" else len(encoded.tokens)
    if is_text:
        return _pieces(tokenizer, encoded, limit), too_long and encoding.too_long == "keep"
    return [chat.cut(tokenizer, encoded, limit)], too_long


@lru_cache(maxsize=1)
def _tokenizer(encoding: Encoding) -> Any:
    """Loaded once per worker process."""
    # Ray counts one CPU for this task; threads of its own would take the others'
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = chat.load_tokenizer(encoding.tokenizer, None, encoding.trust_remote_code)
    tokenizer.chat_template = encoding.template
    # each record is many small objects: looking for circles among all that libraries hold, again
    # and again, would take as long as tokenising
    gc.collect()
    gc.freeze()
    return tokenizer
