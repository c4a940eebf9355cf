"""Mean embeddings of domains, against a plain pass per record."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from versatune_ray.domains import DomainData
from versatune_ray.training import embeddings
from versatune_ray.training.embeddings import mean_embeddings
from versatune_ray.training.model import load_model


def test_an_embedding_is_the_mean_over_records_of_the_mean_over_tokens(
    tiny_model: Path, data: list[DomainData]
) -> None:
    found = mean_embeddings(load_model(str(tiny_model)), data, seed=0)
    plain = AutoModel.from_pretrained(tiny_model, dtype=torch.float32).eval()
    for row, domain in zip(found, data, strict=True):
        means = []
        for number in range(len(domain.train)):
            tokens = torch.from_numpy(domain.train[number][0].astype(np.int64))[None]
            with torch.no_grad():
                states = plain(input_ids=tokens, output_hidden_states=True).hidden_states
                assert len(states) == 3  # the embedding, and two layers
                means.append(states[1][0].mean(0).numpy())
        np.testing.assert_allclose(row, np.mean(means, axis=0), atol=1e-5)
    few = mean_embeddings(load_model(str(tiny_model)), data, seed=0, records=3)
    assert few.shape == found.shape and not np.allclose(few, found)


def test_the_command_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["embeddings", f"storage={tmp_path}"])
    assert embeddings.main() == 2
    assert capsys.readouterr().err == "error: model.path and domains: name a model and data\n"


def test_the_command_writes_a_file_that_the_start_reads(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model: Path,
    data: list[DomainData],
) -> None:
    monkeypatch.setattr(embeddings, "build_stores", lambda *_, **__: {})
    monkeypatch.setattr(embeddings, "load_domains", lambda *_: {one.name: one for one in data})
    names = [one.name for one in data]
    domains = [f"domains.{name}=x.jsonl" for name in names]
    monkeypatch.setattr(
        sys,
        "argv",
        ["e", f"storage={tmp_path}", "run=r", f"model.path={tiny_model}", "device=cpu", *domains],
    )
    assert embeddings.main() == 0
    file = Path(capsys.readouterr().out.strip())
    assert list(json.loads(file.read_text())) == names
