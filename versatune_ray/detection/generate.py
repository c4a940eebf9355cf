"""Stage one of detection: sequences from the start token alone, through a vLLM stage of Ray Data,
kept in a store that can grow.

A sequence is known by its number: the same model, settings and seed give the same store, whatever
N_S, T or the tolerance say, and a job that wants more sequences than are there makes the missing
ones only.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ray.errors import UserError
from versatune_ray.runs.cache import held, key_of, write_json
from versatune_ray.runs.parts import finished_ids, write_parts
from versatune_ray.runs.storage import push
from versatune_ray.runtime.engine import decisive, vllm_stage
from versatune_ray.runtime.models import check_length, check_weights, model_fingerprint
from versatune_ray.runtime.progress import engine_bar
from versatune_ray.settings import Config, Engine, Generation

Row = dict[str, Any]

GENERATED = {
    "id": pa.int64(),
    "text": pa.string(),
    "tokens": pa.int64(),
    "text_hash": pa.int64(),
    "degenerate": pa.bool_(),  # one token repeated
    "discarded": pa.string(),  # why there is no text, or null
    "failed": pa.bool_(),
}
_FORMAT = 2  # raised when what a row holds changes
_REPEATED_SHARE, _REPEATED_LEAST = 0.9, 8


@dataclass(frozen=True)
class Generator:
    """A base model ready to write: where it is, what it starts from, how it samples, and the folder
    of its sequences.
    """

    name: str
    path: str
    fingerprint: str
    start: int
    start_is: str
    generation: Generation
    seed: int
    engine: Engine
    folder: Path
    trust_remote_code: bool


def generator(name: str, path: str, engine: Engine, config: Config) -> Generator:
    """Check a base model and say where its sequences are kept.

    Raises:
        UserError: there is no such model, its weights are damaged, or its context is too short.
    """
    remote, settings = config.model.trust_remote_code, config.detection.generation
    fingerprint = model_fingerprint(path)
    check_weights(path)
    check_length("detection.generation.max_tokens", settings.max_tokens + 1, path, remote)
    start, how = start_token(path, settings.start, remote)
    parts = {
        "format": _FORMAT,
        "model": fingerprint,
        "start": start,
        "generation": settings.model_dump(exclude={"start"}),
        "options": decisive(engine.options),
        "seed": config.seed,
    }
    folder = config.cache_folder / "generated" / key_of(parts)
    return Generator(
        name, path, fingerprint, start, how, settings, config.seed, engine, folder, remote
    )


def start_token(model: str, wanted: str, trust_remote_code: bool) -> tuple[int, str]:
    """The token that pre-training puts before a document, and how it was found (Qwen tokenizers
    have no BOS).

    Raises:
        UserError: the tokenizer has neither.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    how, missing = "as configured", "no EOS"
    if wanted != "eos":
        if tokenizer.bos_token_id is not None:
            return tokenizer.bos_token_id, f"{tokenizer.bos_token} (the tokenizer's BOS)"
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        if getattr(config, "bos_token_id", None) is not None:
            return (
                config.bos_token_id,
                f"{tokenizer.decode([config.bos_token_id])} (BOS of the model's config; the "
                f"tokenizer has none)",
            )
        how, missing = "as between documents; there is no BOS", "neither BOS nor EOS"
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{model}: the tokenizer has {missing}; nothing to begin a sequence with: set its "
            f"bos_token or eos_token"
        )
    return tokenizer.eos_token_id, f"{tokenizer.eos_token} (EOS, {how})"


def generate(source: Generator, count: int, *, gpu: bool) -> int:
    """Complete the sequences 0 … ``count`` - 1 of a store and return how many had to be made.

    A failed request stays as a row with its reason: nothing is dropped. A second job that wants the
    same store waits here.
    """
    import ray

    source.folder.mkdir(parents=True, exist_ok=True)
    with held(source.folder):
        missing = np.setdiff1d(np.arange(count), finished_ids(source.folder))
        if not len(missing):
            return 0
        write_json(
            source.folder / "about.json",
            {"model": source.path, "generation": source.generation.model_dump()},
        )
        push(source.folder / "about.json")
        sampling = source.generation.model_dump(exclude={"seeded", "start"})
        start, seed, seeded = source.start, source.seed, source.generation.seeded

        def prepare(row: Row) -> Row:
            own = {"seed": _seed(seed, row["id"])} if seeded else {}
            return {"id": row["id"], "tokenized_prompt": [start], "sampling_params": sampling | own}

        def keep(row: Row) -> Row:
            tokens = row["generated_tokens"]
            return text_row(row["id"], row["generated_text"], len(tokens), is_degenerate(tokens))

        def finish(row: Row) -> Row:
            error = row.get("__inference_error__") or ""
            if error:
                return text_row(row["id"], "", 0, False) | {
                    "discarded": f"generation failed: {error}",
                    "failed": True,
                }
            return {name: row[name] for name in GENERATED}

        options: dict[str, Any] = {"max_model_len": source.generation.max_tokens + 1}
        # vLLM seeds every engine alike: one that goes on must not write again what is there
        if not seeded:
            options["seed"] = secrets.randbits(31)
        engine = source.engine.model_copy(update={"options": options | source.engine.options})
        stage = vllm_stage(
            source.path, engine, prepare, keep, gpu=gpu, trust_remote_code=source.trust_remote_code
        )
        blocks = np.array_split(missing, math.ceil(len(missing) / engine.batch_size))
        rows = stage(ray.data.from_arrow([pa.table({"id": block}) for block in blocks])).map(finish)
        with engine_bar(f"generation by {source.name}", len(missing)) as bar:
            return write_parts(rows, [source.folder], GENERATED, bar.to)


def text_row(number: int, text: str, tokens: int, degenerate: bool) -> Row:
    """A row of ``GENERATED``."""
    text = text.encode("utf-8", "replace").decode()  # half a Unicode character cannot be stored
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return {
        "id": int(number),
        "text": text,
        "tokens": tokens,
        "text_hash": int.from_bytes(digest, "big", signed=True),
        "degenerate": degenerate,
        "discarded": None if text.strip() else "empty generation",
        "failed": False,
    }


def is_degenerate(tokens: Any) -> bool:
    """Whether one token makes up at least nine tenths of eight or more, int [L]."""
    if len(tokens) < _REPEATED_LEAST:
        return False
    return bool(np.unique(tokens, return_counts=True)[1].max() >= _REPEATED_SHARE * len(tokens))


def _seed(seed: int, row: int) -> int:
    """31 bits that differ between rows and between seeds."""
    return (
        int.from_bytes(hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=4).digest(), "big")
        >> 1
    )
