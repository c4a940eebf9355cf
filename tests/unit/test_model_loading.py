"""A base model that cannot be loaded is told in one line, and none is unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from versatune_ray.errors import UserError
from versatune_ray.runtime.models import check_weights
from versatune_ray.training.model import load_model


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def change(base: Path, **settings: Any) -> None:
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refused(base: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_model(str(base))
    assert "\n" not in str(caught.value) and str(base) in str(caught.value)


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes"])
def test_a_quantised_base_is_refused_by_name(base: Path, method: str) -> None:
    change(base, quantization_config={"quant_method": method, "bits": 4, "group_size": 128})
    refused(base, rf"is quantised \({method}\); fine-tuning needs the original weights")


def test_weights_that_do_not_fit_are_told(base: Path) -> None:
    change(base, vocab_size=80)
    refused(base, r"its weights have other shapes than its config\.json says")


@pytest.mark.parametrize("kept", [0, 5, 5000])
def test_cut_weights_are_told(base: Path, kept: int) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(base, "cannot be loaded as a causal language model")


class Bomb:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_weights_in_a_pickle_are_not_read(base: Path) -> None:
    (base / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, base / "pytorch_model.bin")
    refused(base, "cannot be loaded as a causal language model")
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(base / "boom")))
    refused(base, "cannot be loaded as a causal language model")
    assert not (base / "boom").exists()
    with pytest.raises(UserError, match=r"no \.safetensors file"):
        check_weights(str(base))
