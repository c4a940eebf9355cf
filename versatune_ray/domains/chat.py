"""Conversations → tokens with a loss mask, for any chat template.

The template renders growing prefixes of a conversation, and what it adds for an assistant turn
beyond the generation prompt is that turn's span: its text and the end-of-turn marker, without the
white space after it. The whole text is tokenised once, exactly as inference tokenises its prompt,
and a token carries loss when it overlaps a span. That needs two renderings per assistant turn and a
template that never rewrites earlier turns; records for which it does are refused, not mislabelled.

Rows begin with BOS wherever the tokenizer has a ``bos_token`` (Llama models were trained so; Qwen
has none), at training and at inference alike. Special tokens spelled out inside a record's text are
read as such, as everywhere in ``transformers``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from versatune_ray.domains.records import BadRecord, Example, Message
from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.models import commit

# The prompt ends without a space: byte-pair vocabularies join a space to the word after it, that
# is, to the answer.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
)


class Encoded(NamedTuple):
    """A tokenised conversation: ``tokens`` and ``loss_mask`` of equal length, and the UTF-8 bytes
    of the answers they hold.
    """

    tokens: list[int]
    loss_mask: list[bool]
    response_bytes: int


def load_tokenizer(
    path: str, chat_template_file: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Load a fast tokenizer from a folder or a Hugging Face id, with a chat template for sure.

    The template is the file's if one is given, else the tokenizer's own, else ``PLAIN_TEMPLATE``.

    Raises:
        UserError: the tokenizer or the template cannot be loaded, gives no offsets, or has no EOS
            for the plain template.
    """
    from transformers import AutoTokenizer

    path = fetch(path)
    if Path(path).is_absolute() and not Path(path).is_dir():
        raise UserError(f"{path}: no such folder with a tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code, revision=commit(path)
        )
    except Exception as error:  # the hub's and the tokenizers' errors share no base class
        raise UserError(
            f"{path}: no tokenizer can be loaded from it: {_one_line(error)}"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{path}: {type(tokenizer).__name__} gives no offsets, which the loss mask needs; save "
            f"a tokenizer.json beside it"
        )
    origin = path
    if chat_template_file is not None:
        origin = chat_template_file
        try:
            tokenizer.chat_template = (
                Path(fetch(chat_template_file)).expanduser().read_text(encoding="utf-8")
            )
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{chat_template_file}: cannot be read: {_one_line(error)} (data.chat_template)"
            ) from error
    elif not tokenizer.chat_template:
        if tokenizer.eos_token is None:
            raise UserError(
                f"{path}: the tokenizer has neither a chat template nor an eos_token; set "
                f"data.chat_template"
            )
        tokenizer.chat_template = PLAIN_TEMPLATE
    try:
        tokenizer.apply_chat_template([Message(role="user", content="a")], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"{origin}: line {error.lineno} of the chat template: {error.message} "
            f"(data.chat_template)"
        ) from error
    except jinja2.TemplateError:
        # a template may refuse this conversation and take others; each record is judged by itself
        pass
    return tokenizer


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hex SHA-256 of all that decides how a conversation becomes tokens: the tokenizer's content,
    BOS, EOS, the template.
    """
    content = [
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.bos_token,
        tokenizer.eos_token,
        tokenizer.get_chat_template(),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def encode(tokenizer: Any, example: Example | Sequence[Message]) -> Encoded:
    """Tokenise an example (turns alone: all of the assistant's are learned). Only assistant turns
    that are learned carry loss, each with its end-of-turn token; of a raw text every token, and the
    EOS behind it.

    Raises:
        BadRecord: the template refuses the conversation, or renders a turn otherwise once others
            follow.
    """
    if not isinstance(example, Example):
        example = Example.chat(example)
    if example.text is not None:
        ids = tokenizer(example.text, add_special_tokens=False, verbose=False)["input_ids"]
        ids += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        tokens = _with_bos(tokenizer, ids)
        learned = [False] * (len(tokens) - len(ids)) + [True] * len(ids)
        return Encoded(tokens, learned, len(example.text.encode()))
    conversation = example.messages
    text = _render(tokenizer, conversation)
    spans = _assistant_spans(tokenizer, example, text)
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    mask = []
    reached, span = 0, 0
    for start, end in batch["offset_mapping"]:
        # Some vocabularies leave white space out of a token's offsets: a gap belongs to the token
        # that follows it.
        start = min(start, reached)
        while span < len(spans) and spans[span][1] <= start:
            span += 1
        mask.append(span < len(spans) and start < end and end > spans[span][0])
        reached = max(reached, end)
    tokens = _with_bos(tokenizer, batch["input_ids"])
    response_bytes = sum(
        len(turn["content"].encode())
        for turn, trains in zip(conversation, example.trains, strict=True)
        if trains
    )
    return Encoded(tokens, [False] * (len(tokens) - len(mask)) + mask, response_bytes)


def encode_prompt(tokenizer: Any, conversation: Sequence[Message]) -> list[int]:
    """Tokens after which the model writes the next assistant turn: the prefix of the row that
    ``encode`` makes of both.
    """
    text = _render(tokenizer, conversation, prompt=True)
    return _with_bos(
        tokenizer, tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    )


def cut(tokenizer: Any, encoded: Encoded, max_length: int) -> Encoded:
    """Keep the first ``max_length`` tokens; ``response_bytes`` becomes the bytes of the answer text
    that is left.

    Raises:
        BadRecord: no token that carries loss is left.
    """
    tokens, mask = encoded.tokens[:max_length], encoded.loss_mask[:max_length]
    if not any(mask):
        raise BadRecord("no answer token left within max_length")
    if len(tokens) == len(encoded.tokens):
        return encoded
    response_bytes = 0
    for answers, run in groupby(zip(tokens, mask, strict=True), key=lambda pair: pair[1]):
        if answers:
            text = tokenizer.decode(
                [token for token, _ in run],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
            # A character cut in two decodes to the replacement sign, which is none of the answer's
            # bytes.
            response_bytes += len(text.strip().removesuffix("\ufffd").encode())
    return Encoded(tokens, mask, response_bytes)


def _render(tokenizer: Any, conversation: Sequence[Message], prompt: bool = False) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                list(conversation), tokenize=False, add_generation_prompt=prompt
            )
        )
    except jinja2.TemplateError as error:
        raise BadRecord(f"the chat template refuses it: {_one_line(error)}") from error


def _assistant_spans(tokenizer: Any, example: Example, text: str) -> list[tuple[int, int]]:
    """Character spans ``[start, end)`` of the assistant turns that are learned in ``text``, the
    rendering of the whole conversation.
    """
    spans, conversation = [], example.messages
    for index, (turn, trains) in enumerate(zip(conversation, example.trains, strict=True)):
        if not trains:
            continue
        last = index == len(conversation) - 1
        through = text if last else _render(tokenizer, conversation[: index + 1])
        if index:
            before = _render(tokenizer, conversation[:index], prompt=True)
        # nothing can be rendered before the first turn; what a template puts there ends where the
        # text begins
        else:
            before = through[: max(through.rfind(turn["content"].strip()), 0)]
        through = through.rstrip()
        if not through.startswith(before) or not text.startswith(through):
            raise BadRecord(
                f"the chat template is not prefix-stable: it renders turn {index + 1} otherwise "
                f"once others follow; "
                "give one that does not as data.chat_template"
            )
        spans.append((len(before), len(through)))
    return spans


def _with_bos(tokenizer: Any, tokens: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
