"""Stage one of detection: N_S sequences per repeat from BOS alone, through a vLLM stage of Ray Data."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ray.engine import vllm_stage
from versatune_ray.parts import finished_ids, write_parts
from versatune_ray.settings import Detection

Row = dict[str, Any]

GENERATED = {"id": pa.int64(), "repeat": pa.int64(), "text": pa.string(), "tokens": pa.int64(), "discarded": pa.string()}


def start_token(model: str, trust_remote_code: bool) -> tuple[int, str]:
    """The token that pre-training puts before a document, and how it was found (Qwen tokenizers have no BOS)."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id, f"{tokenizer.bos_token} (the tokenizer's BOS)"
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    if getattr(config, "bos_token_id", None) is not None:
        return config.bos_token_id, f"{tokenizer.decode([config.bos_token_id])} (BOS of the model's config; the tokenizer has none)"
    return tokenizer.eos_token_id, f"{tokenizer.eos_token} (EOS, as between documents; there is no BOS)"


def generate(model: str, start: int, settings: Detection, seed: int, folder: Path, *, gpu: bool, trust_remote_code: bool) -> None:
    """Write ``samples × repeats`` rows to Parquet in ``folder``: id, repeat, text, tokens, discarded (a reason, or null).

    Rows already there are not generated again. A failed request stays as a row with its reason: nothing is dropped.
    """
    import ray

    sampling = settings.generation.model_dump(exclude={"seeded"})
    samples = settings.samples

    def prepare(row: Row) -> Row:
        own = {"seed": _seed(seed, row["id"])} if settings.generation.seeded else {}
        return row | {"tokenized_prompt": [start], "sampling_params": sampling | own}

    def keep(row: Row) -> Row:
        return {"id": row["id"], "text": row["generated_text"], "tokens": row["num_generated_tokens"]}

    def finish(row: Row) -> Row:
        error = row.get("__inference_error__") or ""
        text = "" if error else row["text"]
        reason = f"generation failed: {error}" if error else "empty generation" if not text.strip() else None
        tokens = 0 if error else int(row["tokens"])
        return {"id": int(row["id"]), "repeat": int(row["id"]) // samples, "text": text, "tokens": tokens, "discarded": reason}

    engine = settings.engine.model_copy(update={"options": {"max_model_len": settings.generation.max_tokens + 1} | settings.engine.options})
    stage = vllm_stage(model, engine, prepare, keep, gpu=gpu, trust_remote_code=trust_remote_code)
    total = samples * settings.repeats
    ids = np.setdiff1d(np.arange(total), finished_ids(folder))
    if len(ids):
        blocks = math.ceil(len(ids) / settings.engine.batch_size)
        rows = stage(ray.data.from_items([{"id": int(i)} for i in ids], override_num_blocks=blocks)).map(finish)
        write_parts(rows, folder, GENERATED, "generation", len(ids))


def _seed(seed: int, row: int) -> int:
    """31 bits that differ between rows and between seeds."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=4).digest(), "big") >> 1
