"""Pre-train a tiny base model with a known mixture, and a tiny judge, from any labelled texts:
minutes on two cores.

Both are ordinary Hugging Face folders; nothing downstream knows that they are tiny. Every training
row starts with BOS and the mixture counts rows: what detection from BOS can recover is the
distribution of sequences that begin with BOS.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from versatune_ray.detection.prompt import LETTERS, TINY_JUDGE_PROMPT, Question, answer_ids, render
from versatune_ray.errors import UserError
from versatune_ray.mixture import DomainSampler
from versatune_ray.settings import Base

Rows = list[NDArray[np.int32]]
Batch = tuple[torch.Tensor, torch.Tensor]  # token ids and labels, int64 [rows, longest]
Progress = Callable[[int, int, float], None]  # step, steps, loss

SPECIAL = ("<s>", "</s>", "<pad>")


def build_base(
    settings: Base,
    texts: Mapping[str, Sequence[str]],
    mixture: NDArray[np.float64],
    seed: int,
    folder: Path,
    progress: Progress,
) -> None:
    """Pre-train the base model into ``folder``, with its known mixture in
    ``folder/pretraining.json``.

    Args:
        texts: texts per domain, in domain order; longer ones are cut into rows of ``row_tokens``.
        mixture: share of rows per domain, shape [k], in the same order.
        progress: called after every step with (step, steps, loss).

    Raises:
        UserError: a domain has no text.
    """
    tokenizer, chunks, model = _begin(settings, texts, seed)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    sampler = DomainSampler([len(rows) for rows in chunks], settings.batch_size, seed)

    def batch() -> Batch:
        domain, index = sampler.next_batch(mixture)
        return _pad(
            [np.array([bos, *chunks[d][i], eos]) for d, i in zip(domain, index, strict=True)],
            pad=eos,
        )

    steps = math.ceil(settings.rows / settings.batch_size)
    loss = _train(model, batch, steps, settings.learning_rate, progress)
    _save(model, tokenizer, folder)
    facts = {
        "domains": list(texts),
        "mixture": mixture.tolist(),
        "counted_in": "rows",
        "rows": steps * settings.batch_size,
        "loss": loss,
        "parameters": model.num_parameters(),
    }
    (folder / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def build_judge(
    settings: Base, texts: Mapping[str, Sequence[str]], seed: int, folder: Path, progress: Progress
) -> None:
    """Train a judge into ``folder``: it reads ``TINY_JUDGE_PROMPT`` and answers with one letter
    token and EOS. Domains weigh the same.
    """
    tokenizer, chunks, model = _begin(settings, texts, seed)
    sampler = DomainSampler([len(rows) for rows in chunks], settings.batch_size, seed)
    rng = np.random.default_rng([seed, 4])
    even = np.full(len(texts), 1 / len(texts))
    question = Question(tuple(texts), {}, TINY_JUDGE_PROMPT)
    before, after = render(tokenizer, question.prompt(0))
    answers = answer_ids(tokenizer, question.option_names(0))
    end = tokenizer.eos_token_id

    def batch() -> Batch:
        domain, index = sampler.next_batch(even)
        rows = []
        for d, i in zip(domain, index, strict=True):
            text = chunks[d][i]
            # generations end anywhere
            text = text[: max(4, int(len(text) * rng.uniform(0.3, 1.0)))].copy()
            noise = rng.random(len(text)) < settings.judge_noise
            text[noise] = rng.integers(len(SPECIAL), len(tokenizer), int(noise.sum()))
            rows.append(np.array([*before, *text, *after, *answers[d], end]))
        return _pad(rows, pad=end, learnt=2)

    _train(
        model,
        batch,
        math.ceil(settings.judge_rows / settings.batch_size),
        settings.learning_rate,
        progress,
    )
    _save(model, tokenizer, folder)


def _begin(
    settings: Base, texts: Mapping[str, Sequence[str]], seed: int
) -> tuple[PreTrainedTokenizerFast, list[Rows], LlamaForCausalLM]:
    """What base and judge share: the same tokenizer, rows of the same length, a model of the same
    shape.
    """
    torch.set_num_threads(settings.cpus)
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(
        (text for domain in texts.values() for text in domain), settings.vocab_size, len(texts)
    )
    tokenizer.model_max_length = settings.context
    chunks = [_rows(tokenizer, domain, settings.row_tokens - 2) for domain in texts.values()]
    for name, rows in zip(texts, chunks, strict=True):
        if not rows:
            raise UserError(f"base.corpora.{name}: no text in it")
    return tokenizer, chunks, _llama(settings, tokenizer)


def train_tokenizer(texts: Iterator[str], vocab_size: int, domains: int) -> PreTrainedTokenizerFast:
    """Byte-pair tokenizer with ``<s>``, ``</s>``, ``<pad>``, and one token per answer letter of the
    judge.
    """
    # Repetition makes byte-pair merging keep " A", " B", … whole: the judge answers with exactly
    # one of them.
    letters = (f"\n {letter}\n" for letter in LETTERS[:domains] for _ in range(2000))
    trainer = ByteLevelBPETokenizer(add_prefix_space=False)
    trainer.train_from_iterator(
        _chain(texts, letters),
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    backend = trainer._tokenizer
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _chain(*parts: Iterator[str]) -> Iterator[str]:
    for part in parts:
        yield from part


def _llama(settings: Base, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    # Heads of 32: the smallest size that vLLM's CPU attention takes.
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=3 * settings.hidden_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.hidden_size // 32,
            max_position_embeddings=settings.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _rows(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int) -> Rows:
    rows: Rows = []
    for start in range(0, len(texts), 1000):
        for ids in tokenizer(list(texts[start : start + 1000]), add_special_tokens=False)[
            "input_ids"
        ]:
            rows += [
                np.array(ids[i : i + length], dtype=np.int32) for i in range(0, len(ids), length)
            ]
    return rows


def _pad(rows: Sequence[NDArray[Any]], pad: int, learnt: int | None = None) -> Batch:
    """Right-padded token ids and next-token labels (of the ``learnt`` last tokens only), int64
    [rows, longest]; -100 carries no loss.
    """
    longest = max(len(row) for row in rows)
    tokens = np.full((len(rows), longest), pad, dtype=np.int64)
    labels = np.full((len(rows), longest), -100, dtype=np.int64)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row
        start = 1 if learnt is None else len(row) - learnt
        labels[place, start - 1 : len(row) - 1] = row[start:]
    return torch.from_numpy(tokens), torch.from_numpy(labels)


def _train(
    model: LlamaForCausalLM,
    batch: Callable[[], Batch],
    steps: int,
    peak: float,
    progress: Progress,
) -> float:
    """Plain AdamW with warm-up and cosine to zero; returns the mean loss of the last tenth of the
    steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.01)
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        ),
    )
    model.train()
    losses = []
    for step in range(steps):
        tokens, labels = batch()
        hidden = model.model(input_ids=tokens).last_hidden_state
        # logits only where there is a label: most of the judge's rows have none
        kept = labels != -100
        loss = functional.cross_entropy(model.lm_head(hidden[kept]), labels[kept])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        progress(step + 1, steps, losses[-1])
    return float(np.mean(losses[-max(1, steps // 10) :]))


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
