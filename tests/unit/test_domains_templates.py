"""What is learned under templates in the manner of well-known families, in forms of our own."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from versatune_ray.domains import covering, masks
from versatune_ray.domains.chat import (
    check_embeddings,
    encode,
    encode_many,
    encode_prompt,
    end_of_turn,
    load_tokenizer,
    served_template,
    template_warnings,
    tokenizer_fingerprint,
)
from versatune_ray.domains.records import BadRecord, Example, Message
from versatune_ray.domains.template import ChatTemplate
from versatune_ray.errors import UserError

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA = [
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|end_of_text|>",
]
R1 = ["<|bos|>", "<|eos|>", "<|User|>", "<|Assistant|>", "<|tool_outputs|>"]

QWEN25 = (
    "{%- if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>"
    "\n{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n"
    "<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n{% else %}<|im_start|>"
    "{{ m.role }}\n"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>\n"
    "{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n"
    "{{ m.content }}\n</tool_response><|im_end|>\n{% elif m.role != 'assistant' %}"
    "<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n{% else %}"
    "{% set c = m.content %}{% set r = '' %}{% if m.reasoning_content is string %}"
    "{% set r = m.reasoning_content %}{% elif '</think>' in c %}"
    "{% set r = c.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or r) %}"
    "{{ '<think>\n' + r.strip('\n') + '\n</think>\n\n' }}{% endif %}{{ c }}"
    "{% for t in m.tool_calls or [] %}<tool_call>\n"
    '{{ \'{"name": "\' + t.function.name + \'", "arguments": \' }}'
    "{{ t.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday: {{ strftime_now('%d %b %Y') }}\n\n{{ s }}"
    "{% if tools %}{{ tools | tojson }}{% endif %}<|eot_id|>"
    "{% for m in messages %}{% if m.tool_calls %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{{ \'{"name": "\' + m.tool_calls[0].function.name + \'", "parameters": \' }}'
    "{{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>{% elif m.role == 'tool' %}"
    "<|start_header_id|>ipython<|end_header_id|>\n\n{{ m.content | tojson }}<|eot_id|>{% else %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}"
    "{% for m in rest %}{% if m.role == 'user' %}{% if tools and m == users[-1] %}"
    "[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] "
    "{% if s is defined and loop.last %}{{ s + '\n\n' }}{% endif %}{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    "{{ (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' }}{% endfor %}]{{ eos_token }}"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% set ns = namespace(s='') %}{% if messages[0].role == 'system' %}"
    "{% set ns.s = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ ns.s if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI4 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
PHI4_MINI = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
SMOLLM3 = (
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "<|im_start|>system\nToday: {{ strftime_now('%d %B %Y') }}\n"
    "Mode: {{ '/no_think' if '/no_think' in s else '/think' }}\n"
    "{{ s.replace('/no_think', '').rstrip() }}<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'user' or m.role == 'tool' %}"
    "<|im_start|>user\n{{ m.content }}<|im_end|>\n{% elif m.role == 'assistant' %}"
    "{% generation %}<|im_start|>assistant\n{% if '/no_think' in s %}"
    "{{ '<think>\n\n</think>\n' + m.content.lstrip('\n') }}{% else %}"
    "{{ m.content.lstrip('\n') }}{% endif %}{{ '<|im_end|>\n' }}{% endgeneration %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
).replace("{% generation %}<|im_start|>assistant\n", "<|im_start|>assistant\n{% generation %}")
R1_DISTILL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% set ns = namespace(tool=false) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.tool = false %}<|User|>{{ m.content }}{% elif m.role == 'tool' %}"
    "{% set ns.tool = true %}<|tool_outputs|>{{ m.content }}<|tool_outputs|>"
    "{% elif m.tool_calls %}<|Assistant|>{{ m.tool_calls[0].function.name }}\n```json\n"
    "{{ m.tool_calls[0].function.arguments | tojson }}\n```{{ eos_token }}"
    "{% elif m.role == 'assistant' %}{% set c = m.content.split('</think>')[-1] %}"
    "{{ c if ns.tool else '<|Assistant|>' + c }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{{ '<think>\n' }}{% endif %}"
)
HARMONY = (
    "{% for m in messages %}{% if m.role != 'assistant' %}<|start|>{{ m.role }}<|message|>"
    "{{ m.content }}<|end|>{% else %}<|start|>assistant{% if m.thinking and loop.last %}"
    "<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}"
    "<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)

# template, special tokens, BOS, EOS
FAMILIES: dict[str, tuple[str, list[str], str | None, str]] = {
    "Qwen2.5": (QWEN25, CHATML, None, "<|im_end|>"),
    "Qwen3": (QWEN3, CHATML, None, "<|im_end|>"),
    "Llama 3": (LLAMA3, LLAMA, "<|begin_of_text|>", "<|eot_id|>"),
    "Mistral v3": (MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"], "<s>", "</s>"),
    "Gemma 3": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"], "<bos>", "<eos>"),
    "Phi-4": (PHI4, [*CHATML, "<|im_sep|>"], "<|endoftext|>", "<|endoftext|>"),
    "Phi-4-mini": (
        PHI4_MINI,
        ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        None,
        "<|endoftext|>",
    ),
    "SmolLM3": (SMOLLM3, CHATML, None, "<|im_end|>"),
    "R1 distill": (R1_DISTILL, R1, "<|bos|>", "<|eos|>"),
    "gpt-oss": (
        HARMONY,
        ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"],
        None,
        "<|return|>",
    ),
}
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


def tokenizer_of(family: str, template: str | None = None) -> Any:
    text, special, bos, eos = FAMILIES[family]
    return byte_tokenizer(template or text, special, bos, eos)


def byte_tokenizer(template: str, special: list[str], bos: str | None, eos: str | None) -> Any:
    """Every byte is a token, and so is each of ``special``; think tags are tokens, not special."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    backend.add_tokens([AddedToken(tag, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def conversation(*said: str) -> list[Message]:
    roles: dict[str, Any] = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Message(role=roles[line[0]], content=line[3:]) for line in said]


def called(name: str, **arguments: Any) -> Message:
    function = {"name": name, "arguments": arguments}
    call = {"type": "function", "id": "abcdefghi", "function": function}
    return Message(role="assistant", content="", tool_calls=[call])


def learned(tokenizer: Any, example: Any) -> list[str]:
    encoded = encode(tokenizer, example)
    pairs = zip(encoded.tokens, encoded.loss_mask, strict=True)
    return [
        tokenizer.decode([token for token, _ in run], clean_up_tokenization_spaces=False)
        for loss, run in groupby(pairs, key=lambda pair: pair[1])
        if loss
    ]


ONE = conversation("u: 2+2?", "a: Four.")
MANY = conversation("u: a?", "a: one", "u: b?", "a:  two\n", "u: c?")
SYSTEM = conversation("s: Be brief.", "u: 2+2?", "a: Four.")
TOOLS = [*conversation("u: Rain?"), called("sky", at="Oslo"), *conversation("t: wet", "a: Yes.")]
THINKING = conversation(
    "u: a?", "a: <think>\nr\n</think>\n\none", "u: b?", "a: <think>\ns\n</think>\n\ntwo"
)
TOOL = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]

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


@pytest.mark.parametrize("family", TABLE)
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
