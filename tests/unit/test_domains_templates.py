"""What is learned under chat templates in the manner of well-known families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_families import (
    LLAMA3,
    MANY,
    MISTRAL,
    ONE,
    PHI4,
    QWEN25,
    SYSTEM,
    THINKING,
    TOOL,
    TOOLS,
    byte_tokenizer,
    conversation,
    learned,
    tokenizer_of,
)

from versatune_ray.domains.chat import (
    check_embeddings,
    encode,
    encode_prompt,
    end_of_turn,
    load_tokenizer,
    served_template,
    template_warnings,
    tokenizer_fingerprint,
)
from versatune_ray.domains.records import BadRecord, Example, Message
from versatune_ray.errors import UserError

ENDS = {
    "Qwen2.5": "<|im_end|>",
    "Qwen3": "<|im_end|>",
    "Llama 3": "<|eot_id|>",
    "Mistral v3": "</s>",
    "Gemma 3": "<end_of_turn>",
    "Phi-4": "<|im_end|>",
    "Phi-4-mini": "<|end|>",
    "SmolLM3": "<|im_end|>",
    "R1 distill": "<|eos|>",
    "gpt-oss": "<|end|>",
}

EM, EOT = "<|im_end|>", "<|eot_id|>"
CALL = '{"name": "sky", "arguments": {"at": "Oslo"}}'
LOST = "leaves out part of turn 4, its reasoning"
# single turn, several, system, tools, reasoning
TABLE: dict[str, list[list[str] | str]] = {
    "Qwen2.5": [
        ["Four." + EM],
        ["one" + EM, " two\n" + EM],
        ["Four." + EM],
        [f"<tool_call>\n{CALL}\n</tool_call>{EM}", "Yes." + EM],
        ["<think>\nr\n</think>\n\none" + EM, "<think>\ns\n</think>\n\ntwo" + EM],
    ],
    "Qwen3": [
        ["Four." + EM],
        ["one" + EM, " two\n" + EM],
        ["Four." + EM],
        [f"<tool_call>\n{CALL}\n</tool_call>{EM}", "Yes." + EM],
        ["one" + EM, "<think>\ns\n</think>\n\ntwo" + EM],
    ],
    "Llama 3": [
        ["Four." + EOT],
        ["one" + EOT, "two" + EOT],
        ["Four." + EOT],
        ['{"name": "sky", "parameters": {"at": "Oslo"}}' + EOT, "Yes." + EOT],
        ["<think>\nr\n</think>\n\none" + EOT, "<think>\ns\n</think>\n\ntwo" + EOT],
    ],
    "Mistral v3": [
        [" Four.</s>"],
        [" one</s>", "  two\n</s>"],
        [" Four.</s>"],
        [f'[TOOL_CALLS][{CALL[:-1]}, "id": "abcdefghi"}}]</s>', "Yes.</s>"],
        [" <think>\nr\n</think>\n\none</s>", " <think>\ns\n</think>\n\ntwo</s>"],
    ],
    "Gemma 3": [
        ["Four.<end_of_turn>"],
        ["one<end_of_turn>", "two<end_of_turn>"],
        ["Four.<end_of_turn>"],
        "the chat template refuses it: roles must alternate",
        ["<think>\nr\n</think>\n\none<end_of_turn>", "<think>\ns\n</think>\n\ntwo<end_of_turn>"],
    ],
    "Phi-4": [
        ["Four." + EM],
        ["one" + EM, " two\n" + EM],
        ["Four." + EM],
        "the chat template leaves out the tools",
        ["<think>\nr\n</think>\n\none" + EM, "<think>\ns\n</think>\n\ntwo" + EM],
    ],
    "Phi-4-mini": [
        ["Four.<|end|>"],
        ["one<|end|>", " two\n<|end|>"],
        ["Four.<|end|>"],
        "the chat template leaves out the tools",
        ["<think>\nr\n</think>\n\none<|end|>", "<think>\ns\n</think>\n\ntwo<|end|>"],
    ],
    "SmolLM3": [
        ["Four." + EM],
        ["one" + EM, " two\n" + EM],
        ["Four." + EM],
        "the chat template leaves out the tools",
        ["<think>\nr\n</think>\n\none" + EM, "<think>\ns\n</think>\n\ntwo" + EM],
    ],
    "R1 distill": [
        ["Four.<|eos|>"],
        ["one<|eos|>", " two\n<|eos|>"],
        ["Four.<|eos|>"],
        "the chat template leaves out the tools",
        LOST,
    ],
    "gpt-oss": [
        ["<|channel|>final<|message|>Four.<|return|>"],
        ["<|channel|>final<|message|>one<|end|>", "<|channel|>final<|message|> two\n<|end|>"],
        ["<|channel|>final<|message|>Four.<|return|>"],
        "the chat template leaves out the tools",
        [
            f"<|channel|>final<|message|><think>\n{r}\n</think>\n\n{a}{e}"
            for r, a, e in (("r", "one", "<|end|>"), ("s", "two", "<|return|>"))
        ],
    ],
}


@pytest.mark.parametrize("family", TABLE)
def test_what_is_learned(family: str) -> None:
    tokenizer = tokenizer_of(family)
    tools = Example(tuple(TOOLS), (False, True, False, True), TOOL)
    examples = [Example.chat(said) for said in (ONE, MANY, SYSTEM)]
    for example, expected in zip(
        [*examples, tools, Example.chat(THINKING)], TABLE[family], strict=True
    ):
        if isinstance(expected, str):
            with pytest.raises(BadRecord, match=expected):
                encode(tokenizer, example)
        else:
            assert learned(tokenizer, example) == expected
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(ENDS[family])
    assert template_warnings(tokenizer) == []


def test_the_calls_of_a_tool_are_learned_and_what_it_answers_is_not() -> None:
    tokenizer = tokenizer_of("R1 distill")
    assert learned(tokenizer, TOOLS) == ['sky\n```json\n{"at": "Oslo"}\n```<|eos|>', "Yes.<|eos|>"]


def test_reasoning_of_its_own_field_goes_where_the_template_wants_it() -> None:
    said = [*ONE[:1], Message(role="assistant", content="Four.", reasoning_content="2 and 2")]
    thought = "<think>\n2 and 2\n</think>\n\nFour.<|im_end|>"
    assert learned(tokenizer_of("Qwen3"), said) == [thought]
    assert learned(tokenizer_of("gpt-oss"), said) == [
        "<|channel|>analysis<|message|>2 and 2<|end|><|start|>assistant"
        "<|channel|>final<|message|>Four.<|return|>"
    ]
    with pytest.raises(BadRecord, match="leaves out part of turn 2, its reasoning"):
        encode(tokenizer_of("Qwen2.5"), said)


def test_reasoning_that_earlier_turns_lose_is_counted_and_of_the_last_one_refused() -> None:
    tokenizer = tokenizer_of("Qwen3")
    encoded = encode(tokenizer, THINKING)
    assert encoded.dropped_reasoning == 1
    assert encoded.response_bytes == len("one") + len("<think>\ns\n</think>\n\ntwo")
    with pytest.raises(BadRecord, match="leaves out part of turn 2, its reasoning"):
        encode(tokenizer_of("R1 distill"), conversation("u: a?", "a: <think>\nr\n</think>"))


def test_turns_that_are_not_to_be_learned_are_not() -> None:
    example = Example(tuple(MANY), (False, False, False, True, False))
    assert learned(tokenizer_of("Qwen3"), example) == [" two\n<|im_end|>"]
    assert learned(tokenizer_of("SmolLM3"), example) == [" two\n<|im_end|>"]


def test_the_text_of_a_system_turn_is_where_the_last_question_is_asked() -> None:
    tokenizer = tokenizer_of("Mistral v3")
    assert tokenizer.decode(encode(tokenizer, SYSTEM).tokens) == (
        "<s>[INST] Be brief.\n\n2+2?[/INST] Four.</s>"
    )
    prompt = encode_prompt(tokenizer, SYSTEM[:2])
    assert encode(tokenizer, SYSTEM).tokens[: len(prompt)] == prompt
    gone = tokenizer_of("Mistral v3", MISTRAL.replace("{{ s + '\n\n' }}", ""))
    with pytest.raises(BadRecord, match=r"leaves out turn 1 \(system\)"):
        encode(gone, SYSTEM)


def test_a_generation_prompt_may_open_a_thought() -> None:
    opening = QWEN25.replace(
        "{% if add_generation_prompt %}<|im_start|>assistant\n",
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n",
    )
    tokenizer = tokenizer_of("Qwen2.5", opening)
    assert learned(tokenizer, ONE) == ["Four.<|im_end|>"]
    assert learned(tokenizer, THINKING[2:]) == ["s\n</think>\n\ntwo<|im_end|>"]


def test_a_system_text_that_the_template_reads_needs_no_marks() -> None:
    said = conversation("s: Be brief. /no_think", "u: 2+2?", "a: Four.")
    assert learned(tokenizer_of("SmolLM3"), said) == ["Four.<|im_end|>"]


def test_special_tokens_that_a_text_spells_are_text() -> None:
    tokenizer = tokenizer_of("Qwen2.5")
    said = conversation(
        "u: é<|im_end|>\n<|im_start|>system", "a: no <|im_end|>! ü", "u: <|im_end|>"
    )
    encoded = encode(tokenizer, said)
    rendered = tokenizer.apply_chat_template(said, tokenize=False)
    assert tokenizer.decode(encoded.tokens) == rendered
    assert learned(tokenizer, said) == ["no <|im_end|>! ü<|im_end|>"]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (encoded.tokens.count(start), encoded.tokens.count(end)) == (3, 3)
    prompt = encode_prompt(tokenizer, said[:1])
    assert encoded.tokens[: len(prompt)] == prompt
    raw = encode(tokenizer, Example((), (), text="a<|im_start|>b"))
    assert raw.tokens == [
        *tokenizer("a")["input_ids"],
        *map(ord_of(tokenizer), "<|im_start|>b"),
        end,
    ]
    assert all(raw.loss_mask)


def ord_of(tokenizer: Any) -> Any:
    return lambda letter: tokenizer.convert_tokens_to_ids(letter)


def test_values_for_a_template_are_part_of_it_and_a_date_stands_still(tmp_path: Path) -> None:
    tokenizer_of("Qwen3").save_pretrained(tmp_path)
    plain = load_tokenizer(str(tmp_path))
    brief = load_tokenizer(str(tmp_path), None, False, {"enable_thinking": False})
    assert tokenizer_fingerprint(plain) != tokenizer_fingerprint(brief)
    prompt = encode_prompt(brief, ONE[:1])
    assert brief.decode(prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert encode(brief, ONE).tokens[: len(prompt)] == prompt
    assert learned(brief, ONE) == ["Four.<|im_end|>"]
    # the exported template has them, and whoever asks it may say otherwise
    text = brief.apply_chat_template(
        ONE[:1], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert text.endswith("<|im_start|>assistant\n")
    with pytest.raises(UserError, match=r"enable_thinkng: the chat template of .* reads no such"):
        load_tokenizer(str(tmp_path), None, False, {"enable_thinkng": False})
    dated = tokenizer_of("Llama 3")
    assert "Today: 26 Jul 2024" in dated.decode(encode(dated, ONE).tokens)
    computed = tokenizer_of("Qwen2.5", "{% set f = '%Y' %}{{ strftime_now(f) }}" + QWEN25)
    assert computed.decode(encode(computed, ONE).tokens).startswith("26 Jul 2024<|im_start|>")


def test_of_named_templates_the_default_counts(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("Qwen2.5")
    tokenizer.chat_template = {"default": QWEN25, "rag": "x"}
    tokenizer.save_pretrained(tmp_path / "two")
    tokenizer.chat_template = {"tool_use": QWEN25, "rag": "x"}
    tokenizer.save_pretrained(tmp_path / "none")
    (tmp_path / "marked.jinja").write_bytes(b"\xef\xbb\xbf" + QWEN25.encode())
    assert load_tokenizer(str(tmp_path / "two")).chat_template == QWEN25
    given = load_tokenizer(str(tmp_path / "none"), str(tmp_path / "marked.jinja"))
    assert given.chat_template == QWEN25
    with pytest.raises(UserError, match="chat templates rag, tool_use, and none called default"):
        load_tokenizer(str(tmp_path / "none"))


def test_whatever_a_template_raises_is_a_bad_record() -> None:
    for broken in ("{{ messages[0].content + 1 }}", "{{ 1 // 0 }}", "{{ messages[7].content.x }}"):
        with pytest.raises(BadRecord, match="the chat template refuses it: "):
            encode(tokenizer_of("Qwen2.5", broken), ONE)
    with pytest.raises(BadRecord, match="holds U\\+FDD0"):
        encode(tokenizer_of("Qwen2.5"), conversation("u: \ufdd0", "a: b"))


def test_a_turn_that_ends_in_no_token_is_warned_of() -> None:
    endless = PHI4.replace("<|im_end|>", "\n")
    assert end_of_turn(tokenizer_of("Phi-4", endless)) is None
    assert (
        "no assistant turn ends in a token" in template_warnings(tokenizer_of("Phi-4", endless))[0]
    )
    # ChatML on a tokenizer that does not know its markers
    spelled = byte_tokenizer(QWEN25, ["<s>", "</s>"], "<s>", "</s>")
    assert learned(spelled, ONE) == ["Four.<|im_end|>"]
    assert end_of_turn(spelled) is None


def test_the_exported_template_writes_the_bos_of_the_rows() -> None:
    tokenizer = tokenizer_of("Phi-4")
    assert served_template(tokenizer) == "{{ bos_token }}" + PHI4
    tokenizer.chat_template = served_template(tokenizer)
    assert tokenizer.apply_chat_template(ONE)["input_ids"] == encode(tokenizer, ONE).tokens
    assert served_template(tokenizer_of("Llama 3")) == LLAMA3
    assert served_template(tokenizer_of("Qwen2.5")) == QWEN25


def test_tokens_without_embeddings_are_told_before_training(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("Qwen2.5")
    config = '{"model_type": "llama", "vocab_size": %d}'
    (tmp_path / "config.json").write_text(config % 256)
    with pytest.raises(UserError, match="has 261 tokens, the model embeddings for 256; resize"):
        check_embeddings(tokenizer, str(tmp_path))
    (tmp_path / "config.json").write_text(config % 261)
    check_embeddings(tokenizer, str(tmp_path))
    # one that no row holds, as Gemma's tokenizer has it
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_embeddings(tokenizer, str(tmp_path))
    check_embeddings(tokenizer, str(tmp_path / "no model"))
