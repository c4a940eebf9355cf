"""The estimate of memory against what a step really takes, and against arithmetic by hand; and what
is said where it will not fit.
"""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_store
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from versatune_ray.domains import DomainData, DomainPaths, load_domains
from versatune_ray.errors import UserError
from versatune_ray.settings import Config, Data
from versatune_ray.settings.loading import parse
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.budget import check_room, needed, outlook
from versatune_ray.training.memory import GIB
from versatune_ray.training.model import load_model, with_frozen
from versatune_ray.training.trainer import Trainer

CPU, TOKENS, LENGTH = torch.device("cpu"), 512, 128
SHAPE = {
    "vocab_size": 2000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
MODELS = {
    "llama": LlamaConfig(**SHAPE),
    "qwen3, tied": Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True),
}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 8}},
    "recomputing": {"activation_checkpointing": "full"},
    "recomputing every second layer": {"activation_checkpointing": "every 2"},
    "8 bits": {"optimizer": "adamw_8bit"},
}


def settings(path: str, training: dict[str, Any]) -> Config:
    domains = dict.fromkeys(("one", "two"), "x.jsonl")
    return parse(
        {
            "model": {"path": path},
            "domains": domains,
            "data": {"max_length": TOKENS},
            "training": training,
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[DomainData]:
    folder, rng = tmp_path_factory.mktemp("stores"), np.random.default_rng(0)

    def store(name: str, count: int) -> Path:
        return write_store(
            folder / name, [(rng.integers(0, 2000, LENGTH).tolist(), 1) for _ in range(count)]
        )

    paths = {name: DomainPaths(store(name, 12), store(f"{name}-v", 2)) for name in ("one", "two")}
    return list(load_domains(paths, Data()).values())


def measured(path: str, training: Any, data: list[DomainData]) -> int:
    """Bytes of parameters and optimizer, and the most that a later step allocates on top, by
    torch's own profiler.
    """
    recipe = Recipe(
        10,
        8,
        TOKENS,
        learning_rate=1e-3,
        warmup=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=0,
        optimizer=training.optimizer,
    )
    trainer = Trainer(
        with_frozen(load_model(path), training, 0),
        data,
        recipe,
        CPU,
        execution=Execution.of(training),
    )
    trainer.step(np.array([0.5, 0.5]))
    kept = [*trainer.model.parameters()]
    for state in trainer.optimizer.state.values():
        for moment in state.values():
            kept += [moment.codes, moment.scale] if hasattr(moment, "codes") else [moment]
    gc.collect()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        trainer.step(np.array([0.5, 0.5]))
    events = sorted(
        (one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"),
        key=lambda one: one.start_ns(),
    )
    above = int(np.cumsum([one.nbytes() for one in events]).max())
    return above + sum(tensor.numel() * tensor.element_size() for tensor in kept)


# what torchao compiles for matrices of every shape anew is a drill of its own
@pytest.mark.parametrize("stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in MODELS for way in WAYS if (name, way) != ("llama", "8 bits")],
)
def test_the_estimate_is_near_what_a_step_takes(
    name: str, way: str, stance: str, data: list[DomainData], tmp_path: Path
) -> None:
    """Two micro-batches a step, each four samples of 128 tokens."""
    AutoModelForCausalLM.from_config(MODELS[name]).save_pretrained(tmp_path / "model")
    config = settings(str(tmp_path / "model"), WAYS[way] | {"micro_batch_tokens": TOKENS})
    estimated = needed(config, str(tmp_path / "model"), config.training, 1, "cpu").total
    with torch.compiler.set_stance(stance):
        found = measured(str(tmp_path / "model"), config.training, data)
    assert estimated == pytest.approx(found, rel=0.15)


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shape of Qwen2.5-7B, without weights."""
    folder = tmp_path_factory.mktemp("models") / "7b"
    Qwen2Config(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4,
        tie_word_embeddings=False, architectures=["Qwen2ForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


@pytest.fixture
def nothing_rehearsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """To rehearse 28 layers takes seconds, and what is kept all along does not follow from it."""

    def rehearsed(model: Any, execution: Execution, *_: Any) -> int:
        return (16 if execution.activation_checkpointing == "none" else 2) * GIB

    monkeypatch.setattr("versatune_ray.training.memory._rehearsed", rehearsed)


@pytest.mark.usefixtures("nothing_rehearsed")
def test_what_is_kept_of_7b_by_hand(seven: str) -> None:
    """7,615,616,512 parameters by its model card: 4 bytes of weights, 4 of gradients, 8 of moments,
    over the workers that share them.
    """
    count = 7_615_616_512
    for workers, training, sizes in (
        (1, {}, (4, 4, 8)),
        (8, {}, (4 / 8, 4 / 8, 8 / 8)),
        (8, {"workers": 8, "shard_over": 4}, (4 / 4, 4 / 4, 8 / 4)),
        (1, {"optimizer": "adamw_8bit"}, (4, 4, 2 + 2 / 64)),
        (1, {"optimizer": "adamw_bf16"}, (2, 2, 4)),
        (1, {"parallel": "fsdp", "cpu_offload": True}, (0, 0, 0)),
    ):
        config = settings(seven, training)
        found = needed(config, seven, config.training, workers, "cuda")
        assert (found.weights, found.gradients, found.optimizer) == pytest.approx(
            [size * count for size in sizes]
        )
    # LoRA of rank 16 on all 7 projections of 28 layers: rank times the sum of both sides of each.
    sides = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18_944)
    config = settings(seven, {"lora": {"rank": 16}})
    found = needed(config, seven, config.training, 1, "cuda")
    assert (
        found.optimizer == 8 * 16 * 28 * sides and found.weights == 2 * count + 4 * 16 * 28 * sides
    )


def test_compiled_layers_keep_less_than_eager_ones(seven: str) -> None:
    """Of 8,192 tokens through 28 layers at least q, k, v, what attention gives, gate and up in
    bf16; eager ones twice that and more.
    """
    kept = 28 * 8192 * 2 * (3584 + 2 * 512 + 3584 + 2 * 18_944)
    eager, compiled = (
        needed(config, seven, config.training, 8, "cuda").activations
        for config in (settings(seven, {"compile": False}), settings(seven, {"compile": True}))
    )
    assert kept < compiled < 1.5 * kept < eager


@pytest.mark.parametrize(
    ("workers", "training", "fits"),
    [
        (1, {}, False),
        (8, {}, True),
        (
            1,
            {
                "optimizer": "adamw_bf16",
                "activation_checkpointing": "full",
                "micro_batch_tokens": 4096,
            },
            True,
        ),
        pytest.param(
            1,
            {"optimizer": "adamw_8bit", "activation_checkpointing": "full"},
            False,
            marks=pytest.mark.slow,
        ),
        pytest.param(1, {"lora": {"rank": 16}}, True, marks=pytest.mark.slow),
    ],
)
def test_what_fits_on_cards_of_80_gb(
    workers: int, training: dict[str, Any], fits: bool, seven: str
) -> None:
    config = settings(seven, training)
    card = 79.1 - 1.5  # an H100's, less what CUDA takes
    assert (needed(config, seven, config.training, workers, "cuda").total < card * GIB) == fits


@pytest.mark.usefixtures("nothing_rehearsed")
def test_a_run_that_will_not_fit_is_refused_in_a_line_that_says_what_would(
    seven: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("versatune_ray.training.budget.room_on", lambda device: 77.0 * GIB)
    with pytest.raises(UserError) as refused:
        check_room(settings(seven, {}), seven, 1, torch.device("cuda"))
    told = str(refused.value)
    assert re.match(
        r"training: each worker needs 1[0-9]{2}\.[0-9] GiB \(weights 28\.4, gradients 28\.4, "
        r"optimizer 56\.7, ",
        told,
    )
    assert "there are 77.0 GiB for it" in told and "\n" not in told
    assert (
        "training.optimizer=adamw_bf16" in told
        and "training.lora.rank=16" in told
        and "training.workers=4" in told
    )
    check_room(settings(seven, {"lora": {"rank": 16}}), seven, 1, torch.device("cuda"))


def test_the_plan_says_steps_tokens_memory_and_time(data: list[DomainData], tmp_path: Path) -> None:
    """24 records of 128 tokens, one of them prompt: 3 epochs in batches of 8 are 9 steps, 72
    samples, 9,216 tokens.
    """
    AutoModelForCausalLM.from_config(MODELS["llama"]).save_pretrained(tmp_path / "model")
    config = settings(str(tmp_path / "model"), {"epochs": 3, "batch_size": 8, "workers": 1})
    text = outlook(config, str(tmp_path / "model"), {domain.name: domain for domain in data})
    assert "records (train+held out): one 12+2, two 12+2" in text
    assert "9 steps of 8 samples, an adjustment every 3" in text
    assert "72 samples, about 9,216 tokens (9,144 of them in responses)" in text
    assert (
        "memory of each worker's process: 0." in text
        and "fits: " in text
        and "% of what a matrix product reaches" in text
    )
    assert "records are not read yet" in outlook(config, str(tmp_path / "model"), None)
