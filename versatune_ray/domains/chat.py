"""Conversations → tokens with a loss mask, for any chat template (see ``masks``).

The whole text is tokenised once, exactly as inference tokenises its prompt, and a token carries
loss when it overlaps what is learned. Rows begin with BOS wherever the tokenizer has a
``bos_token`` (Llama models were trained so; Qwen has none), at training and at inference alike; the
template that is exported writes it. Special tokens that a record's text spells are the text that
they are, and only the template writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from versatune_ray.domains import covering, masks
from versatune_ray.domains.records import BadRecord, Example, Message
from versatune_ray.domains.template import (
    ChatTemplate,
    only_template,
    read_template,
    with_defaults,
    words,
)
from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch
from versatune_ray.runtime.models import commit

ENCODING = 2  # raised whenever the same conversation becomes other tokens or another mask

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
    """A tokenised record: ``tokens`` and ``loss_mask`` of equal length, the UTF-8 bytes of the
    answers they hold, and how many of its turns the template left the reasoning out of.
    """

    tokens: list[int]
    loss_mask: list[bool]
    response_bytes: int
    dropped_reasoning: int = 0


def load_tokenizer(
    path: str,
    chat_template_file: str | None = None,
    trust_remote_code: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Load a fast tokenizer from a folder or a Hugging Face id, with a chat template for sure.

    The template is the file's if one is given, else the tokenizer's own, else ``PLAIN_TEMPLATE``.

    Args:
        template_kwargs: values of the template's variables, which become part of it.

    Raises:
        UserError: the tokenizer or the template cannot be loaded, gives no offsets, has no EOS for
            the plain template, or the template none of these variables.
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
        raise UserError(f"{path}: no tokenizer can be loaded from it: {words(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(
            f"{path}: {type(tokenizer).__name__} gives no offsets, which the loss mask needs; save "
            f"a tokenizer.json beside it"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    origin = chat_template_file or path
    template = (
        read_template(chat_template_file)
        if chat_template_file is not None
        else only_template(tokenizer, path)
    )
    if not template:
        if tokenizer.eos_token is None:
            raise UserError(
                f"{path}: the tokenizer has neither a chat template nor an eos_token; set "
                f"data.chat_template"
            )
        template = PLAIN_TEMPLATE
    tokenizer.chat_template = with_defaults(template, template_kwargs or {}, origin)
    try:
        tokenizer.apply_chat_template([Message(role="user", content="a")], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"{origin}: line {error.lineno} of the chat template: {error.message} "
            f"(data.chat_template)"
        ) from error
    except Exception:
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
        ChatTemplate.of(tokenizer).text,
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def encode(tokenizer: Any, example: Example | Sequence[Message]) -> Encoded:
    """Tokenise a record; only its assistant turns, each with its end-of-turn token, carry loss. Of
    raw text every token does, and the EOS after it.

    Args:
        example: or a conversation of which every assistant turn is learned.

    Raises:
        BadRecord: the template refuses the conversation, or leaves out of it what it must not.
    """
    one = example if isinstance(example, Example) else Example.chat(example)
    (found,) = encode_many(tokenizer, [one])
    if isinstance(found, BadRecord):
        raise found
    return found


def encode_many(tokenizer: Any, examples: Sequence[Example]) -> list[Encoded | BadRecord]:
    """``encode`` for each, tokenised together; in place of what it raises the error itself."""
    template, break_at = ChatTemplate.of(tokenizer), partial(_break_at, tokenizer)
    plain = [one for one in examples if one.text is None and one.tools is None]
    texts = iter(template.render_many([one.messages for one in plain]))
    rendered: list[masks.Learned | BadRecord] = []
    for example in examples:
        text = next(texts) if example.text is None and example.tools is None else None
        try:
            if example.text is not None:
                rendered.append(masks.raw_text(template, example.text, break_at))
            else:
                rendered.append(masks.learned(template, example, break_at, text))
        except BadRecord as error:
            rendered.append(error)
    good = [one for one in rendered if not isinstance(one, BadRecord)]
    tokenised = iter(_backend(tokenizer, [(one.text, one.breaks) for one in good]))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found: list[Encoded | BadRecord] = []
    for example, one in zip(examples, rendered, strict=True):
        if isinstance(one, BadRecord):
            found.append(one)
            continue
        try:
            tokens, mask = covering.masked(next(tokenised), one)
        except BadRecord as error:
            found.append(error)
            continue
        if bos is not None and tokens[:1] != [bos]:
            tokens, mask = [bos, *tokens], [False, *mask]
        if example.text is not None and eos is not None:
            tokens.append(eos)
            mask.append(True)
        found.append(Encoded(tokens, mask, one.response_bytes, one.dropped))
    return found


def encode_prompt(tokenizer: Any, conversation: Sequence[Message]) -> list[int]:
    """Tokens after which the model writes the next assistant turn: the prefix of the row that
    ``encode`` makes of both.

    Raises:
        BadRecord: the template refuses the conversation.
    """
    text, breaks = masks.prompt_text(
        ChatTemplate.of(tokenizer), Example.chat(conversation), partial(_break_at, tokenizer)
    )
    (found,) = _backend(tokenizer, [(text, breaks)])
    tokens = covering.without_breaks(found.ids, found.offsets, breaks)[0] if breaks else found.ids
    return _with_bos(tokenizer, tokens)


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that a model trained on this template's rows stops at; None if an assistant turn
    ends in none that stops generation.
    """
    marker = ChatTemplate.of(tokenizer).edges.end
    ids: list[int] = tokenizer(marker, add_special_tokens=False)["input_ids"] if marker else []
    stops = {tokenizer.eos_token_id, *tokenizer.added_tokens_decoder}
    return ids[-1] if ids and ids[-1] in stops else None


