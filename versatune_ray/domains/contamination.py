"""Which training records hold what a model is asked later: a question that is copied, or a run of
tokens that both share (13-grams, as in Brown et al. 2020, arXiv 2005.14165, appendix C; theirs are
of words, these of tokens, which needs no text of a store).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains.example import Example, prompt_key
from versatune_ray.domains.keys import identity
from versatune_ray.domains.loading import DomainPaths
from versatune_ray.domains.records import Question, Rules, read_questions
from versatune_ray.domains.store import TokenStore
from versatune_ray.runs.cache import cached, write_json
from versatune_ray.settings import Config

GRAM = 13  # tokens
_FORMAT = 1
_COMMON = 10  # records that share a run before it is taken for a phrase of the language
_CHUNK = 1 << 22  # tokens looked at together
_BASE = np.uint64(0x9E3779B97F4A7C15)


def mark(
    config: Config, paths: Mapping[str, DomainPaths], tokenizer: Any, cache: Path
) -> tuple[dict[str, DomainPaths], dict[str, dict[str, int]]]:
    """Look for the questions of all domains in the training records of each.

    Args:
        tokenizer: the one that the stores were made with.

    Returns:
        The paths, which leave such records out under ``data.contaminated=remove``; and per domain
        how many ``ask`` a question and how many ``share`` a run with one. Nothing is looked for
        where there are no questions, or with ``ignore``.

    Raises:
        UserError: a question is none.
    """
    if config.data.contaminated == "ignore":
        return dict(paths), {}
    questions = [
        question
        for name, domain in config.domains.items()
        for question in read_questions(
            domain.questions, None, f"domains.{name}.questions", Rules(domain.fields)
        )
    ]
    if not questions:
        return dict(paths), {}
    asked = Asked(questions, tokenizer)
    marked, counts = {}, {}
    for name, path in paths.items():
        folder = _find(path.train, asked, cache)
        remove = config.data.contaminated == "remove"
        marked[name] = path._replace(without=folder if remove else None)
        counts[name] = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    return marked, counts


def _find(store: Path, asked: Asked, cache: Path) -> Path:
    def build(work: Path) -> None:
        exact, shared = contaminated(TokenStore(store), asked)
        np.save(work / "contaminated.npy", exact | shared)
        write_json(work / "counts.json", {"ask": int(exact.sum()), "share": int(shared.sum())})

    parts = {"format": _FORMAT, "store": identity(store), "asked": asked.key}
    return cached(cache, "contamination", parts, build)[0]


class Asked:
    """What is asked: the hashes of the questions, and of all runs of 13 tokens in them and in
    their answers.
    """

    def __init__(self, questions: Sequence[Question], tokenizer: Any):
        chats = [Example.chat([{"role": "user", "content": one.question}]) for one in questions]
        self.prompts = np.unique(np.array([prompt_key(chat) for chat in chats], dtype=np.uint64))
        texts = [text for one in questions for text in (one.question, *one.answers)]
        rows = (
            tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        )
        runs = [grams(np.array(row, dtype=np.int64)) for row in rows]
        self.grams = np.unique(np.concatenate([np.zeros(0, np.uint64), *runs]))

    @property
    def key(self) -> str:
        """What stands for all of it in a cache's key."""
        return hashlib.sha256(self.prompts.tobytes() + b"|" + self.grams.tobytes()).hexdigest()


def contaminated(store: TokenStore, asked: Asked) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each record of ``store``: whether it asks a question of ``asked``, and whether it shares a
    run of 13 tokens with one; both bool [n]. Runs that more than ten records have do not count.
    """
    exact: NDArray[np.bool_] = np.isin(store.prompts, asked.prompts)
    offsets, found = store.offsets, []
    first = 0
    while first < len(store):
        last, tokens = store.run(first, _CHUNK)
        start = int(offsets[first])
        runs = grams(tokens.astype(np.int64))
        places = np.flatnonzero(np.isin(runs, asked.grams)) + start
        record = np.searchsorted(offsets, places, "right") - 1
        within = places + GRAM <= offsets[record + 1]
        found.append(np.stack([runs[places - start][within], record[within].astype(np.uint64)]))
        first = last
    shared = np.zeros(len(store), dtype=np.bool_)
    if found:
        pairs = np.unique(np.concatenate(found, axis=1), axis=1)
        _, gram, records = np.unique(pairs[0], return_inverse=True, return_counts=True)
        shared[pairs[1][records[gram] <= _COMMON].astype(np.int64)] = True
    return exact, shared


def grams(tokens: NDArray[np.int64], size: int = GRAM) -> NDArray[np.uint64]:
    """A hash of every run of ``size`` tokens, uint64 [max(0, L − size + 1)]: a polynomial modulo
    2⁶⁴.
    """
    count = max(0, len(tokens) - size + 1)
    found = np.zeros(count, dtype=np.uint64)
    values = tokens.astype(np.uint64) + np.uint64(1)
    with np.errstate(over="ignore"):
        for place in range(size):
            found = found * _BASE + values[place : place + count]
            found ^= found >> np.uint64(29)
    return found
