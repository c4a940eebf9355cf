"""Texts whose domain is known: what a judge's quality is measured on."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping

from versatune_ray.domains import records
from versatune_ray.domains.readers import read_records, read_texts
from versatune_ray.domains.spec import expand
from versatune_ray.settings import Data, Domain


def labelled_sources(domain: Domain) -> tuple[str, list[str]]:
    """The key under which a domain's texts are named, and the texts: ``labelled``, else
    ``validation``, else part of ``train``.
    """
    sides = ("labelled", "validation", "train")
    return next(
        ((side, specs) for side in sides if (specs := domain.specs(side))), ("labelled", [])
    )


def labelled_texts(domains: Mapping[str, Domain], data: Data, limit: int) -> dict[str, list[str]]:
    """Up to ``limit`` distinct texts per domain, those with the lowest content hashes.

    A record becomes one text of its questions and answers. Of ``train`` only the records are taken
    that ``split`` holds out. Records that cannot be read are left to the token store to count.

    Raises:
        UserError: a source is missing or unreadable.
    """
    return {name: _lowest(_texts(domain, data, name), limit) for name, domain in domains.items()}


def _lowest(texts: Iterable[tuple[int, str]], limit: int) -> list[str]:
    seen: set[int] = set()

    def new() -> Iterator[tuple[int, str]]:
        for number, text in texts:
            if number not in seen:
                seen.add(number)
                yield number, text

    return [text for _, text in heapq.nsmallest(limit, new())]


def _texts(domain: Domain, data: Data, name: str) -> Iterator[tuple[int, str]]:
    side, specs = labelled_sources(domain)
    key = f"domains.{name}.{side}"
    if side == "labelled":
        for _, text in read_texts(specs, key):
            yield text_hash(text), text
        return
    below = int(data.validation_fraction * 2.0**64) if side == "train" else 2**64
    for example in _examples(domain, data, specs, key):
        number = records.content_hash(example)
        if number < below:
            yield number, plain_text(example)


def plain_text(example: records.Example) -> str:
    """What is asked and answered, or the raw text."""
    if example.text is not None:
        return example.text.strip()
    said = (turn["content"].strip() for turn in example.messages if turn["role"] != "system")
    return "\n".join(said)


def text_hash(text: str) -> int:
    """64 bits of a text, stripped."""
    return records.content_hash(records.Example.chat([{"role": "user", "content": text}]))


def _examples(domain: Domain, data: Data, specs: list[str], key: str) -> Iterator[records.Example]:
    rules = records.Rules(domain.fields, domain.allowed, data.preference)
    for source in (source for spec in specs for source in expand(spec, key)):
        for item in read_records(source):
            if item.record is not None:
                try:
                    yield records.to_example(item.record, rules)
                except records.BadRecord:
                    continue
