"""The judge's question, as token ids around the text, and the one answer token of every domain."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from versatune_ray.errors import UserError

# One-token option names in every usual tokenizer. vLLM returns log-probabilities of at most 128 chosen ids per request.
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits

DEFAULT_PROMPT = """Decide which domain a text belongs to.

Domains:
{options}

Text:
{text}

Which domain does the text belong to? Answer with one option only."""

TINY_JUDGE_PROMPT = "{text}\nDomain:"

_MARK = "\u2063text\u2063"  # an invisible separator that no template changes


def render(
    tokenizer: Any, template: str, domains: Sequence[str], descriptions: Mapping[str, str], labels: str = "letters"
) -> tuple[list[int], list[int]]:
    """Token ids before and after the text. The part before is the same for all requests, so that prefix caching bites.

    ``{options}`` becomes one line per domain, ``{domains}`` a comma-separated list. The tokenizer's chat template is used if it has one.

    Raises:
        UserError: the template lacks ``{text}``.
    """
    if "{text}" not in template:
        raise UserError(f"detection.judge.prompt: {template!r} has no {{text}}")
    names = option_names(domains, labels)
    options = "\n".join(
        f"{name}. {domain}" + (f": {descriptions[domain]}" if descriptions.get(domain) else "") if labels == "letters" else f"- {domain}"
        for name, domain in zip(names, domains, strict=True)
    )
    text = template.replace("{options}", options).replace("{domains}", ", ".join(domains)).replace("{text}", _MARK)
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    before, after = text.split(_MARK)
    ids = tokenizer.encode(before, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    return ids, tokenizer.encode(after, add_special_tokens=False)


def option_names(domains: Sequence[str], labels: str) -> list[str]:
    if labels == "names":
        return list(domains)
    if len(domains) > len(LETTERS):
        raise UserError(
            f"detection: {len(domains)} domains, but a lettered question has at most {len(LETTERS)} options; merge some domains"
        )
    return list(LETTERS[: len(domains)])


def answer_ids(tokenizer: Any, domains: Sequence[str], labels: str) -> list[int]:
    """The first token of every domain's answer, all different.

    Raises:
        UserError: two answers begin with the same token.
    """
    # After a chat header the answer starts a line; after a plain prompt it follows a space.
    space = "" if getattr(tokenizer, "chat_template", None) else " "
    ids = [tokenizer.encode(space + name, add_special_tokens=False)[0] for name in option_names(domains, labels)]
    if len(set(ids)) < len(ids):
        raise UserError(f"detection.judge.labels: {labels!r}: two answers begin with the same token of the judge's tokenizer; use letters")
    return ids
