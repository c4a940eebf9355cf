"""Exact match by one forward pass is exact match by writing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from versatune_ray.domains.chat import encode, encode_prompt, load_tokenizer
from versatune_ray.domains.records import Question
from versatune_ray.evaluation import greedy
from versatune_ray.evaluation.greedy import greedy_accuracy


def test_it_counts_what_greedy_decoding_writes_to_the_letter(
    tiny_model: Path, tmp_path: Path, monkeypatch
) -> None:
    """Of ten questions a model has learned six answers, of different lengths, by heart."""
    tokenizer = load_tokenizer(str(tiny_model), None, False)
    asked = [
        Question(f"w{3 + n} w{20 + n}", " ".join(f"w{40 + n}" for _ in range(1 + n % 3)))
        for n in range(10)
    ]
    rows = [
        encode(
            tokenizer,
            [{"role": "user", "content": q.question}, {"role": "assistant", "content": q.answer}],
        )
        for q in asked
    ]
    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(60):
        for row in rows[:6]:
            tokens, mask = torch.tensor([row.tokens]), torch.tensor([row.loss_mask])
            logits = network(tokens[:, :-1]).logits
            functional.cross_entropy(logits[mask[:, 1:]], tokens[:, 1:][mask[:, 1:]]).backward()
        optimizer.step()
        optimizer.zero_grad()
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    right = []
    for question, row in zip(asked, rows, strict=True):
        prompt = encode_prompt(tokenizer, [{"role": "user", "content": question.question}])
        expected = row.tokens[len(prompt) :]
        written = network.generate(
            torch.tensor([prompt]), max_new_tokens=len(expected), do_sample=False, pad_token_id=2
        )
        right.append(written[0, len(prompt) :].tolist() == list(expected))
    assert 5 <= sum(right) < 10
    for tokens in (greedy._TOKENS, 30):  # one batch, and batches of few rows
        monkeypatch.setattr(greedy, "_TOKENS", tokens)
        found = greedy_accuracy(str(tmp_path), {"all": asked, "learned": asked[:6]})
        assert found == {"all": sum(right) / 10, "learned": sum(right[:6]) / 6}
