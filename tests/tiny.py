"""What tests train, serve and read: random models with word tokenizers, token stores, records of
words per domain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Sample = tuple[Sequence[int], int]


def write_store(folder: Path, samples: Sequence[Sample]) -> Path:
    """A token store of ``(tokens, length of the prompt)`` pairs; every token after the prompt
    carries loss, one byte each.
    """
    from versatune_ray.domains.spec import Input
    from versatune_ray.domains.store_writer import Batch, TokenStoreWriter

    with TokenStoreWriter(
        folder, [Input(f"{folder}.jsonl", f"{folder.name}.jsonl", "jsonl")]
    ) as writer:
        writer.append(
            Batch(
                tokens=np.concatenate([np.array(tokens, np.int32) for tokens, _ in samples]),
                mask=np.concatenate(
                    [np.arange(len(tokens)) >= prompt for tokens, prompt in samples]
                ),
                lengths=np.array([len(tokens) for tokens, _ in samples], np.int64),
                hashes=np.arange(len(samples), dtype=np.uint64)
                + np.uint64(abs(hash(str(folder))) % 2**40 << 20),
                response_bytes=np.array(
                    [len(tokens) - prompt for tokens, prompt in samples], np.int64
                ),
                locations=np.stack(
                    [np.zeros(len(samples), np.int64), np.arange(1, len(samples) + 1)], axis=1
                ),
            )
        )
    return folder


def random_samples(seed: int, count: int, vocabulary: int = 64) -> list[tuple[list[int], int]]:
    """Token lists of 4 to 19 tokens, of which 1 to 3 are the prompt."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 20, count)
    return [(rng.integers(3, vocabulary, n).tolist(), int(rng.integers(1, 4))) for n in lengths]


def write_stores(folder: Path, names: Iterable[str], train: int, validation: int) -> dict[str, Any]:
    """Stores of random samples to train on and to hold out, as ``DomainPaths`` by domain."""
    from versatune_ray.domains import DomainPaths

    return {
        name: DomainPaths(
            write_store(folder / name, random_samples(seed, train)),
            write_store(folder / f"{name}-v", random_samples(seed + 9, validation)),
        )
        for seed, name in enumerate(names)
    }


def write_records(file: Path, records: Iterable[Mapping[str, Any]]) -> str:
    """A JSONL file; returns its path as configurations have it."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(file)


def random_words(folder: Path, names: Iterable[str], count: int = 60) -> dict[str, str]:
    """A file of records per domain, with random answers of six words; by domain."""
    rng = np.random.default_rng(0)
    found = {}
    for name in names:
        words = [[f"w{word}" for word in row] for row in rng.integers(3, 64, (count, 8))]
        records = [{"prompt": " ".join(row[:2]), "completion": " ".join(row[2:])} for row in words]
        found[name] = write_records(folder / f"{name}.jsonl", records)
    return found


def words_per_domain(
    folder: Path, names: Iterable[str], times: Callable[[int], int] = lambda place: 6
) -> dict[str, str]:
    """A file of 60 records per domain, which has words of its own and answers with the question's
    last one, ``times(place)`` times; by domain.
    """
    rng = np.random.default_rng(0)
    found = {}
    for place, name in enumerate(names):
        words = rng.integers(3 + 20 * place, 23 + 20 * place, (60, 2))
        records = [
            {"prompt": f"w{one} w{other}", "completion": " ".join([f"w{other}"] * times(place))}
            for one, other in words
        ]
        found[name] = write_records(folder / f"{name}.jsonl", records)
    return found


def word_tokenizer(folder: Path, words: Sequence[str], template: str | None = None) -> None:
    """A tokenizer of whole words; the first three are BOS, EOS and padding, and ``<unk>``, where it
    is one, stands for what is unknown.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    unknown = "<unk>" if "<unk>" in words else words[2]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": words[0], "eos_token": words[1], "pad_token": words[2]}
    if unknown == "<unk>":
        special["unk_token"] = unknown
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def byte_tokenizer(folder: Path) -> str:
    """Save a tokenizer in ``folder``: one token per byte, BOS and EOS, no template of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    bytewise.train_from_iterator(
        [], trainers.BpeTrainer(vocab_size=258, special_tokens=special, initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return str(folder)


def random_llama(
    folder: Path, seed: int = 0, labels: Sequence[str] | None = None, **shape: Any
) -> str:
    """A Llama of two layers with random weights, without a tokenizer; with ``labels``, one that
    classifies. Heads of 32 (64 over 2) suit vLLM on a CPU.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    given: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlamaConfig(**(given | shape))
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    torch.manual_seed(seed)
    kind = LlamaForCausalLM if labels is None else LlamaForSequenceClassification
    kind(config).save_pretrained(folder)
    return str(folder)
