"""The judge's question: the prompt around a text, in every order of its options, and how the
answers read as tokens.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from versatune_ray.domains.template import only_template
from versatune_ray.errors import UserError

# One-token option names in every usual tokenizer. vLLM returns log-probabilities of at most 128
# chosen ids per request.
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits

DEFAULT_PROMPT = """Decide which domain a text belongs to.

Domains:
{options}

Text:
{text}

Which domain does the text belong to? Answer with one option only."""

TINY_JUDGE_PROMPT = "{text}\nDomain:"

_MARK = "\u2063text\u2063"  # an invisible separator that no template changes


@dataclass(frozen=True)
class Question:
    """What the judge is asked about every text.

    ``permute`` rotates the options from text to text: with order r, position j shows domain (j + r)
    mod k. It does nothing where the prompt lists no ``{options}``.

    Raises:
        UserError: the template has no ``{text}``, or there are more domains than letters.
    """

    domains: tuple[str, ...]
    descriptions: Mapping[str, str]
    template: str = DEFAULT_PROMPT
    labels: Literal["letters", "names"] = "letters"
    permute: bool = False

    def __post_init__(self) -> None:
        if self.template.count("{text}") != 1:
            raise UserError(
                f"detection.judge.prompt: {self.template!r} has no {{text}}, or more than one"
            )
        for domain, about in self.descriptions.items():
            if "{text}" in about or "{text}" in domain:
                raise UserError(
                    f"domains.{domain}.description: {{text}} stands for the text that is judged "
                    f"and can be in the prompt only"
                )
        if self.labels == "letters" and len(self.domains) > len(LETTERS):
            raise UserError(
                f"detection: {len(self.domains)} domains, but a lettered question has at most "
                f"{len(LETTERS)} options; merge some domains"
            )

    @property
    def orders(self) -> int:
        """Number of orders in use: k or 1."""
        return len(self.domains) if self.permute and "{options}" in self.template else 1

    def option_names(self, order: int) -> list[str]:
        """What the answer spells for every domain, in domain order."""
        if self.labels == "names":
            return list(self.domains)
        return [
            LETTERS[(domain - order) % len(self.domains)] for domain in range(len(self.domains))
        ]

    def prompt(self, order: int) -> str:
        """The prompt with ``{text}`` still in it."""
        names = self.option_names(order)
        lines = []
        for position in range(len(self.domains)):
            place = (position + order) % len(self.domains)
            name, domain = names[place], self.domains[place]
            about = f": {self.descriptions[domain]}" if self.descriptions.get(domain) else ""
            lines.append(
                f"{name}. {domain}{about}" if self.labels == "letters" else f"- {domain}{about}"
            )
        return self.template.replace("{options}", "\n".join(lines)).replace(
            "{domains}", ", ".join(self.domains)
        )

    def positions(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each domain stood in the question about each text, [n, k]."""
        k = len(self.domains)
        shift = (np.arange(k)[None, :] - order_of(ids, self.orders)[:, None]) % k
        return np.asarray(shift, dtype=np.int64)


def order_of(ids: NDArray[np.int64], orders: int) -> NDArray[np.int64]:
    """The order in which options are put to each text, [n]: by a hash (SplitMix64), so that orders
    and repeats do not go together.
    """
    mixed = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray((mixed ^ (mixed >> np.uint64(31))) % np.uint64(orders), dtype=np.int64)


@dataclass(frozen=True)
class Node:
    """A point in an answer at which the labels part: the tokens ``path`` that lead to it, and its
    next tokens.

    ``members[c]`` holds the labels (as places in the list of labels) that go on with token
    ``children[c]``.
    """

    path: tuple[int, ...]
    children: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]


def nodes(labels: Sequence[Sequence[int]], end: int | None) -> list[Node]:
    """The points at which token sequences part, from the first token on: one for labels whose first
    tokens all differ.

    The probability of a label is the product of its children's, each normalised over its node;
    tokens that leave no choice need not be asked for. ``end`` is the token after a whole answer,
    which parts a label from those that begin with it.

    Raises:
        UserError: two labels are the same tokens, or one begins another and the tokenizer has no
            end token.
    """
    found: list[Node] = []
    waiting: list[tuple[tuple[int, ...], list[int]]] = [((), list(range(len(labels))))]
    while waiting:
        path, here = waiting.pop(0)
        while len(here) > 1:
            groups: dict[int | None, list[int]] = {}
            for label in here:
                rest = labels[label][len(path) :]
                groups.setdefault(rest[0] if rest else end, []).append(label)
            if len(groups) > 1:
                break
            (only,) = groups
            if only is None or all(len(labels[label]) <= len(path) for label in here):
                raise UserError(
                    "detection.judge.labels: two domains are the same to the judge's tokenizer; "
                    "rename one, or use letters"
                )
            path = (*path, only)
        if len(here) < 2:
            continue
        if None in groups:
            raise UserError(
                "detection.judge.labels: one domain's name begins another's, and the judge's "
                "tokenizer has no EOS; use letters"
            )
        children = tuple(child for child in groups if child is not None)
        found.append(Node(path, children, tuple(tuple(groups[child]) for child in children)))
        waiting += [((*path, child), groups[child]) for child in children]
    return found


def combine(
    parted: Sequence[Node], values: Sequence[NDArray[np.float64]], labels: int
) -> NDArray[np.float64]:
    """Label probabilities [n, labels] from each node's normalised children, ``values[i]`` [n,
    children of node i].
    """
    shares = np.ones((len(values[0]), labels))
    for node, value in zip(parted, values, strict=True):
        for child, members in enumerate(node.members):
            shares[:, list(members)] *= value[:, [child]]
    return shares


def render(
    tokenizer: Any, prompt: str, template_settings: Mapping[str, Any] | None = None
) -> tuple[list[int], list[int]]:
    """Token ids before and after the text. The part before is the same for all texts of one order,
    so that prefix caching bites.

    The tokenizer's chat template is used if it has one.

    Raises:
        UserError: it has several, and none called default.
    """
    text = prompt.replace("{text}", _MARK)
    if getattr(tokenizer, "chat_template", None):
        only_template(tokenizer, tokenizer.name_or_path, "call the judge's own one so")
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            **(template_settings or {}),
        )
    before, after = text.split(_MARK)
    ids = tokenizer.encode(before, add_special_tokens=False)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:1] != [bos]:
        ids = [bos, *ids]
    return ids, tokenizer.encode(after, add_special_tokens=False)


def answer_ids(tokenizer: Any, names: Sequence[str]) -> list[list[int]]:
    """The tokens of every answer as it would follow the prompt."""
    # After a chat header the answer starts a line; after a plain prompt it follows a space.
    space = "" if getattr(tokenizer, "chat_template", None) else " "
    return [tokenizer.encode(space + name, add_special_tokens=False) for name in names]


def end_token(tokenizer: Any) -> int | None:
    """What a chat model writes after its answer: the end of its turn, else EOS."""
    eos: int | None = tokenizer.eos_token_id
    return eos
