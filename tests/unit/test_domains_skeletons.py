"""What renders and tokenizes faster gives what is found turn by turn: skeletons of conversations,
batches, runs of tokens.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from chat_families import FAMILIES, ONE, tokenizer_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from versatune_ray.domains import covering, masks
from versatune_ray.domains.chat import encode, encode_many
from versatune_ray.domains.records import BadRecord, Example, Message
from versatune_ray.domains.template import ChatTemplate

WORDS = [
    "a",
    "Four.",
    " b\n",
    "Q",
    "<|im_end|>",
    "assistant\n",
    "é [INST] ",
    "a <think>x</think> y",
    "",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_and_a_batch_give_what_marks_give(family: str) -> None:
    random, tokenizer = Random(7), tokenizer_of(family)
    examples = []
    for _ in range(60):
        turns = [Message(role="system", content=random.choice(WORDS))] * (random.random() < 0.3)
        for _ in range(random.randrange(1, 4)):
            for role in ("user", "assistant"):
                said = " ".join(random.choices(WORDS, k=random.randrange(1, 3)))
                turns.append(Message(role=role, content=said))  # type: ignore[typeddict-item]
        trains = tuple(t["role"] == "assistant" and random.random() < 0.8 for t in turns)
        examples.append(Example(tuple(turns), trains))

    def alone(example: Example) -> Any:
        ChatTemplate.of(tokenizer).skeletons.clear()
        try:
            return encode(tokenizer, example)
        except BadRecord as error:
            return str(error)

    expected = [alone(example) for example in examples]
    ChatTemplate.of(tokenizer).skeletons.clear()
    found = encode_many(tokenizer, [*examples, *examples])
    said = [str(one) if isinstance(one, BadRecord) else one for one in found]
    assert said == [*expected, *expected]
    assert any(isinstance(one, tuple) for one in expected)


def test_a_conversation_of_known_roles_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("Qwen2.5")
    encode(tokenizer, ONE)
    template, calls = ChatTemplate.of(tokenizer), []
    compiled = template._compile
    monkeypatch.setattr(template, "_render", None)
    monkeypatch.setattr(template, "_compile", lambda text: calls.append(1) or compiled(text))
    encode(tokenizer, ONE)
    assert len(calls) == 1


@pytest.mark.parametrize("trimmed", [False, True])
def test_runs_of_tokens_are_what_offsets_say(trimmed: bool) -> None:
    random, backend = Random(3), Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    words = ["a ", " b", "é", "the  end", "\n\n", "<|im_end|>", "日本", "  "]
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(words, trainer)
    backend.add_special_tokens(["<|im_end|>"])
    told = 0
    for _ in range(500):
        text = "".join(random.choices(words, k=random.randrange(1, 12)))
        places = sorted(random.sample(range(len(text) + 1), min(len(text), 4) // 2 * 2))
        spans = [*zip(places[::2], places[1::2], strict=True)]
        found = backend.encode(text, add_special_tokens=False)
        one = masks.Learned(text, [], spans, 0, 0)
        runs = covering.runs(found, one, len(found.ids))
        if runs is not None and not one.everything:  # all tokens of all texts are learned
            told += 1
            mask = [any(a <= place < b for a, b in runs) for place in range(len(found.ids))]
            assert mask == covering.covered(found.offsets, spans), (text, spans)
    assert told > 30
