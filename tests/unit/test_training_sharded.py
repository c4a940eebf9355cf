"""What a GPU run does, on a CPU: FSDP2 also by itself, models that come without weights, layers
compiled and computed again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    Qwen3Config,
)

from versatune_ray.domains import DomainData
from versatune_ray.errors import UserError
from versatune_ray.settings import Lora, Training
from versatune_ray.settings.recipe import Execution, Recipe
from versatune_ray.training.model import begin_adapters, fill, load_model, with_frozen
from versatune_ray.training.trainer import Trainer

RECIPE = Recipe(
    steps=8,
    batch_size=6,
    micro_batch_tokens=40,
    learning_rate=1e-2,
    warmup=0.1,
    weight_decay=0.01,
    max_grad_norm=1.0,
    seed=3,
)
SHARES, CPU = np.array([0.7, 0.3]), torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**SHAPE),
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "phi3": Phi3Config(**SHAPE),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention"] * 2 + ["full_attention"],
    ),
}


pytestmark = pytest.mark.usefixtures("no_group_is_left")


def saved(config: Any, folder: Path) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def sharded(
    path: str, data: list[DomainData], training: Training | None = None, **execution: Any
) -> Trainer:
    """As a GPU run begins: a model without weights, sharded, then filled."""
    training = training or Training()
    model = with_frozen(load_model(path, empty=True), training, 0)
    trainer = Trainer(model, data, RECIPE, CPU, execution=Execution(parallel="fsdp", **execution))
    fill(model, path)
    begin_adapters(model, 0)
    return trainer


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_came_without_weights_trains_as_one_that_was_loaded(
    family: str, data: list[DomainData], tmp_path: Path
) -> None:
    path = saved(FAMILIES[family], tmp_path / "model")
    plain, alone = Trainer(load_model(path), data, RECIPE, CPU), sharded(path, data)
    assert alone.parallel.kind == "fsdp" and plain.parallel.kind == "single"
    for _ in range(3):
        assert alone.step(SHARES) == pytest.approx(plain.step(SHARES), rel=1e-5)
    np.testing.assert_allclose(alone.held_out().nats, plain.held_out().nats, rtol=1e-5)


def test_adapters_begin_and_train_alike_sharded_or_not(
    data: list[DomainData], tmp_path: Path
) -> None:
    path, training = saved(FAMILIES["llama"], tmp_path / "model"), Training(lora=Lora(rank=4))
    plain = Trainer(with_frozen(load_model(path), training, 0), data, RECIPE, CPU)
    alone = sharded(path, data, training)
    for _ in range(3):
        assert alone.step(SHARES) == pytest.approx(plain.step(SHARES), rel=1e-5)


def test_frozen_weights_of_a_bf16_run_are_kept_in_bf16_and_what_trains_in_float32(
    data: list[DomainData], tmp_path: Path
) -> None:
    path = saved(FAMILIES["llama"], tmp_path / "model")
    exact = sharded(path, data, Training(lora=Lora(rank=4)))
    half = sharded(path, data, Training(lora=Lora(rank=4)), precision="bf16")
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in half.model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    for _ in range(3):
        assert half.step(SHARES) == pytest.approx(exact.step(SHARES), rel=0.02)


@pytest.mark.parametrize("recomputed", ["full", "every 2"])
def test_computing_again_changes_no_number(
    recomputed: str, data: list[DomainData], tmp_path: Path
) -> None:
    path = saved(FAMILIES["llama"], tmp_path / "model")
    plain, again = sharded(path, data), sharded(path, data, activation_checkpointing=recomputed)
    calls: list[int] = []
    for number, layer in enumerate(again.model.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: calls.append(number))
    assert again.step(SHARES) == plain.step(SHARES)
    batches = calls.count(1) if recomputed == "every 2" else calls.count(1) // 2
    assert [calls.count(number) for number in range(3)] == (
        [2 * batches] * 3 if recomputed == "full" else [2 * batches, batches, 2 * batches]
    )
    assert again.step(SHARES) == plain.step(SHARES)


@pytest.mark.compiler
@pytest.mark.parametrize("recomputed", ["full", pytest.param("none", marks=pytest.mark.slow)])
def test_compiled_layers_are_compiled_once_for_all_shapes(
    recomputed: str, backend: str, data: list[DomainData], tmp_path: Path
) -> None:
    """More layers than torch compiles anew before it gives up, rows of all lengths, no compilation
    after the first steps.
    """
    layers = 3 if backend == "eager" else 12
    path = saved(LlamaConfig(**(SHAPE | {"num_hidden_layers": layers})), tmp_path / "model")
    torch._dynamo.utils.counters.clear()
    plain, compiled = (
        sharded(path, data),
        sharded(path, data, compile=True, activation_checkpointing=recomputed),
    )
    for _ in range(2):
        assert compiled.step(SHARES) == pytest.approx(plain.step(SHARES), rel=1e-4)
    compiled.held_out()
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] <= layers and not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in range(5):
            assert compiled.step(SHARES) == pytest.approx(plain.step(SHARES), rel=1e-4)
        compiled.held_out()


def test_a_folder_without_this_models_weights_is_refused(
    data: list[DomainData], tmp_path: Path
) -> None:
    path = saved(FAMILIES["llama"], tmp_path / "model")
    for change, told in (
        (
            {"num_hidden_layers": 4},
            r"no model\.layers\.3\..* in its \.safetensors; are they of this config\.json\?",
        ),
        (
            {"hidden_size": 64, "head_dim": 8},
            r"embed_tokens\.weight is \[64, 32\] in its \.safetensors and \[64, 64\] by its config",
        ),
    ):
        other = saved(LlamaConfig(**(SHAPE | change)), tmp_path / "other")
        trainer = sharded(other, data)
        with pytest.raises(UserError, match=told):
            fill(trainer.model, path)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model: no \.safetensors in it"):
        fill(trainer.model, path)


def test_gradients_of_every_micro_batch_are_reduced_unless_that_is_turned_off(
    data: list[DomainData], tmp_path: Path
) -> None:
    path = saved(FAMILIES["llama"], tmp_path / "model")
    each, once = sharded(path, data), sharded(path, data, no_sync=True)
    kept: dict[bool, list[bool]] = {False: [], True: []}
    for one in (each, once):
        of_layer = one.parallel.module.model.model.layers[0].mlp.up_proj.weight

        def note(module: Any, inputs: Any, weight: Any = of_layer, trainer: Trainer = one) -> None:
            kept[trainer.parallel.no_sync].append(weight.grad is not None)

        one.parallel.module.register_forward_pre_hook(note)
        one.step(SHARES)
    # before each of three micro-batches: a sharded gradient of earlier ones
    assert kept == {False: [False, True, True], True: [False] * 3}
    assert once.step(SHARES) == pytest.approx(each.step(SHARES), rel=1e-6)
