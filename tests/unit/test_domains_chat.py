"""Chat: which tokens carry loss, worked out by hand on a tokenizer whose every byte is one token,
then on real ones.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from versatune_ray.domains import (
    PLAIN_TEMPLATE,
    BadRecord,
    Encoded,
    Message,
    cut,
    encode,
    encode_prompt,
    load_tokenizer,
)
from versatune_ray.domains.chat import tokenizer_fingerprint
from versatune_ray.errors import UserError

QWEN = Path(__file__).parents[2].parent / "shared/data/models/qwen2.5_tokenizer"
TEXTS = [
    "What is the penalty for theft?",
    "The penalty is three years.",
    "User: hi\nAssistant: hello there",
    "one two three four five",
]
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content.strip() }}</s>{% endif %}{% endfor %}"
)


def conversation(*said: str) -> list[Message]:
    """``conversation("s: Be brief.", "u: hi", "a: hello")``."""
    roles: dict[str, Any] = {"s": "system", "u": "user", "a": "assistant"}
    return [Message(role=roles[line[0]], content=line[3:]) for line in said]


def byte_pairs(vocab_size: int = 258, trim_offsets: bool = False, **special: str) -> Any:
    """Bytes, ``<s>`` and ``</s>``: 258 tokens; more are merges learned from ``TEXTS``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **({"bos_token": "<s>", "eos_token": "</s>"} | special)
    )
    fast.chat_template = PLAIN_TEMPLATE
    return fast


