"""Fill in what the configuration leaves to the embedded default: microworld records, tiny base
model, tiny judge.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ray.detection.prompt import TINY_JUDGE_PROMPT
from versatune_ray.domains.labelled import text_hash
from versatune_ray.domains.readers import read_texts
from versatune_ray.errors import UserError
from versatune_ray.microworld.world import MIXTURE, SPECS, World
from versatune_ray.runs.cache import cached, have, key_of
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.progress import Bar
from versatune_ray.settings import MICROWORLD, Base, Config, Domain

_FORMAT = 2  # raised when the code of world.py or tiny.py makes something else of the same settings
_CHARACTERS_PER_TOKEN = 4
BASE_FOLDER, JUDGE_FOLDER = "tiny-base", "tiny-judge"


def prepare(
    config: Config, need_base: bool, need_judge: bool, make: bool = True
) -> tuple[Config, bool]:
    """Returns the configuration with every model path and domain filled in, and whether nothing had
    to be made.

    Without ``make``, models that are not there stay unnamed.

    Raises:
        UserError: a judge is needed and there is neither one named nor labelled text to train a
            tiny one on.
    """
    need_judge = need_judge and config.detection.judge.path is None
    if need_judge:
        check_judge(config)
    # else the microworld says nothing about the domains
    made_here = bool(config.base.corpora) or not config.domains
    config = _with_domains(config)
    wanted = [name for name, need in ((BASE_FOLDER, need_base), (JUDGE_FOLDER, need_judge)) if need]
    labels = made_here and config.base.held_out > 0
    texts, held_out = _texts(config) if labels or wanted else ({}, {})
    if labels:
        config = _with_labelled(config, held_out)
    made = _make(wanted, texts, config, make) if wanted else {}
    if BASE_FOLDER in made:
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"path": str(made[BASE_FOLDER][0])})}
        )
    if JUDGE_FOLDER in made:
        judge = config.detection.judge.model_copy(
            update={
                "path": str(made[JUDGE_FOLDER][0]),
                "prompt": TINY_JUDGE_PROMPT,
                "labels": "letters",
                "max_text_tokens": config.base.row_tokens - 2,
                # its context is small, and it ends after its letter
                "answer_tokens": min(config.detection.judge.answer_tokens, 16),
            }
        )
        config = config.model_copy(
            update={"detection": config.detection.model_copy(update={"judge": judge})}
        )
    return config, all(reused for _, reused in made.values())


def check_judge(config: Config) -> None:
    """Whether there is a judge, or something to make a tiny one of.

    Raises:
        UserError: neither.
    """
    if config.detection.judge.path is not None:
        return
    if config.domains and not config.base.corpora:
        raise UserError(
            "detection.judge.path: missing; name a judge model, or give detection.distribution, "
            "or start without detection (mixture.start=uniform)"
        )
    if not config.base.judge_rows:
        raise UserError("base.judge_rows: 0 makes no tiny judge; name one in detection.judge.path")


def _with_domains(config: Config) -> Config:
    """The microworld's records as domains like any other, where none are configured and no corpora
    either.
    """
    if config.domains or config.base.corpora:
        return config
    settings = config.microworld
    world = World(settings.facts, settings.seed)
    folder, _ = cached(
        config.cache_folder, "microworld", settings.model_dump() | {"format": _FORMAT}, world.write
    )
    domains = {
        name: Domain(
            train=[str(folder / f"{name}.train.jsonl")],
            validation=[str(folder / f"{name}.validation.jsonl")],
            questions=[str(folder / f"{name}.questions.jsonl")],
            description=SPECS[name].description,
        )
        for name in MICROWORLD
    }
    return config.model_copy(update={"domains": domains})


def _with_labelled(config: Config, held_out: Mapping[str, list[str]]) -> Config:
    """Held-out texts of ``base.corpora``, or of the microworld, measure the judge: they are what a
    base model made here writes like.
    """
    # In pieces as long as a sequence may be: documents are few, and what the base model writes
    # begins anywhere in one.
    size = config.base.row_tokens * _CHARACTERS_PER_TOKEN
    pieces = {
        name: [text[at : at + size] for text in texts for at in range(0, len(text), size)]
        for name, texts in held_out.items()
    }
    pieces = {name: [one for one in found if one.strip()] for name, found in pieces.items()}
    parts = {"texts": _digest(pieces), "format": _FORMAT}

    def write(work: Path) -> None:
        for name, texts in pieces.items():
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (work / f"{name}.jsonl").write_text(lines, encoding="utf-8")

    folder, _ = cached(config.cache_folder, "held-out", parts, write)
    domains = {
        name: domain
        if domain.labelled or not pieces.get(name)
        else domain.model_copy(update={"labelled": [str(folder / f"{name}.jsonl")]})
        for name, domain in config.domains.items()
    }
    return config.model_copy(update={"domains": domains})


def _make(
    wanted: list[str], texts: Mapping[str, list[str]], config: Config, missing_too: bool
) -> dict[str, tuple[Path, bool]]:
    """The tiny models by name; with ``missing_too``, those that are not cached are trained, side by
    side as Ray tasks.
    """
    mixture = _mixture(config.base, list(texts))
    digest = _digest(texts)
    shared = config.base.model_dump(
        include={
            "row_tokens",
            "vocab_size",
            "hidden_size",
            "layers",
            "context",
            "batch_size",
            "learning_rate",
            "seed",
        }
    )
    parts: dict[str, dict[str, Any]] = {
        BASE_FOLDER: shared
        | {"format": _FORMAT, "texts": digest, "rows": config.base.rows, "mixture": mixture},
        JUDGE_FOLDER: shared
        | {
            "format": _FORMAT,
            "texts": digest,
            "rows": config.base.judge_rows,
            "noise": config.base.judge_noise,
        },
    }

    def make(name: str, texts: Mapping[str, list[str]]) -> tuple[Path, bool]:
        from versatune_ray.microworld import tiny

        def build(work: Path) -> None:
            with Bar(name, 1, "step") as bar:

                def progress(step: int, steps: int, loss: float) -> None:
                    bar.to(step, f"loss {loss:.3f}", steps)

                if name == BASE_FOLDER:
                    tiny.build_base(
                        config.base,
                        texts,
                        np.array([mixture[d] for d in texts]),
                        config.base.seed,
                        work / name,
                        progress,
                    )
                else:
                    tiny.build_judge(config.base, texts, config.base.seed, work / name, progress)

        return cached(config.cache_folder, name, parts[name], build)

    # A cached model needs no task: the second run of a job should not wait for workers to start.
    entries = {name: config.cache_folder / name / key_of(parts[name]) for name in wanted}
    there = {name: (entry / name, True) for name, entry in entries.items() if have(entry)}
    if not missing_too or len(there) == len(entries):
        return there
    import ray

    remote = ray.remote(num_cpus=config.base.cpus, max_retries=0)(make)
    shared_texts = ray.put(texts)
    tasks = {name: remote.remote(name, shared_texts) for name in entries if name not in there}
    made = {name: ray.get(task) for name, task in tasks.items()}
    return there | {name: (fetch(entry / name), reused) for name, (entry, reused) in made.items()}


def _texts(config: Config) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Texts per domain to train the tiny models on, and those held out from both by their
    hashes.
    """
    base, world = config.base, World(config.microworld.facts, config.microworld.seed)
    if base.corpora:
        order = list(config.domains or base.corpora)
        every = {
            name: [text for _, text in read_texts(base.corpora[name], f"base.corpora.{name}")]
            for name in order
        }
    else:
        mixture = _mixture(base, list(MICROWORLD))
        rows = {
            name: math.ceil(max(base.rows * mixture[name], base.judge_rows / len(MICROWORLD)))
            for name in MICROWORLD
        }
        every = {name: list(world.texts(name, rows[name])) for name in MICROWORLD}
    below = int(base.held_out * 2.0**64)
    kept: dict[str, list[str]] = {name: [] for name in every}
    apart: dict[str, list[str]] = {name: [] for name in every}
    for name, texts in every.items():
        for text in texts:
            (apart if text_hash(text) < below else kept)[name].append(text)
    return kept, apart


def _digest(texts: Mapping[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _mixture(base: Base, names: list[str]) -> dict[str, float]:
    shares = base.mixture or (dict.fromkeys(names, 1 / len(names)) if base.corpora else MIXTURE)
    if set(shares) != set(names) or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise UserError(
            f"base.mixture: needs one share ≥ 0 for each of {', '.join(names)}; found "
            f"{dict(shares)}"
        )
    total = sum(shares.values())
    return {name: shares[name] / total for name in names}
