"""A judge of one's own where there is none: the first layers of a language model with a head, tuned
on labelled raw text. The texts that ``base.held_out`` keeps to measure judges are left out.

usage: python classifier.py --config smollm2.yaml FOLDER [key=value …]
then:  python jobs/detect.py --config smollm2.yaml detection.judge.kind=classifier
       detection.judge.path=FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from versatune_ray.domains.labelled import text_hash
from versatune_ray.domains.readers import read_texts
from versatune_ray.runtime.gguf import with_folders
from versatune_ray.settings import Config
from versatune_ray.settings.loading import load

LAYERS, PIECES, BATCH, TOKENS, CHARACTERS = 6, 2_400, 32, 96, 384


def pieces(config: Config, rng: np.random.Generator) -> list[tuple[str, int]]:
    """As many from each domain, beginning anywhere in a text, as what a model writes does."""
    below, found = int(config.base.held_out * 2.0**64), []
    for label, name in enumerate(config.domains):
        source = read_texts(config.base.corpora[name], f"base.corpora.{name}")
        texts = [text for _, text in source if text_hash(text) >= below]
        for _ in range(PIECES // len(config.domains)):
            text = texts[rng.integers(len(texts))]
            start = int(rng.integers(max(1, len(text) - CHARACTERS)))
            found.append((text[start : start + CHARACTERS], label))
    return [found[place] for place in rng.permutation(len(found))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*")
    asked = parser.parse_args()
    config = with_folders(load(asked.config, asked.overrides))
    torch.manual_seed(config.seed)
    names = list(config.domains)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    model = AutoModelForSequenceClassification.from_pretrained(
        config.model.path,
        num_hidden_layers=LAYERS,
        dtype=torch.float32,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.get_input_embeddings().requires_grad_(False)
    rows = pieces(config, np.random.default_rng(config.seed))
    steps = len(rows) // BATCH
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 2e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-4, total_steps=steps)
    for step in range(steps):
        texts, labels = zip(*rows[step * BATCH : (step + 1) * BATCH], strict=True)
        tokens = tokenizer(
            list(texts), truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
        )
        loss = model(**tokens, labels=torch.tensor(labels)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1} of {steps}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(asked.folder)
    tokenizer.save_pretrained(asked.folder)


if __name__ == "__main__":
    main()