def template_warnings(tokenizer: Any) -> list[str]:
    """What a person should know of a template before training with it; a line each."""
    if end_of_turn(tokenizer) is not None:
        return []
    return [
        "no assistant turn ends in a token that stops generation: the tuned model will not know "
        "where to stop; give a template that ends turns with the eos_token as data.chat_template"
    ]


def served_template(tokenizer: Any) -> str:
    """The template to export: it writes the BOS that rows begin with, if it does not by itself."""
    template: str = tokenizer.chat_template
    if tokenizer.bos_token is None:
        return template
    text, _ = ChatTemplate.of(tokenizer).render([{"role": "user", "content": "a"}])
    return template if text.startswith(tokenizer.bos_token) else "{{ bos_token }}" + template


def check_embeddings(tokenizer: Any, path: str, trust_remote_code: bool = False) -> None:
    """Whether the model in ``path`` has an embedding for every token that a row can hold. A special
    token that neither the template nor a row's begin and end have is in none.

    Raises:
        UserError: it has not.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code, revision=commit(path)
        )
    except Exception:  # a tokenizer alone; a model that cannot be loaded is told where it is
        return
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None or len(tokenizer) <= rows:
        return
    added = tokenizer.added_tokens_decoder
    special = {number for number, token in added.items() if token.special}
    possible = set(tokenizer.get_vocab().values()) - special
    possible |= {tokenizer.bos_token_id or 0, tokenizer.eos_token_id or 0}
    asked = [Message(role="user", content="a"), Message(role="assistant", content="b")]
    try:
        possible |= {*encode(tokenizer, [*asked, *asked]).tokens}
    except BadRecord:
        possible |= special
    if max(possible) >= rows:
        raise UserError(
            f"model.path: the tokenizer of {path} has {len(tokenizer)} tokens, the model "
            f"embeddings for {rows}; resize them and save the model again"
        )


def cut(tokenizer: Any, encoded: Encoded, max_length: int) -> Encoded:
    """Keep the first ``max_length`` tokens; ``response_bytes`` becomes the bytes of the answer text
    that is left.

    Raises:
        BadRecord: no token that carries loss is left.
    """
    whole = len(encoded.tokens) <= max_length
    mask = encoded.loss_mask if whole else encoded.loss_mask[:max_length]
    if True not in mask:
        raise BadRecord("no answer token left within max_length")
    if whole:
        return encoded
    tokens = encoded.tokens[:max_length]
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
    return encoded._replace(tokens=tokens, loss_mask=mask, response_bytes=response_bytes)


def _backend(tokenizer: Any, texts: Sequence[tuple[str, Sequence[int]]]) -> list[Any]:
    """The tokens of texts with breaks."""
    whole = [covering.with_breaks(text, breaks) if breaks else text for text, breaks in texts]
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = False  # a state that each call of a tokenizer may change
    if len(whole) == 1:  # without the threads that a batch starts
        return [backend.encode(whole[0], add_special_tokens=False)]
    found: list[Any] = backend.encode_batch(whole, add_special_tokens=False)
    return found


@lru_cache(maxsize=512)
def _break_at(tokenizer: Any, special: str) -> int:
    """Where its text, taken as any other, has its first border between tokens."""
    offsets = tokenizer(
        special, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )["offset_mapping"]
    borders = [end for _, end in offsets if 0 < end < len(special)]
    return borders[0] if borders else 1


def _with_bos(tokenizer: Any, tokens: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    return tokens if bos is None or tokens[:1] == [bos] else [bos, *tokens]
