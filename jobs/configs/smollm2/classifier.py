"""A judge of one's own where there is none: the first layers of a language model with a head, tuned
on labelled raw text. The texts that ``base.held_out`` keeps to measure judges are left out.

usage: python classifier.py --config smollm2.yaml --save FOLDER [key=value …]
then:  python jobs/detect.py --config smollm2.yaml detection.judge.kind=classifier
       detection.judge.path=FOLDER
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from versatune_ray.cli import exits_on_error, job_parser, parse, read_config
from versatune_ray.domains.labelled import text_hash
from versatune_ray.domains.readers import read_texts
from versatune_ray.errors import UserError
from versatune_ray.runtime.gguf import with_folders
from versatune_ray.settings import Config

LAYERS, PIECES, BATCH, TOKENS, CHARACTERS = 6, 2_400, 32, 96, 384


def pieces(config: Config, rng: np.random.Generator) -> list[tuple[str, int]]:
    """As many from each domain, beginning anywhere in a text, as what a model writes does.

    Raises:
        UserError: a domain has no texts to learn from.
    """
    below, found = int(config.base.held_out * 2.0**64), []
    for label, name in enumerate(config.domains):
        source = read_texts(config.base.corpora.get(name, []), f"base.corpora.{name}")
        texts = [text for _, text in source if text_hash(text) >= below]
        if not texts:
            raise UserError(f"base.corpora.{name}: no texts beside those that base.held_out keeps")
        for _ in range(PIECES // len(config.domains)):
            text = texts[rng.integers(len(texts))]
            start = int(rng.integers(max(1, len(text) - CHARACTERS)))
            found.append((text[start : start + CHARACTERS], label))
    return [found[place] for place in rng.permutation(len(found))]


def tune(config: Config, folder: Path) -> None:
    """Tune a judge of the configuration's domains, and save it in ``folder``.

    Raises:
        UserError: no domains or no model, or as ``pieces``.
    """
    if config.model.path is None or not config.domains:
        raise UserError("model.path and domains: name a model and domains with base.corpora")
    rows = pieces(config, np.random.default_rng(config.seed))
    torch.manual_seed(config.seed)
    names = list(config.domains)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        config.model.path,
        num_hidden_layers=LAYERS,
        dtype=torch.float32,
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.get_input_embeddings().requires_grad_(False)
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
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = job_parser(__doc__)
    parser.add_argument("--save", type=Path, required=True, metavar="FOLDER", help="for the judge")
    asked = parse(parser)
    with exits_on_error(asked.debug):
        tune(with_folders(read_config(asked)), asked.save)


if __name__ == "__main__":
    main()
