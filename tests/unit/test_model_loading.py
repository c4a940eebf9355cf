"""A base model that cannot be loaded is told in one line, and none is unpickled."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from versatune_ray.errors import UserError
from versatune_ray.runtime import models
from versatune_ray.runtime.models import check_weights, model_fingerprint
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


def test_weights_are_read_once_for_all_jobs_until_they_change(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, reads = tmp_path / "cache", []
    opened = Path.open

    def noting(path: Path, *mode: Any, **more: Any) -> Any:
        reads.append(path.name)
        return opened(path, *mode, **more)

    monkeypatch.setattr(Path, "open", noting)

    def fingerprint() -> str:
        models._digest.cache_clear()  # another process
        reads.clear()
        return model_fingerprint(str(base), cache)

    for file in base.iterdir():
        file.touch()
    new = fingerprint()  # changed a moment ago, so it is not remembered yet
    assert "model.safetensors" in reads and not cache.exists()
    for file in base.iterdir():
        os.utime(file, ns=(10**18, 10**18))
    assert fingerprint() == new == model_fingerprint(str(base)) and "model.safetensors" in reads
    assert fingerprint() == new and "model.safetensors" not in reads
    change(base, vocab_size=80)
    assert fingerprint() != new
    for kept in (cache / "fingerprints").iterdir():
        kept.write_text("{")
    assert "model.safetensors" in reads
