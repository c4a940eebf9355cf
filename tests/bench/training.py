"""What the training benches share: records of six domains, their token stores, and a random
model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

DOMAINS = ("code", "finance", "general", "law", "medicine", "science")


def data_folder() -> Path | None:
    """The test data (real records and a real tokenizer), where it is: $VERSATUNE_DATA, or
    ``shared/data`` beside the repository.
    """
    folder = Path(
        os.environ.get("VERSATUNE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
    )
    return folder if folder.is_dir() else None


def encoded(
    records: int, max_length: int, vocabulary: int
) -> tuple[list[list[tuple[Any, Any]]], str]:
    """``records`` of each of six domains as (tokens, loss mask), and in words what they are.

    Real ones have the lengths and masks that the real tokenizer gives; token ids are folded into 1
    … ``vocabulary`` − 1, so that a tiny model keeps a tiny head (0 is left for padding). Without
    the test data lengths are log-normal with the median and mean seen there.
    """
    import numpy as np

    folder = data_folder()
    if folder is None:
        rng = np.random.default_rng(0)
        lengths = np.clip(
            rng.lognormal(np.log(112), 0.93, (len(DOMAINS), records)), 40, max_length
        ).astype(int)
        made = [
            [
                (
                    rng.integers(1, vocabulary, n).astype(np.int32),
                    np.arange(n) >= min(n - 1, round(0.59 * n)),
                )
                for n in domain
            ]
            for domain in lengths
        ]
        return made, "made-up log-normal lengths (no test data here; see VERSATUNE_DATA)"
    from versatune_ray.domains import BadRecord, cut, encode, load_tokenizer, to_example

    tokenizer = load_tokenizer(str(folder / "models" / "qwen2.5_tokenizer"))
    domains = []
    for name in DOMAINS:
        found: list[tuple[Any, Any]] = []
        with (folder / "sft" / f"{name}.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                with suppress(BadRecord):
                    tokens, mask, _ = cut(
                        tokenizer, encode(tokenizer, to_example(json.loads(line))), max_length
                    )
                    found.append(
                        (1 + np.array(tokens, np.int32) % (vocabulary - 1), np.array(mask))
                    )
                if len(found) == records:
                    break
        domains.append(found)
    return (
        domains,
        f"{records} real records per domain, Qwen2.5 tokenizer and chat template, cut at "
        f"{max_length} tokens",
    )


def write_domains(
    folder: Path, domains: Sequence[Sequence[tuple[Any, Any]]], names: Sequence[str] = DOMAINS
) -> dict[str, str]:
    """Token stores of ready-made samples: name → folder."""
    import numpy as np

    from versatune_ray.domains import Batch, TokenStoreWriter

    for place, (name, samples) in enumerate(zip(names, domains, strict=True)):
        with TokenStoreWriter(folder / name) as writer:
            writer.append(
                Batch(
                    tokens=np.concatenate([tokens for tokens, _ in samples]),
                    mask=np.concatenate([mask for _, mask in samples]),
                    lengths=np.array([len(tokens) for tokens, _ in samples]),
                    hashes=(
                        np.arange(len(samples), dtype=np.uint64) * np.uint64(8)
                        + np.uint64(place + 1)
                    )
                    * np.uint64(0x9E3779B97F4A7C15),
                    response_bytes=np.array([int(mask.sum()) for _, mask in samples]),
                    locations=np.zeros((len(samples), 2), np.int64),
                )
            )
    return {name: str(folder / name) for name in names}


def read_domains(stores: Mapping[str, str], held_out: int) -> list[Any]:
    """``DomainData`` of each store: its first ``held_out`` records measure, the others train."""
    import numpy as np

    from versatune_ray.domains import DomainData, Records, TokenStore

    found = []
    for name, path in stores.items():
        store = TokenStore(path)
        rows = np.arange(len(store))
        found.append(
            DomainData(name, Records(store, rows[held_out:]), Records(store, rows[:held_out]), {})
        )
    return found


def random_llama(
    folder: Path,
    vocabulary: int,
    hidden: int,
    layers: int,
    heads: int,
    intermediate: int,
    context: int,
) -> dict[str, Any]:
    """Write a random Llama without a tokenizer; returns what it is."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        intermediate_size=intermediate,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    size = sum(parameter.numel() for parameter in model.parameters())
    return {
        "hidden": hidden,
        "layers": layers,
        "vocabulary": vocabulary,
        "parameters": size,
        "head": round(vocabulary * hidden / size, 3),
    }
