"""What check, mfu and fit share: random models, token stores from lists, one JSON line per result.
No package but the core's own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from versatune_ray.domains import DomainData, DomainPaths, load_domains
from versatune_ray.domains.spec import Input
from versatune_ray.domains.store_writer import Batch, TokenStoreWriter
from versatune_ray.settings import Data

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
CARD = torch.cuda.get_device_name() if GPU else "CPU"
QWEN = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32_768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-1.5b": QWEN
    | {
        "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "qwen2.5-7b": QWEN
    | {
        "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944,
        "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "tiny": QWEN
    | {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": False,
    },
}  # fmt: skip

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def report(name: str, **found: Any) -> None:
    print(json.dumps({"name": name} | found), flush=True)


def note(text: str) -> None:
    print(f"[gpu] {text}", file=sys.stderr, flush=True)


def store(folder: Path, samples: Sequence[tuple[Sequence[int], int]]) -> Path:
    """A token store of ``(tokens, length of the prompt)`` pairs; every token after the prompt
    carries loss.
    """
    with TokenStoreWriter(
        folder, [Input(f"{folder}.jsonl", f"{folder.name}.jsonl", "jsonl")]
    ) as writer:
        writer.append(
            Batch(
                tokens=np.concatenate([np.array(tokens, np.int32) for tokens, _ in samples]),
                mask=np.concatenate(
                    [np.arange(len(tokens)) >= prompt for tokens, prompt in samples]
                ),
                lengths=np.array([len(tokens) for tokens, _ in samples], np.int64),
                hashes=np.random.default_rng(abs(hash(folder.name)))
                .integers(0, 2**63, len(samples))
                .astype(np.uint64),
                response_bytes=np.array(
                    [len(tokens) - prompt for tokens, prompt in samples], np.int64
                ),
                locations=np.stack(
                    [np.zeros(len(samples), np.int64), np.arange(1, len(samples) + 1)], axis=1
                ),
            )
        )
    return folder


def domains(
    folder: Path, lengths: Sequence[Sequence[int]], vocabulary: int, prompt: float = 0.3
) -> list[DomainData]:
    """One domain per list of lengths, of random tokens; two records of each are held out."""
    rng = np.random.default_rng(0)

    def samples(sizes: Sequence[int]) -> list[tuple[list[int], int]]:
        return [
            (rng.integers(3, vocabulary, int(n)).tolist(), max(1, int(prompt * n))) for n in sizes
        ]

    paths = {}
    for number, sizes in enumerate(lengths):
        name = f"domain{number}"
        paths[name] = DomainPaths(
            store(folder / name, samples(sizes)), store(folder / f"{name}-v", samples(sizes[:2]))
        )
    return list(load_domains(paths, Data()).values())


def folder_of(config: Any, folder: Path) -> str:
    """A folder with a configuration alone, for models whose weights are made on the device."""
    config.architectures = [AutoModelForCausalLM._model_mapping[type(config)].__name__]
    config.save_pretrained(folder)
    return str(folder)


def qwen(shape: str, folder: Path) -> str:
    return folder_of(AutoConfig.for_model("qwen2", **SHAPES[shape]), folder / shape)


@torch.no_grad()
def random_weights(model: Any) -> None:
    """In the place of ``fill``: normal matrices, norms of 1."""
    from versatune_ray.training.model import init_buffers

    init_buffers(model)
    for parameter in model.parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        local.normal_(0, 0.02) if parameter.dim() > 1 else local.fill_(1.0)
