"""What would train, seen before an hour is spent on it: files, shapes, fields that nobody reads,
what is bad, what is cut, and examples with the spans that carry loss. Without Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice
from random import Random
from typing import Any

import numpy as np

from versatune_ray.domains import chat
from versatune_ray.domains.example import (
    BadRecord,
    Example,
    LeftOut,
    content_hash,
    tolerating,
)
from versatune_ray.domains.readers import Located, read_records, remarks
from versatune_ray.domains.records import Rules, interpret
from versatune_ray.domains.spec import Input, expand
from versatune_ray.errors import UserError
from versatune_ray.runtime.models import check_length
from versatune_ray.settings import Config, Domain

_LOOK = 1000  # records read of each file, unless all are asked for
_BAD = 20  # bad records that are listed
_SHOWN = 2000  # characters of a text on the screen
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


@dataclass
class Preview:
    """One domain: counts over the records that were read, and some of them as they would train.

    spans: of each sample, its row as ``(text, trains)`` pairs. lengths: tokens of each good record.
    """

    files: list[str] = field(default_factory=list)
    read: int = 0
    whole: bool = True  # no file has more records than were read
    bad: list[dict[str, str]] = field(default_factory=list)
    bad_count: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    trained_tokens: int = 0
    cut: int = 0
    dropped_reasoning: int = 0
    duplicates: int = 0
    samples: list[dict[str, Any]] = field(default_factory=list)
    spans: list[list[tuple[str, bool]]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {
            "files": self.files,
            "read": self.read,
            "whole": self.whole,
            "bad": self.bad,
            "bad_count": self.bad_count,
            "left_out": dict(self.left_out),
            "shapes": dict(self.shapes),
            "unused_fields": dict(self.unused),
            "tokens": None if not self.lengths else _quantiles(self.lengths),
            "trained_tokens": self.trained_tokens,
            "cut": self.cut,
            "dropped_reasoning": self.dropped_reasoning,
            "duplicates": self.duplicates,
            "samples": self.samples,
        }


def preview(
    config: Config, records: int = 3, *, everything: bool = False
) -> tuple[dict[str, Preview], list[str]]:
    """Look at the training records of every domain: the first thousand of each file, or all.

    Args:
        records: examples per domain, chosen at random by ``config.seed``.

    Returns:
        Per domain what was found, and warnings.

    Raises:
        UserError: no domains, a source that is missing or cannot be read, or no tokenizer.
    """
    if not config.domains:
        raise UserError("domains: none given, so there is nothing to look at; name some with train")
    if config.model.path is None:
        raise UserError("model.path: none given; its tokenizer decides what trains")
    data = config.data
    tokenizer = chat.load_tokenizer(
        config.model.path,
        data.chat_template,
        config.model.trust_remote_code,
        data.chat_template_kwargs,
    )
    warnings = [f"data.chat_template: {said}" for said in chat.template_warnings(tokenizer)]
    try:
        check_length(
            "data.max_length", data.max_length, config.model.path, config.model.trust_remote_code
        )
    except UserError as error:
        warnings.append(f"{error}; a job stops at that")
    found = {}
    for name, domain in config.domains.items():
        inputs = [
            source
            for spec in domain.specs("train")
            for source in expand(spec, f"domains.{name}.train")
        ]
        warnings += [f"domains.{name}: {remark}" for remark in remarks(inputs)]
        rules = Rules(domain.fields, domain.allowed, data.preference)
        found[name] = _look(inputs, rules, tokenizer, config, records, everything)
        if domain.validation:
            warnings += _validation(name, domain, rules)
        warnings += _doubts(name, found[name], data.max_bad_fraction)
    return found, warnings


def _look(
    inputs: list[Input],
    rules: Rules,
    tokenizer: Any,
    config: Config,
    records: int,
    everything: bool,
) -> Preview:
    result, random, seen, good = Preview(), Random(config.seed), set(), 0
    kept: list[tuple[Located, Example, chat.Encoded]] = []
    for source in inputs:
        result.files.append(source.label)
        rows: Iterator[Located] = read_records(source)
        for item in rows if everything else islice(rows, _LOOK):
            result.read += 1
            try:
                if item.record is None:
                    raise BadRecord(item.problem)
                reading = interpret(item.record, rules)
                encoded = chat.encode(tokenizer, reading.example)
                length = len(encoded.tokens)
                if length > config.data.max_length:
                    if config.data.too_long == "refuse":
                        raise BadRecord(f"longer than data.max_length ({length:,} tokens)")
                    if config.data.too_long == "cut":
                        encoded = chat.cut(tokenizer, encoded, config.data.max_length)
                        result.cut += 1
            except LeftOut as error:
                result.left_out[str(error)] += 1
                continue
            except BadRecord as error:
                result.bad_count += 1
                if len(result.bad) < _BAD:
                    result.bad.append({"location": item.location, "problem": str(error)})
                continue
            result.shapes[reading.shape] += 1
            result.unused.update(reading.unused)
            result.lengths.append(length)
            result.dropped_reasoning += encoded.dropped_reasoning
            result.trained_tokens += sum(encoded.loss_mask)
            digest = content_hash(reading.example)
            result.duplicates += digest in seen
            seen.add(digest)
            good += 1
            if len(kept) < records:
                kept.append((item, reading.example, encoded))
            elif records and (place := random.randrange(good)) < records:
                kept[place] = (item, reading.example, encoded)
        result.whole = result.whole and (everything or next(iter(rows), None) is None)
    for item, example, encoded in kept:
        spans = _spans(tokenizer, encoded)
        result.spans.append(spans)
        result.samples.append(
            {
                "location": item.location,
                "turns": [dict(turn) for turn in example.messages],
                "trained": [text for text, trains in spans if trains],
                "tokens": len(encoded.tokens),
                "trained_tokens": sum(encoded.loss_mask),
            }
        )
    return result


def _spans(tokenizer: Any, encoded: chat.Encoded) -> list[tuple[str, bool]]:
    """A row as text, in runs that carry loss or none."""
    pairs = zip(encoded.tokens, encoded.loss_mask, strict=True)
    return [
        (tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False), trains)
        for trains, run in groupby(pairs, key=lambda pair: pair[1])
    ]


def _validation(name: str, domain: Domain, rules: Rules) -> list[str]:
    """Held-out records that are none, told as warnings."""
    key = f"domains.{name}.validation"
    problems = []
    for source in (one for spec in domain.specs("validation") for one in expand(spec, key)):
        for item in islice(read_records(source), _LOOK):
            try:
                if item.record is None:
                    raise BadRecord(item.problem)
                interpret(item.record, rules)
            except LeftOut:
                continue
            except BadRecord as error:
                problems.append(f"{item.location}: {error}")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return [f"{key}: {problems[0]}{more}"] if problems else []


def _doubts(name: str, found: Preview, tolerated: float) -> list[str]:
    """What a person should look at before training on it."""
    doubts = []
    if found.read == 0:
        doubts.append(f"domains.{name}: no record in {', '.join(found.files)}; a job stops at that")
    if found.bad_count:
        first = found.bad[0]
        way_out = ""
        if found.bad_count == found.read:
            way_out = "; a job stops at that: none is left to use"
        elif found.bad_count > tolerated * found.read:
            setting = tolerating(found.bad_count, found.read)
            way_out = f"; a job stops at that: mend them, or set {setting}"
        doubts.append(
            f"domains.{name}: {found.bad_count} of {found.read} records are bad: "
            f"{first['location']}: {first['problem']}{way_out}"
        )
    for column, count in found.unused.most_common():
        doubts.append(f"domains.{name}: the field {column!r} of {count} records is not read")
    if found.dropped_reasoning:
        doubts.append(
            f"domains.{name}: the chat template drops the reasoning of {found.dropped_reasoning:,} "
            f"turns"
        )
    if found.cut:
        doubts.append(f"domains.{name}: {found.cut} records are cut at data.max_length")
    if found.duplicates:
        doubts.append(f"domains.{name}: {found.duplicates} records stand there more than once")
    return doubts


def screen(found: Mapping[str, Preview], warnings: list[str], *, colour: bool) -> str:
    """The same for a person; what carries loss is green, or between ⟦ and ⟧ without ``colour``."""
    opened, closed = (_GREEN, _PLAIN) if colour else ("⟦", "⟧")
    lines = []
    for name, one in found.items():
        files = ", ".join(one.files[:3]) + (", …" if len(one.files) > 3 else "")
        more = "" if one.whole else " (there are more: --all reads them)"
        lines += [f"{name}: {one.read:,} records of {len(one.files)} file(s), {files}{more}"]
        parts = [f"{count:,} {shape}" for shape, count in one.shapes.most_common()]
        if one.bad_count:
            parts.append(f"{one.bad_count:,} bad")
        parts += [f"{count:,} left out ({reason})" for reason, count in one.left_out.most_common()]
        lines.append("  " + (", ".join(parts) or "none of them good"))
        if one.lengths:
            low, middle, high = _quantiles(one.lengths).values()
            lines.append(
                f"  {low:,} to {high:,} tokens, half of them up to {middle:,}; "
                f"{one.trained_tokens / max(1, sum(one.lengths)):.0%} carry loss"
            )
        for item in one.bad[:3]:
            lines.append(f"  bad: {item['location']}: {item['problem']}")
        for sample, spans in zip(one.samples, one.spans, strict=True):
            lines += [
                "",
                f"  {sample['location']}  ({sample['trained_tokens']} of "
                f"{sample['tokens']} tokens carry loss)",
            ]
            left, row = _SHOWN, ""
            for text, trains in spans:
                shown = _harmless(text[:left])
                row += f"{opened}{shown}{closed}" if trains and shown else shown
                left -= len(shown)
            lines += [f"    {line}" for line in (row if left > 0 else f"{row} …").splitlines()]
        lines.append("")
    lines += [f"warning: {warning}" for warning in warnings]
    return "\n".join(lines)


def _harmless(text: str) -> str:
    """Control characters of a record must not reach the terminal."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "�" for sign in text)


def _quantiles(lengths: list[int]) -> dict[str, int]:
    low, middle, high = np.quantile(lengths, [0, 0.5, 1], method="lower").astype(int).tolist()
    return {"least": low, "median": middle, "most": high}
