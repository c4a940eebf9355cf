"""What an exported model stops at, and adapters that would make another model of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from versatune_ray.detection.generate import start_token
from versatune_ray.detection.prompt import DEFAULT_PROMPT, render
from versatune_ray.errors import UserError
from versatune_ray.settings import Lora, Training
from versatune_ray.training.export import export
from versatune_ray.training.model import load_model, with_frozen


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
