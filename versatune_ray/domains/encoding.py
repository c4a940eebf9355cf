"""Inputs → rows of tokens, in plain Python: what a task of Ray Data runs, or this process alone.

A row is a dictionary: ``input`` and ``number`` say where it was read, ``account`` what was read of
it, ``problem`` why it is none (``left_out``: by its own word; ``fatal``: nor is the rest of its
file).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from versatune_ray.domains import chat, records
from versatune_ray.domains.example import printable, prompt_key
from versatune_ray.domains.readers import read_records
from versatune_ray.domains.spec import Input
from versatune_ray.errors import UserError

_READ_ROWS = 256
_JSON = json.JSONEncoder(ensure_ascii=False)
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


def read(item: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
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


def packed(example: records.Example) -> str:
    """An example as JSON, for tables.

    Raises:
        BadRecord: it holds what JSON cannot.
    """
    fields = [example.messages, example.trains, example.tools, example.weight, example.text]
    try:
        found = _JSON.encode(fields)
        found.encode()
    except (TypeError, ValueError) as error:  # dates among arguments, half characters in a name
        raise records.BadRecord(f"tools or calls hold what JSON cannot: {error}") from None
    return found


def unpacked(content: str) -> records.Example:
    """What ``packed`` made JSON of."""
    messages, trains, tools, weight, text = json.loads(content)
    return records.Example(tuple(messages), tuple(trains), tools, weight, text)


def encode(rows: Sequence[dict[str, Any]], encoding: Encoding) -> list[dict[str, Any]]:
    """Rows with an example → rows with tokens, or a problem; a text may become several."""
    tokenizer = _tokenizer(encoding)
    empty = {
        "tokens": [],
        "mask": [],
        "hash": 0,
        "prompt": 0,
        "response_bytes": 0,
        "too_long": False,
    }
    encoded_rows = []
    for row in ({**row, **empty, "weight": 1.0} for row in rows):
        example = row.pop("example")
        if row["problem"]:
            encoded_rows.append(row)
            continue
        try:
            encoded = chat.encode(tokenizer, example)
            fitted, too_long = _fit(tokenizer, encoded, encoding, example.text is not None)
        except records.BadRecord as error:
            encoded_rows.append({**row, "problem": printable(str(error))})
            continue
        if encoded.dropped_reasoning and row["account"]:
            read = json.loads(row["account"])
            row["account"] = json.dumps([*read, encoded.dropped_reasoning])
        prompt = prompt_key(example)
        for number, piece in enumerate(fitted):
            whole = len(fitted) == 1
            hashed = records.content_hash(example) if whole else _hash(piece.tokens)
            encoded_rows.append(
                row
                | {
                    "tokens": piece.tokens,
                    "mask": np.array(piece.loss_mask, np.uint8),
                    "response_bytes": piece.response_bytes,
                    "hash": hashed,
                    "prompt": prompt,  # the same for all of a text: they share a side
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
    return tokenizer
