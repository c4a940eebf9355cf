"""Models that are refused before they train: other families, settings that would be lost, weights
in eight bits, code of their own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_llama
from transformers import AutoConfig

from versatune_ray.errors import UserError
from versatune_ray.training.families import check_positions
from versatune_ray.training.model import fill, load_model


def test_other_families_and_settings_that_would_be_lost_are_refused_in_one_line(
    tmp_path: Path,
) -> None:
    listed = "Llama, Qwen2, Qwen2.5, Qwen3, Mistral, SmolLM3, OLMo 2, OLMo 3, Phi-3, Phi-4, Gemma 3"
    for number, (kind, change, told) in enumerate(
        (
            (
                "mixtral",
                {},
                f"models of the type 'mixtral' cannot be fine-tuned here; those of {listed}",
            ),
            ("qwen3_moe", {}, "models of the type 'qwen3_moe' cannot"),
            ("gpt2", {}, "models of the type 'gpt2' cannot"),
            (
                "gemma3_text",
                {"attn_logit_softcapping": 50.0},
                "attn_logit_softcapping=50.0 in its config.json is not supported",
            ),
            (
                "gemma3_text",
                {"final_logit_softcapping": 30.0},
                "final_logit_softcapping=30.0 in its config.json is not supported",
            ),
            (
                "llama",
                {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
                "rope_type=dynamic in its config.json",
            ),
            (
                "qwen3",
                {"quantization_config": {"quant_method": "fp8"}},
                "is quantised (fp8); fine-tuning needs the original weights",
            ),
        )
    ):
        AutoConfig.for_model(kind, **change).save_pretrained(tmp_path / str(number))
        with pytest.raises(UserError, match=re.escape(told)):
            load_model(str(tmp_path / str(number)))


def test_weights_stored_in_eight_bits_are_refused_and_not_read_as_numbers(tmp_path: Path) -> None:
    random_llama(tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.0.mlp.up_proj.weight"
    weights = load_file(file)
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, file)
    empty = load_model(str(tmp_path), empty=True).to_empty(device="cpu")
    with pytest.raises(UserError, match=f"{name} is stored as torch.float8_e4m3fn: quantised"):
        fill(empty, str(tmp_path))


def test_code_that_comes_with_a_model_does_not_train(tmp_path: Path) -> None:
    random_llama(tmp_path)
    (tmp_path / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig): pass\n"
        "class Own(LlamaForCausalLM): config_class = Config\n"
    )
    known = json.loads((tmp_path / "config.json").read_text())
    known["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Own"}
    (tmp_path / "config.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"brings code of its own \(Own\).*trust_remote_code"):
        load_model(str(tmp_path), trust_remote_code=True)
    assert type(load_model(str(tmp_path))).__name__ == "LlamaForCausalLM"


def test_a_long_sample_must_not_move_the_positions_of_its_neighbours() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    shape = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 131_072}
    config = AutoConfig.for_model("phi3", **shape, pad_token_id=0, rope_parameters=rope)
    check_positions(config, 4096, "phi")
    with pytest.raises(UserError, match=r"^phi: rope_type=longrope .* 4,096 .* 5,000; write data"):
        check_positions(config, 5000, "phi")
    check_positions(AutoConfig.for_model("llama"), 5000, "llama")