def trained(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The text of each run of tokens that carry loss."""
    assert len(encoded.tokens) == len(encoded.loss_mask)
    runs = groupby(zip(encoded.tokens, encoded.loss_mask, strict=True), key=lambda pair: pair[1])
    return [
        tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False)
        for loss, run in runs
        if loss
    ]


def test_the_answer_and_its_end_carry_loss_and_nothing_else_does() -> None:
    tokenizer = byte_pairs()
    encoded = encode(tokenizer, conversation("u: hi", "a: yo"))
    assert tokenizer.decode(encoded.tokens) == "<s>User: hi\nAssistant: yo</s>"
    prompt = len("User: hi\nAssistant:")
    assert encoded.loss_mask == [False] * (1 + prompt) + [True] * len(" yo") + [True]
    assert encoded.response_bytes == 2


def test_each_assistant_turn_of_a_longer_conversation_carries_loss() -> None:
    tokenizer = byte_pairs()
    said = conversation("s: Be brief.", "u: a?", "a: one", "u: b?", "a: zwölf", "u: c?")
    encoded = encode(tokenizer, said)
    text = "<s>Be brief.\nUser: a?\nAssistant: one</s>\nUser: b?\nAssistant: zwölf</s>\nUser: c?"
    assert tokenizer.decode(encoded.tokens) == text
    assert trained(tokenizer, encoded) == [" one</s>", " zwölf</s>"]
    assert encoded.response_bytes == len("one") + len("zwölf".encode())


def test_an_answer_may_come_first_and_answers_may_follow_each_other() -> None:
    tokenizer = byte_pairs()
    encoded = encode(tokenizer, conversation("a: Hello!", "u: hi", "a: yes", "a: no"))
    assert trained(tokenizer, encoded) == ["Hello!</s>", " yes</s>", " no</s>"]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_white_space_inside_an_answer_carries_loss_and_before_it_does_not(
    trim_offsets: bool,
) -> None:
    tokenizer = byte_pairs(300, trim_offsets)
    encoded = encode(tokenizer, conversation("u: hi  ", "a: \n one \n\n  two  ", "u:  ok"))
    assert trained(tokenizer, encoded) == [" \n one \n\n  two  </s>"]


def test_a_template_without_generation_prompt_and_with_its_own_bos_is_understood() -> None:
    tokenizer = byte_pairs()
    tokenizer.chat_template = "{{ bos_token }}" + INST
    encoded = encode(tokenizer, conversation("u: hi", "a: yo ", "u: so", "a: no"))
    assert tokenizer.decode(encoded.tokens) == "<s>[INST] hi [/INST] yo</s>[INST] so [/INST] no</s>"
    assert trained(tokenizer, encoded) == [" yo</s>", " no</s>"]


def test_without_a_bos_token_none_is_added() -> None:
    tokenizer = byte_pairs()
    tokenizer.bos_token = None
    assert (
        tokenizer.decode(encode(tokenizer, conversation("u: hi", "a: yo")).tokens)
        == "User: hi\nAssistant: yo</s>"
    )


def test_a_template_may_treat_the_last_turn_apart() -> None:
    tokenizer = byte_pairs()
    tokenizer.chat_template = INST.replace(
        "{% else %}", "{% else %}{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
    )
    encoded = encode(tokenizer, conversation("u: hi", "a: yo", "u: so", "a: no"))
    assert trained(tokenizer, encoded) == [" yo</s>", "no</s>"]


def test_what_a_template_refuses_is_a_bad_record_with_its_words() -> None:
    tokenizer = byte_pairs()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') "
        "}}{% endif %}" + INST
    )
    with pytest.raises(BadRecord, match="the chat template refuses it: System role not supported"):
        encode(tokenizer, conversation("s: x", "u: hi", "a: yo"))


def test_the_prompt_at_inference_is_the_prefix_of_the_training_row() -> None:
    for tokenizer in (byte_pairs(), byte_pairs(400)):
        for said in (
            conversation("u: What is the penalty?"),
            conversation("s: Law.", "u: a", "a: The penalty.", "u: b?"),
        ):
            for answer in ("three years", "7", "Yes.\nNo."):
                row = encode(tokenizer, [*said, Message(role="assistant", content=answer)])
                prompt = encode_prompt(tokenizer, said)
                assert row.tokens[: len(prompt)] == prompt
                assert row.loss_mask[len(prompt) :] == [True] * (len(row.tokens) - len(prompt))


def test_a_cut_row_keeps_its_beginning_and_counts_the_bytes_that_are_left() -> None:
    tokenizer = byte_pairs()
    encoded = encode(tokenizer, conversation("u: hi", "a: yé", "u: so", "a: nein"))
    first = len("<User: hi\nAssistant:")  # one character stands for the BOS
    second = first + len(" yé".encode()) + 1 + len("\nUser: so\nAssistant:")
    assert cut(tokenizer, encoded, len(encoded.tokens)) == encoded
    assert cut(tokenizer, encoded, second + 3).response_bytes == len("yé".encode()) + len("ne")
    assert cut(tokenizer, encoded, second).response_bytes == len("yé".encode())
    # a space, "y" and the first of the two bytes of "é"
    shortest = cut(tokenizer, encoded, first + 3)
    assert (shortest.tokens, shortest.loss_mask) == (
        encoded.tokens[: first + 3],
        [False] * first + [True] * 3,
    )
    assert shortest.response_bytes == 1
    with pytest.raises(BadRecord, match="no answer token left within max_length"):
        cut(tokenizer, encoded, first)


@pytest.mark.skipif(not QWEN.is_dir(), reason="the Qwen2.5 tokenizer is not here")
def test_the_qwen_template_trains_on_answers_and_their_end_of_turn() -> None:
    tokenizer = load_tokenizer(str(QWEN))
    said = conversation(
        "s: Sei kurz.",
        "u: Wie heißt die Hauptstadt?",
        "a: Paris 🗼.",
        "u: und\n",
        "a:   def f():\n\treturn 1\n",
    )
    encoded = encode(tokenizer, said)
    assert tokenizer.decode(encoded.tokens) == (
        "<|im_start|>system\nSei kurz.<|im_end|>\n"
        "<|im_start|>user\nWie heißt die Hauptstadt?<|im_end|>\n<|im_start|>assistant\nParis "
        "🗼.<|im_end|>\n"
        "<|im_start|>user\nund\n<|im_end|>\n<|im_start|>assistant\n  def f():\n\treturn "
        "1\n<|im_end|>\n"
    )
    assert trained(tokenizer, encoded) == [
        "Paris 🗼.<|im_end|>",
        "  def f():\n\treturn 1\n<|im_end|>",
    ]
    prompt = encode_prompt(tokenizer, said[:2])
    assert encoded.tokens[: len(prompt)] == prompt
    assert encoded.loss_mask[: len(prompt) + 1] == [False] * len(prompt) + [True]


def test_a_tokenizer_without_template_gets_the_plain_one_unless_a_file_is_given(
    tmp_path: Path,
) -> None:
    tokenizer = byte_pairs()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "none")
    tokenizer.chat_template = INST
    tokenizer.save_pretrained(tmp_path / "own")
    (tmp_path / "other.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    plain, own = load_tokenizer(str(tmp_path / "none")), load_tokenizer(str(tmp_path / "own"))
    given = load_tokenizer(str(tmp_path / "own"), str(tmp_path / "other.jinja"))
    assert [one.chat_template for one in (plain, own, given)] == [
        PLAIN_TEMPLATE,
        INST,
        "{{ messages[0].content }}",
    ]
    assert len({tokenizer_fingerprint(one) for one in (plain, own, given)}) == 3
    assert tokenizer_fingerprint(own) == tokenizer_fingerprint(
        AutoTokenizer.from_pretrained(tmp_path / "own")
    )


def test_a_tokenizer_that_cannot_serve_is_an_error_in_one_line(tmp_path: Path) -> None:
    byte_pairs().save_pretrained(tmp_path / "good")
    endless = byte_pairs()
    endless.eos_token, endless.chat_template = None, None
    endless.save_pretrained(tmp_path / "endless")
    ByT5Tokenizer().save_pretrained(tmp_path / "slow")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jinja").write_text("{% for %}", encoding="utf-8")
    cases = [
        ("nowhere", None, "nowhere: no such folder"),
        ("empty", None, "empty: no tokenizer can be loaded"),
        ("slow", None, "gives no offsets"),
        ("endless", None, "neither a chat template nor an eos_token"),
        (
            "good",
            "broken.jinja",
            r"broken\.jinja: line 1 of the chat template: .*data\.chat_template",
        ),
        ("good", "missing.jinja", r"missing\.jinja: cannot be read: .*data\.chat_template"),
    ]
    for folder, template, message in cases:
        with pytest.raises(UserError, match=message) as error:
            load_tokenizer(str(tmp_path / folder), template and str(tmp_path / template))
        assert "\n" not in str(error.value)
