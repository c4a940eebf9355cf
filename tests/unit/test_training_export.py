"""What is exported: the weights that were trained, in which precision, and where the model stops;
adapters that would make another model of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from short_recipe import RECIPE
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from versatune_ray.detection.generate import start_token
from versatune_ray.detection.prompt import DEFAULT_PROMPT, render
from versatune_ray.domains import DomainData
from versatune_ray.errors import UserError
from versatune_ray.settings import Lora, Training
from versatune_ray.training.checkpoint import Checkpoints
from versatune_ray.training.export import export
from versatune_ray.training.model import load_model, with_frozen
from versatune_ray.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        (None, None, [7]),
        (None, [2, 7], [2, 7]),
        ("merged", 2, [7, 2]),
        ("adapter", [2, 3], [7, 2, 3]),
    ],
)
def test_an_exported_model_stops_at_the_end_of_a_turn(
    tiny_model: Path, tmp_path: Path, kind: Any, before: Any, after: list[int]
) -> None:
    training = Training() if kind is None else Training(lora=Lora(rank=2, export=kind))
    model = with_frozen(load_model(str(tiny_model)), training, 0)
    loaded = model if kind is None else model.get_base_model()  # type: ignore[operator]
    base = tmp_path / "base"
    loaded.generation_config = GenerationConfig(eos_token_id=before, max_new_tokens=9)
    load_model(str(tiny_model)).save_pretrained(base)
    loaded.generation_config.save_pretrained(base)
    weights = {
        name: values for name, values in model.state_dict().items() if not kind or "lora_" in name
    }
    export(model, weights, tmp_path / "out", str(base), False, training, 7)
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (found["eos_token_id"], found["max_new_tokens"]) == (after, 9)


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"], ["embed_tokens"]])
def test_embeddings_and_the_head_take_no_adapter(tiny_model: Path, targets: list[str]) -> None:
    with pytest.raises(UserError, match=r"training\.lora\.targets: the (in|out)put embedding"):
        with_frozen(load_model(str(tiny_model)), Training(lora=Lora(rank=2, targets=targets)), 0)


def test_a_sequence_begins_with_something(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "bos_token_id": null}')
    with pytest.raises(UserError, match="neither BOS nor EOS; nothing to begin"):
        start_token(str(tmp_path), "bos", False)
    with pytest.raises(UserError, match="no EOS; nothing to begin"):
        start_token(str(tmp_path), "eos", False)
    tokenizer.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(UserError, match="chat templates rag, tool_use, and none called default"):
        render(tokenizer, DEFAULT_PROMPT)


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_lora_trains_few_weights_and_exports_what_it_trained(
    tiny_model: Path, data: list[DomainData], tmp_path: Path, kind: Any
) -> None:
    settings = Lora(rank=4, export=kind)
    trainer = Trainer(
        with_frozen(load_model(str(tiny_model)), Training(lora=settings), 0), data, RECIPE, CPU
    )
    trained = sum(
        parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad
    )
    # q, k, v, o: 4·(32+32)·4; gate, up, down: 3·(32+64)·4, in two layers.
    assert trained == 2 * (4 * 64 * 4 + 3 * 96 * 4)
    before = trainer.held_out().nats.sum()
    for _ in range(4):
        trainer.step(np.array([0.5, 0.5]))
    after = trainer.held_out().nats
    assert after.sum() < before
    export(
        trainer.model,
        Checkpoints(trainer).weights(),
        tmp_path / "out",
        str(tiny_model),
        False,
        Training(lora=settings),
    )
    if kind == "adapter":
        from peft import PeftModel

        loaded = (
            PeftModel.from_pretrained(
                AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "out"
            )
            .merge_and_unload()
            .requires_grad_(True)
        )
        assert not (tmp_path / "out" / "model.safetensors").exists()
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 64
    np.testing.assert_allclose(Trainer(loaded, data, RECIPE, CPU).held_out().nats, after, rtol=1e-5)


def test_unknown_lora_targets_are_told(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"training\.lora\.targets: .*q_porj"):
        with_frozen(load_model(str(tiny_model)), Training(lora=Lora(rank=4, targets=["q_porj"])), 0)


def test_a_full_model_is_exported_in_the_precision_of_its_base(
    tiny_model: Path, data: list[DomainData], tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(
        tmp_path / "base"
    )
    trainer = Trainer(load_model(str(tmp_path / "base")), data, RECIPE, CPU)
    assert next(trainer.model.parameters()).dtype == torch.float32
    trainer.step(np.array([0.5, 0.5]))
    export(
        trainer.model,
        Checkpoints(trainer).weights(),
        tmp_path / "out",
        str(tmp_path / "base"),
        False,
        Training(),
    )
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert tuned.dtype == torch.bfloat16
    for name, values in trainer.model.state_dict().items():
        assert torch.equal(values.to(torch.bfloat16), tuned.state_dict()[name])


def test_a_tied_head_is_exported_once(tiny_model: Path, tmp_path: Path) -> None:
    """Also where the weights come from a sharded model, in which the two names are tensors of their
    own.
    """
    model = load_model(str(tiny_model))
    weights = {name: values.clone() for name, values in model.state_dict().items()}
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= weights.keys()
    export(model, weights, tmp_path / "out", str(tiny_model), False, Training())
    assert (
        load_file(tmp_path / "out" / "model.safetensors").keys()
        == load_file(tiny_model / "model.safetensors").keys()
    )
