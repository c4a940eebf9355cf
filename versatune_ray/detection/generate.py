"""Stage one of detection: sequences from the start token alone, through a vLLM stage of Ray Data,
kept in a store that can grow.

A sequence is known by its number: the same model, settings and seed give the same store, whatever
N_S, T or the tolerance say, and a job that wants more sequences than are there makes the missing
ones only.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ray.errors import UserError, redacted
from versatune_ray.runs.cache import held, key_of, write_json
from versatune_ray.runs.parts import finished_ids, join_parts, write_parts
from versatune_ray.runs.storage import push
from versatune_ray.runtime.engine import engine_key, vllm_stage
from versatune_ray.runtime.models import check_length, check_weights, commit, model_fingerprint
from versatune_ray.runtime.pool import Pool
from versatune_ray.runtime.progress import engine_bar
from versatune_ray.settings import Config, Engine, Generation

Row = dict[str, Any]

GENERATED = {
    "id": pa.int64(),
    "text": pa.string(),
    "tokens": pa.int64(),
    "text_hash": pa.int64(),
    "degenerate": pa.bool_(),  # a token or a short cycle of them, repeated
    "discarded": pa.string(),  # why there is no text, or null
    "failed": pa.bool_(),
}
_FORMAT = 3  # raised when what a row holds changes
_REPEATED_SHARE, _REPEATED_LEAST = 0.9, 8
_LONGEST_CYCLE, _ROUNDS = 32, 4  # tokens; times that a cycle has to go round


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


def generator(name: str, path: str, engine: Engine, config: Config, *, gpu: bool) -> Generator:
    """Check a base model and say where its sequences are kept.

    Raises:
        UserError: there is no such model, its weights are damaged, or its context is too short.
    """
    remote, settings = config.model.trust_remote_code, config.detection.generation
    fingerprint = model_fingerprint(path, config.cache_folder)
    check_weights(path)
    check_length("detection.generation.max_tokens", settings.max_tokens + 1, path, remote)
    start, how = start_token(path, settings.start, remote)
    parts = {
        "format": _FORMAT,
        "model": fingerprint,
        "start": start,
        "generation": settings.model_dump(exclude={"start"}),
        "engine": engine_key(engine, gpu),
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

    at: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": commit(model)}
    tokenizer = AutoTokenizer.from_pretrained(model, **at)
    how, missing = "as configured", "no EOS"
    if wanted != "eos":
        if tokenizer.bos_token_id is not None:
            return tokenizer.bos_token_id, f"{tokenizer.bos_token} (the tokenizer's BOS)"
        config = AutoConfig.from_pretrained(model, **at)
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


def writer(source: Generator, *, gpu: bool) -> Pool:
    """The engines that write sequences of a base model: of a table of ids, ``GENERATED`` rows."""
    sampling = source.generation.model_dump(exclude={"seeded", "start"})
    start, seed, seeded = source.start, source.seed, source.generation.seeded

    def prepare(row: Row) -> Row:
        own = {"seed": request_seed(seed, row["id"])} if seeded else {}
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
    options |= source.engine.options
    return vllm_stage(
        source.path,
        source.engine.model_copy(update={"options": options}),
        prepare,
        keep,
        gpu=gpu,
        trust_remote_code=source.trust_remote_code,
        own_seeds=not seeded and "seed" not in options,
        finish=finish,
    )


def generate(
    source: Generator,
    count: int,
    *,
    gpu: bool,
    engines: Pool | None = None,
    on: Callable[[int], None] = lambda done: None,
) -> int:
    """Complete the sequences 0 … ``count`` - 1 of a store and return how many had to be made.

    A failed request stays as a row with its reason: nothing is dropped. A second job that wants the
    same store waits here.

    Args:
        engines: of this model (``writer``), which stay up; none: some for these sequences.
        on: told the sequences written so far; what it raises ends the writing.
    """
    import ray

    if engines is None:
        with writer(source, gpu=gpu) as engines:
            return generate(source, count, gpu=gpu, engines=engines, on=on)
    source.folder.mkdir(parents=True, exist_ok=True)
    with held(source.folder):
        missing = np.setdiff1d(np.arange(count), finished_ids(source.folder))
        join_parts(source.folder, GENERATED, whole=not len(missing))
        if not len(missing):
            return 0
        write_json(
            source.folder / "about.json",
            redacted({"model": source.path, "generation": source.generation.model_dump()}),
        )
        push(source.folder / "about.json")
        batches = math.ceil(len(missing) / source.engine.batch_size)
        blocks = [pa.table({"id": block}) for block in np.array_split(missing, batches)]
        rows = engines(ray.data.from_arrow(blocks), batches)
        with engine_bar(f"generation by {source.name}", len(missing)) as bar:

            def told(done: int) -> None:
                bar.to(done)
                on(done)

            made = write_parts(rows, [source.folder], GENERATED, told)
        join_parts(source.folder, GENERATED, whole=True)
        return made


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
    """Whether a cycle of 1 to 32 tokens, four rounds of it or more, makes up at least nine tenths
    of eight tokens or more, int [L].
    """
    written = np.asarray(tokens)
    if len(written) < _REPEATED_LEAST:
        return False
    for length in range(1, min(_LONGEST_CYCLE, len(written) // _ROUNDS) + 1):
        # what does not fill a round is cut off in front, where a text may begin with other words
        rounds = written[len(written) % length :].reshape(-1, length)
        # a token that is most of its column is the column's median
        usual = np.sort(rounds, axis=0)[len(rounds) // 2]
        if (rounds == usual).sum() >= _REPEATED_SHARE * rounds.size:
            return True
    return False


def request_seed(seed: int, row: int) -> int:
    """63 bits, which is what vLLM's samplers hold (an int64, of which -1 is none).

    torch seeds a generator on a CPU by the lower 32 bits alone, so these are a permutation of the
    2³² row numbers, another one for every ``seed``: no two rows of a store are ever alike. The
    upper 31 tell stores apart on a GPU, where all bits count.

    Raises:
        ValueError: ``row`` is not within 0 and 2³² - 1.
    """
    if not 0 <= row < 1 << 32:
        raise ValueError(f"row: {row} is not within 0 and 2³² - 1")
    digest = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "big")
    low = row ^ (key & 0xFFFFFFFF)
    # the finalizer of MurmurHash3: every step can be undone
    low = (low ^ low >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    low = (low ^ low >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    return (key >> 33) << 32 | low ^ low >> 16
