"""Rates by hand, what decays and what does not, and the precisions of AdamW: the same losses, exact
resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from versatune_ray.domains import DomainData
from versatune_ray.settings import Lora, Training
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.checkpoint import Checkpoints
from versatune_ray.training.model import load_model, with_frozen
from versatune_ray.training.optimizer import STATE_BYTES, build, learning_rate
from versatune_ray.training.trainer import Trainer

RECIPE = Recipe(
    steps=10,
    batch_size=6,
    micro_batch_tokens=200,
    learning_rate=1e-2,
    warmup=0.0,
    weight_decay=0.1,
    max_grad_norm=1.0,
    seed=3,
)
SHARES, CPU = np.array([0.5, 0.5]), torch.device("cpu")


pytestmark = pytest.mark.usefixtures("no_group_is_left")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Matrices of 64 × 64 and more, so that their moments are quantised: torchao leaves fewer than
    4,096 numbers alone.
    """
    folder = tmp_path_factory.mktemp("models") / "wide"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schedule": "constant", "warmup": 0.25}, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ({"schedule": "linear", "min_lr_ratio": 0.2}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]),
        (
            {"schedule": "wsd", "decay": 0.5, "warmup": 0.125},
            [1 / 2, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4],
        ),
        (
            {"schedule": "cosine", "scheduled": 16},
            [(1 + np.cos(np.pi * step / 16)) / 2 for step in range(8)],
        ),
        (
            {"schedule": "cosine", "min_lr_ratio": 0.5},
            [0.75 + 0.25 * np.cos(np.pi * step / 8) for step in range(8)],
        ),
        ({"schedule": "wsd", "decay": 1.0}, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
    ],
)
def test_rates_by_hand(change: dict[str, Any], expected: list[float]) -> None:
    recipe = replace(RECIPE, steps=8, **change)
    np.testing.assert_allclose(
        [learning_rate(recipe, step) for step in range(8)], np.array(expected) * 1e-2
    )


def test_the_first_step_moves_the_weights(wide: str, data: list[DomainData]) -> None:
    trainer = Trainer(load_model(wide), data, replace(RECIPE, warmup=0.5), CPU)
    before = trainer.model.get_output_embeddings().weight.clone()
    trainer.step(SHARES)
    assert not torch.equal(before, trainer.model.get_output_embeddings().weight)


@pytest.mark.parametrize("tied", [True, False])
def test_norms_biases_and_embeddings_do_not_decay(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, attention_bias=True,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    decayed = {
        id(one)
        for group in build(model, RECIPE).param_groups
        if group["weight_decay"]
        for one in group["params"]
    }
    kept = {name for name, parameter in model.named_parameters() if id(parameter) not in decayed}
    assert kept == {
        "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        *(f"model.layers.0.self_attn.{name}_proj.bias" for name in "qkvo"),
    }  # fmt: skip


def test_adapters_decay() -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    model = with_frozen(AutoModelForCausalLM.from_config(config), Training(lora=Lora(rank=2)), 0)
    (group,) = build(model, RECIPE).param_groups
    assert group["weight_decay"] == 0.1 and len(group["params"]) == 2 * 7


def test_the_settings_of_adamw_are_its_own(wide: str) -> None:
    (group, _) = build(load_model(wide), replace(RECIPE, betas=(0.8, 0.95), eps=1e-6)).param_groups
    assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-6)


@pytest.fixture(params=["force_eager", pytest.param("default", marks=pytest.mark.slow)])
def stance(request: pytest.FixtureRequest) -> Iterator[None]:
    """torchao compiles its step anew for matrices of every shape, to the same numbers."""
    with torch.compiler.set_stance(request.param):
        yield


@pytest.mark.parametrize("execution", [Execution(), Execution(parallel="fsdp")])
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "adamw_bf16"])
@pytest.mark.usefixtures("stance")
def test_fewer_bits_train_alike_and_resume_bit_for_bit(
    optimizer: Any, execution: Execution, wide: str, data: list[DomainData], tmp_path: Path
) -> None:
    exact = Trainer(load_model(wide), data, RECIPE, CPU)
    recipe = replace(RECIPE, optimizer=optimizer)
    whole, saved = (
        Trainer(load_model(wide), data, recipe, CPU, execution=execution),
        tmp_path / "saved",
    )
    torch.manual_seed(0)
    for step in range(6):
        assert whole.step(SHARES) == pytest.approx(exact.step(SHARES), rel=0.02)
        if step == 2:
            Checkpoints(whole).save(saved).result()
    again = Trainer(load_model(wide), data, recipe, CPU, execution=execution)
    Checkpoints(again).load(saved)
    for _ in range(3):
        again.step(SHARES)
    if optimizer == "adamw_8bit":  # as another number of ranks reads it: not to the bit, but near
        (saved / "moments-00000.safetensors").unlink()
        other = Trainer(load_model(wide), data, recipe, CPU, execution=execution)
        Checkpoints(other).load(saved)
        assert [other.step(SHARES) for _ in range(3)][-1] == pytest.approx(
            again.last.loss, rel=1e-3
        )  # type: ignore[union-attr]
    for one, other in zip(
        whole.model.state_dict().values(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(_plain(one), _plain(other))
    assert {file.suffix for file in saved.iterdir()} == {".json", ".safetensors"}


def _plain(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@pytest.mark.usefixtures("stance")
def test_the_bytes_of_the_moments_are_counted_right(wide: str, data: list[DomainData]) -> None:
    """Of one 64 × 128 matrix: float32 twice; or a byte each and four for every 256, twice; or bf16
    twice.
    """
    for optimizer, expected in (
        ("adamw", 8 * 8192),
        ("adamw_8bit", 2 * (8192 + 4 * 32)),
        ("adamw_bf16", 4 * 8192),
    ):
        trainer = Trainer(load_model(wide), data, replace(RECIPE, optimizer=optimizer), CPU)
        trainer.step(SHARES)
        state = trainer.optimizer.state[trainer.model.model.layers[0].mlp.up_proj.weight]
        parts = [
            getattr(moment, "codes", moment) for moment in (state["exp_avg"], state["exp_avg_sq"])
        ]
        parts += [
            moment.scale
            for moment in (state["exp_avg"], state["exp_avg_sq"])
            if hasattr(moment, "scale")
        ]
        assert (
            sum(part.numel() * part.element_size() for part in parts)
            == expected
            == STATE_BYTES[optimizer] * 8192
        )
