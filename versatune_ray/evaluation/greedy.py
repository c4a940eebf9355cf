"""Exact match without writing a word: greedy decoding gives the expected answer if, and only if,
each of its tokens is the most likely one after the tokens before it. One forward pass per question,
where an engine would have to be started for each of many models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from versatune_ray.domains.chat import encode, load_tokenizer
from versatune_ray.domains.records import Question
from versatune_ray.runs.storage import fetch
from versatune_ray.training.model import load_model

_TOKENS = 16_384  # of a padded batch


def greedy_accuracy(
    model: str,
    questions: Mapping[str, Sequence[Question]],
    chat_template: str | None = None,
    trust_remote_code: bool = False,
    gpu: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Share of questions per domain whose answer, with its end-of-turn token, greedy decoding would
    write to the letter.

    Stricter than ``exact_match`` of written answers, which forgives case, spacing and whatever
    follows the first line. ``gpu``: computed on this process's GPU, in bf16 as an engine would
    serve it; else on its CPUs, in float32.
    """
    tokenizer = load_tokenizer(model, chat_template, trust_remote_code, template_kwargs)
    device = "cuda" if gpu else "cpu"
    network = (
        load_model(str(fetch(model)), trust_remote_code)
        .to(device, torch.bfloat16 if gpu else torch.float32)
        .eval()
    )
    accuracy = {}
    for domain, asked in questions.items():
        rows = [
            encode(
                tokenizer,
                [
                    {"role": "user", "content": one.question},
                    {"role": "assistant", "content": one.answer},
                ],
            )
            for one in asked
        ]
        order = sorted(range(len(rows)), key=lambda place: len(rows[place].tokens))
        right = 0
        while order:
            longest = len(rows[order[-1]].tokens)
            batch = [order.pop() for _ in range(min(len(order), max(1, _TOKENS // longest)))]
            tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
            answer = torch.zeros(len(batch), longest, dtype=torch.bool)
            # what is padded on the right no token before it sees
            for row, place in enumerate(batch):
                tokens[row, : len(rows[place].tokens)] = torch.tensor(rows[place].tokens)
                answer[row, : len(rows[place].tokens)] = torch.tensor(rows[place].loss_mask)
            tokens, answer = tokens.to(device), answer[:, 1:].to(device)
            with torch.no_grad():
                hidden = network.get_decoder()(
                    input_ids=tokens[:, :-1], use_cache=False
                ).last_hidden_state
                written = torch.zeros_like(tokens[:, 1:])
                written[answer] = network.get_output_embeddings()(hidden[answer]).argmax(dim=-1)
            right += int(((written == tokens[:, 1:]) | ~answer).all(dim=1).sum())
        accuracy[domain] = right / len(asked)
    return accuracy
