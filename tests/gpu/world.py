"""What the checks run on: random models of every family, records, trainers as a run begins them;
and the plain computation that they are held against.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import DEVICE, GPU, domains
from torch.nn import functional
from torch.nn.attention import varlen
from transformers import AutoConfig, AutoModelForCausalLM

from versatune_ray.domains import DomainData
from versatune_ray.settings import Training
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.model import begin_adapters, fill, load_model, with_frozen
from versatune_ray.training.trainer import Trainer

SHARES = np.array([0.5, 0.5])
RECIPE = Recipe(
    steps=12,
    batch_size=16,
    micro_batch_tokens=1024,
    learning_rate=1e-3,
    warmup=0.1,
    weight_decay=0.01,
    max_grad_norm=1.0,
    seed=3,
)
PLAIN = replace(RECIPE, max_grad_norm=0.0, weight_decay=0.0, warmup=0.0)
VOCABULARY, WINDOW, SIZE = 512, 48, 32
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": SIZE, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 512,
}  # fmt: skip
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
OF_FAMILY: dict[str, dict[str, Any]] = {
    "qwen2": WINDOWED | {"use_sliding_window": True},
    "qwen3": WINDOWED | {"use_sliding_window": True},
    "mistral": {"sliding_window": WINDOW},
    "smollm3": WINDOWED | {"use_sliding_window": True, "no_rope_layers": [1, 0]},
    "olmo3": WINDOWED,
    "phi3": {"sliding_window": WINDOW},
    "gemma3_text": WINDOWED | {"query_pre_attn_scalar": SIZE},
}


def stand_in() -> None:
    """On a CPU, the formula itself in the place of torch's flash attention: what is passed to it is
    rehearsed, under its own signature.
    """
    real = inspect.signature(varlen.varlen_attn)

    def varlen_attn(
        q: Any,
        k: Any,
        v: Any,
        starts: Any,
        starts_k: Any,
        longest: int,
        longest_k: int,
        **options: Any,
    ) -> torch.Tensor:
        real.bind(q, k, v, starts, starts_k, longest, longest_k, **options)
        out = []
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            queries, keys, values = (states[begin:end].transpose(0, 1) for states in (q, k, v))
            keys, values = (
                states.repeat_interleave(q.shape[1] // k.shape[1], 0) for states in (keys, values)
            )
            behind = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
            left = options["window_size"][0]
            seen = (behind >= 0) & ((behind <= left) if left >= 0 else True)
            out.append(
                functional.scaled_dot_product_attention(
                    queries, keys, values, seen, scale=options["scale"]
                ).transpose(0, 1)
            )
        return torch.cat(out)

    varlen.varlen_attn = varlen_attn  # type: ignore[assignment]


class World:
    """Models and records of all checks."""

    def __init__(self, folder: Path):
        self.folder = folder
        lengths = np.clip(
            np.random.default_rng(1).lognormal(np.log(60), 0.7, (2, 40)), 8, 400
        ).astype(int)
        self.data: list[DomainData] = domains(folder, lengths.tolist(), VOCABULARY)

    def model(self, family: str) -> str:
        path = self.folder / family
        if not path.exists():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(
                AutoConfig.for_model(family, **(SHAPE | OF_FAMILY.get(family, {})))
            ).save_pretrained(path)
        return str(path)

    def trainer(
        self,
        family: str = "llama",
        kind: str | None = None,
        recipe: Recipe = RECIPE,
        training: Training | None = None,
        **more: Any,
    ) -> Trainer:
        """As a run on this device begins: FSDP2 in a world of 1, also on a CPU; bf16 on a GPU."""
        importance = more.pop("importance", None)
        path, kind = self.model(family), kind or ("varlen" if GPU else "sdpa")
        model = with_frozen(load_model(path, attention=kind, empty=True), training or Training(), 0)  # type: ignore[arg-type]
        execution = Execution(**({"parallel": "fsdp", "compile": False} | more))
        one = Trainer(model, self.data, recipe, DEVICE, execution=execution, importance=importance)
        fill(model, path)
        begin_adapters(model, 0)
        return one


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).float().cpu()


def plain(world: World, family: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of the first batch in float32, sample by sample, by transformers' eager
    attention.
    """
    model = AutoModelForCausalLM.from_pretrained(
        world.model(family), dtype=torch.float32, attn_implementation="eager"
    ).to(DEVICE)
    drawn = world.trainer(family, "padded", PLAIN).sampler.next_batch(SHARES)
    total, count = torch.zeros((), device=DEVICE), 0
    for domain, index in zip(*drawn, strict=True):
        tokens, mask = world.data[domain].train[int(index)]
        ids, kept = (
            torch.from_numpy(tokens.astype(np.int64)).to(DEVICE),
            torch.from_numpy(mask[1:].copy()).to(DEVICE),
        )
        nats = functional.cross_entropy(
            model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none"
        )[kept]
        total, count = total + nats.sum(), count + int(kept.sum())
    (total / count).backward()
    return float(total.detach() / count), {
        name: parameter.grad.float().cpu() for name, parameter in model.named_parameters()
    }
