"""Chat templates in the manner of well-known families, in forms of our own, with tokenizers of
bytes, and a few conversations.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from versatune_ray.domains.chat import encode
from versatune_ray.domains.records import Message

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
