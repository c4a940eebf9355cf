"""Texts whose domain is known: what a judge's quality is measured on."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from versatune_ray.domains import records
from versatune_ray.domains.readers import read_texts
from versatune_ray.domains.sample import not_read_through, some_records
from versatune_ray.domains.spec import Input, expand
from versatune_ray.settings import Data, Domain

_TIMES = 8  # texts to choose from, where not all are read


def labelled_sources(domain: Domain) -> tuple[str, list[str]]:
    """The key under which a domain's texts are named, and the texts: ``labelled``, else
    ``validation``, else those sources of ``train`` that may be held out.
    """
    for side in ("labelled", "validation"):
        if specs := domain.specs(side):
            return side, specs
    sources = zip(domain.specs("train"), domain.held_out, strict=True)
    held_out = [spec for spec, may_be in sources if may_be]
    return ("train", held_out) if held_out else ("labelled", [])


def labelled_texts(domains: Mapping[str, Domain], data: Data, limit: int) -> dict[str, list[str]]:
    """Up to ``limit`` distinct texts per domain, those with the lowest content hashes.

    A record becomes one text of its questions and answers. Of ``train`` only those hashes are taken
    that ``split`` holds out, which takes one for all records that ask the same. Sources of more
    than 64 MiB are read in pieces from all over them until there are eight times as many. Records
    that cannot be read are left to the token store to count.

    Raises:
        UserError: a source is missing or unreadable.
    """
    return {
        name: _lowest(_texts(domain, data, name, limit), limit) for name, domain in domains.items()
    }


def _lowest(texts: Iterable[tuple[int, str]], limit: int) -> list[str]:
    seen: set[int] = set()

    def new() -> Iterator[tuple[int, str]]:
        for number, text in texts:
            if number not in seen:
                seen.add(number)
                yield number, text

    return [text for _, text in heapq.nsmallest(limit, new())]


def _texts(domain: Domain, data: Data, name: str, limit: int) -> Iterator[tuple[int, str]]:
    side, specs = labelled_sources(domain)
    key = f"domains.{name}.{side}"
    if side == "labelled":
        for _, text in read_texts(specs, key):
            yield text_hash(text), text
        return
    below = int(data.validation_fraction * 2.0**64) if side == "train" else 2**64
    inputs = [source for spec in specs for source in expand(spec, key)]
    large, left = not_read_through(inputs), _TIMES * limit
    for example in _examples(domain, data, inputs):
        number = records.content_hash(example)
        if number < below:
            yield number, plain_text(example)
            left -= 1
            if large and not left:
                return


def plain_text(example: records.Example) -> str:
    """What is asked and answered, or the raw text."""
    if example.text is not None:
        return example.text.strip()
    said = (turn["content"].strip() for turn in example.messages if turn["role"] != "system")
    return "\n".join(said)


def text_hash(text: str) -> int:
    """64 bits of a text, stripped."""
    return records.content_hash(records.Example.chat([{"role": "user", "content": text}]))


def _examples(domain: Domain, data: Data, inputs: list[Input]) -> Iterator[records.Example]:
    rules = records.Rules(domain.fields, domain.allowed, data.preference)
    for item in some_records(inputs):
        if item.record is not None:
            try:
                yield records.to_example(item.record, rules)
            except records.BadRecord:
                continue
