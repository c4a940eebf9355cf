"""A first configuration from a folder of files: a domain for each file or subfolder."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice
from pathlib import Path

import yaml

from versatune_ray.domains.example import BadRecord, LeftOut
from versatune_ray.domains.readers import read_records
from versatune_ray.domains.records import Rules, interpret
from versatune_ray.domains.spec import expand
from versatune_ray.errors import UserError
from versatune_ray.runtime.models import stated_context
from versatune_ray.settings import Data

_LOOK = 200  # records of each domain
_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_HELD_OUT = re.compile(r"[._-]?(test|valid|validation|val|dev|eval)$", re.IGNORECASE)
_TRAIN = re.compile(r"[._-]?train$", re.IGNORECASE)


def starter(folder: Path, model: str) -> tuple[str, list[str]]:
    """The text of a configuration for ``model`` over the records in ``folder``, and a line for each
    domain that says what was seen in it, and one for the files that hold no records.

    A file is a domain of its stem; a subfolder one of its name. ``NAME-train`` and ``NAME-test``
    (``valid``, ``dev``) belong together.

    Raises:
        UserError: fewer than two domains are there, a name is that of a split alone, or a file
            cannot be read.
    """
    found, left = _domains(folder)
    if len(found) < 2:
        names = f" ({', '.join(found)})" if found else ""
        raise UserError(
            f"{folder}: {len(found)} domain{'' if len(found) == 1 else 's'}{names}, and two are "
            f"needed: a file of records (.jsonl, .csv, .parquet, …) or a subfolder for each"
        )
    looked = [_look(name, parts["train"]) for name, parts in found.items()]
    looked += [f"without records, left: {', '.join(left)}"] if left else []
    return _text(folder, model, found), looked


def _domains(folder: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Domain → ``train`` and perhaps ``validation`` → path; and the names of other files."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found: dict[str, dict[str, str]] = {}
    left = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")):
            continue
        try:
            expand(str(path), str(folder), texts=True)
        except UserError:
            left.append(path.name)  # a README, a script
            continue
        stem = path
        while stem.suffix in _SUFFIXES:
            stem = stem.with_suffix("")
        name = path.name if path.is_dir() else stem.stem
        held_out = _HELD_OUT.search(name)
        domain = _TRAIN.sub("", _HELD_OUT.sub("", name))
        if not domain:
            raise UserError(
                f"{path}: named for a split and not for a domain; put it into a folder of its "
                f"domain's name"
            )
        domain = re.sub(r"[^\w-]+", "-", domain).strip("-") or "domain"
        parts = found.setdefault(domain, {})
        part = "validation" if held_out else "train"
        if part in parts:
            raise UserError(
                f"{path}: {Path(parts[part]).name} would be domain {domain!r} too; put the files "
                f"of a domain into a folder of its name"
            )
        parts[part] = str(path)
    for domain, parts in found.items():
        if "train" not in parts:
            raise UserError(
                f"{parts['validation']}: named as held out, and no file of {domain!r} to train on "
                f"is beside it; rename it where it is to train"
            )
    return found, left


def _look(name: str, spec: str) -> str:
    shapes: Counter[str] = Counter()
    bad, read = "", 0
    for source in expand(spec, f"domains.{name}.train", texts=True):
        for item in islice(read_records(source), _LOOK - read):
            read += 1
            try:
                if item.record is None:
                    raise BadRecord(item.problem)
                shapes[interpret(item.record, Rules()).shape] += 1
            except LeftOut as error:
                shapes[f"left out: {error}"] += 1
            except BadRecord as error:
                bad = bad or f"{item.location}: {error}"
    seen = ", ".join(f"{count} {shape}" for shape, count in shapes.most_common())
    more = "the first " if read == _LOOK else ""
    return f"{name}: of {more}{read} records {seen or 'none can be read'}" + (
        f"; first bad one: {bad}" if bad else ""
    )


def _context(model: str) -> list[str]:
    """A line for a model whose context is shorter than what records are cut to."""
    context = stated_context(model)
    if context is None or context >= Data().max_length:
        return []
    return [f"data: {{max_length: {context}}}  # as far as this model reads"]


def _text(folder: Path, model: str, found: dict[str, dict[str, str]]) -> str:
    def line(value: object) -> str:
        return (
            yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
            .split("\n...")[0]
            .strip()
        )

    domains = [
        f"  {line(name)}: {line(parts['train'] if len(parts) == 1 else parts)}"
        for name, parts in found.items()
    ]
    return "\n".join(
        [
            f"# Written by versatune init {folder}. Every key: versatune finetune --keys",
            "run: mine  # its files: runs/mine/",
            f"model: {{path: {line(model)}}}",
            "domains:  # a part of each is held out to measure, unless validation names one",
            *domains,
            "mixture: {preset: balanced}  # shares follow what is left to learn; no judge needed",
            *_context(model),
            "training: {epochs: 2, batch_size: 64, workers: 1}",
            "# training.lora.rank: 16 where the whole model does not fit (--plan says what fits)",
            "",
        ]
    )
