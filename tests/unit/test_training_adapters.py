"""What is exported as an adapter is measured as the model that it makes of its base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from versatune_ray.errors import UserError
from versatune_ray.settings import Lora, Training
from versatune_ray.training.adapters import whole_model
from versatune_ray.training.export import export
from versatune_ray.training.model import load_model, with_frozen


def test_an_adapter_is_merged_into_its_base_once(tiny_model: Path, tmp_path: Path) -> None:
    training = Training(lora=Lora(rank=2, alpha=6, export="adapter"))
    model = with_frozen(load_model(str(tiny_model)), training, 0)
    weights = {name: torch.randn_like(one) for name, one in model.state_dict().items()}
    weights = {name: one for name, one in weights.items() if ".lora_" in name}
    adapter, cache = tmp_path / "adapter", tmp_path / "cache"
    export(model, weights, adapter, str(tiny_model), False, training)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(adapter)
    whole = whole_model(str(adapter), cache, False)
    assert whole_model(str(adapter), cache, False) == whole
    assert whole_model(str(tiny_model), cache, False) == str(tiny_model)
    assert AutoTokenizer.from_pretrained(whole).eos_token == "</s>"
    base = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    for name, found in AutoModelForCausalLM.from_pretrained(whole).named_parameters():
        a, b = (
            weights.get(f"base_model.model.{name.removesuffix('weight')}lora_{x}.default.weight")
            for x in "AB"
        )
        added = 0.0 if a is None or b is None else 3.0 * b @ a  # alpha / rank = 3
        torch.testing.assert_close(found, base[name] + added, rtol=1e-5, atol=1e-5)


def test_an_adapter_without_its_base_is_told(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/base"}')
    with pytest.raises(UserError, match=rf"^{tmp_path}: an adapter for another model: /gone/base"):
        whole_model(str(tmp_path), tmp_path / "cache", False)
