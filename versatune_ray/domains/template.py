"""Chat templates: read, given defaults, rendered; and what they write around an assistant turn.

A date in a template (``strftime_now``) is frozen at ``FROZEN``, so that the same records give the
same tokens on every day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from versatune_ray.domains.records import BadRecord
from versatune_ray.errors import UserError
from versatune_ray.runs.storage import fetch

FROZEN = date(2024, 7, 26)  # the date that Llama 3.2's template falls back on

# Noncharacters, which Unicode sets aside for a program's own use and no text holds.
OPEN, CLOSE, BREAK = "\ufdd0", "\ufdd1", "\ufdd2"
RESERVED = re.compile("[\ufdd0-\ufdef]")

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_DATE = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?("[^"]*"|'[^']*')\s*\)""")
_TEXTS = {"role", "content"}
_THINK_TAGS = ("<think>", "</think>")


def read_template(file: str) -> str:
    """The text of a template file, without a byte order mark.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(fetch(file)).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read: {words(error)} (data.chat_template)") from error


def only_template(
    tokenizer: Any, path: str, way_out: str = "give the one to use as a file (data.chat_template)"
) -> str | None:
    """The template of a tokenizer; of several named ones the one called default.

    Raises:
        UserError: none is.
    """
    found = tokenizer.chat_template
    if isinstance(found, dict):
        if "default" not in found:
            raise UserError(
                f"{path}: chat templates {', '.join(sorted(found))}, and none called default; "
                f"{way_out}"
            )
        found = found["default"]
    return found.removeprefix("\ufeff") if found else None


def with_defaults(template: str, values: Mapping[str, Any], origin: str) -> str:
    """The template with ``values`` for its variables, wherever it is rendered without them: the
    exported one as well.

    Raises:
        UserError: it has no such variable.
    """
    for name, value in values.items():
        if not name.isidentifier() or not re.search(rf"\b{name}\b", template):
            raise UserError(
                f"data.chat_template_kwargs: {name}: the chat template of {origin} reads no such "
                f"variable; leave it out"
            )
        # the + keeps a line break that the template begins with
        template = (
            f"{{%- if {name} is not defined %}}{{%- set {name} = {value!r} %}}{{%- endif +%}}"
            f"{template}"
        )
    return template


class Edges(NamedTuple):
    """What a template writes around turns. prompt: what asks for an assistant turn; after_user:
    what ends a user turn; last_end, end: what ends an assistant turn, the conversation's last one
    or another.
    """

    prompt: str
    after_user: str
    last_end: str
    end: str


class ChatTemplate:
    """A template with a tokenizer's special tokens."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers.utils import chat_template_utils

        self._render = chat_template_utils.render_jinja_template
        self._compile = chat_template_utils._compile_jinja_template
        self.text = _frozen(tokenizer.chat_template)
        self.tracks_generation = bool(_GENERATION.search(self.text))
        self._variables = dict(tokenizer.special_tokens_map)
        self.skeletons: dict[Any, Any] = {}  # see skeleton
        special = {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        special = {text for text in special if text not in _THINK_TAGS and len(text) > 1}
        longest_first = sorted(special, key=lambda text: (-len(text), text))
        self._starts = {text[0] for text in special}
        self.special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def spells_special(self, text: str) -> bool:
        """Whether a special token stands in a text."""
        return any(start in text for start in self._starts) and bool(self.special.search(text))

    @classmethod
    def of(cls, tokenizer: Any) -> ChatTemplate:
        """That of a tokenizer, made once."""
        key = (tokenizer.chat_template, tokenizer.bos_token, tokenizer.eos_token)
        known = _KNOWN.get(tokenizer)
        if known is None or known[0] != key:
            known = _KNOWN[tokenizer] = (key, cls(tokenizer))
        return known[1]

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, *, prompt: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the character spans ``[start, end)`` of its ``{% generation %}`` blocks.

        Raises:
            BadRecord: whatever the template raises.
        """
        try:
            return self._rendered([messages], tools, prompt)[0]
        except Exception as error:  # a template can raise whatever Python can
            raise BadRecord(f"the chat template refuses it: {words(error)}") from error

    def render_many(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]]
    ) -> list[tuple[str, list[tuple[int, int]]] | None]:
        """``render`` of each, without tools; nothing of any where it refuses one."""
        try:
            if self.tracks_generation or not all(map(_plain, conversations)):
                return [*self._rendered(conversations, None, False)]
            # Texts alone need nothing of what transformers does around a template, which takes
            # longer than the template.
            render = self._compile(self.text).render
            given = {"tools": None, "documents": None, "add_generation_prompt": False}
            return [
                (render(messages=[{**turn} for turn in one], **given, **self._variables), [])
                for one in conversations
            ]
        except Exception:  # which of them it is, and why, is told by rendering each
            return [None] * len(conversations)

    def _rendered(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], tools: Any, prompt: bool
    ) -> list[tuple[str, list[tuple[int, int]]]]:
        texts, spans = self._render(
            conversations=[
                [{k: v for k, v in turn.items() if v is not None} for turn in messages]
                for messages in conversations
            ],
            tools=tools,
            chat_template=self.text,
            return_assistant_tokens_mask=self.tracks_generation,
            add_generation_prompt=prompt,
            **self._variables,
        )
        return list(
            zip(texts, spans if self.tracks_generation else [[] for _ in texts], strict=True)
        )

    @cached_property
    def edges(self) -> Edges:
        """Found by rendering a question and an answer; of what the template refuses, nothing."""
        question, answer = ({"role": role, "content": "Q"} for role in ("user", "assistant"))
        asked = self._probe(question)
        prompted = self._probe(question, prompt=True)
        after_user = asked[-1] if asked else ""
        prompt = ""
        if asked and prompted:
            shared = self._shared(after_user, prompted[-1])
            after_user, prompt = prompted[-1][:shared], prompted[-1][shared:]
        answered = self._probe(question, answer)
        followed = self._probe(question, answer, question)
        last = answered[-1].rstrip() if answered else ""
        if not followed or followed[2].startswith(last):
            return Edges(prompt, after_user, last, last)
        # Some close the whole conversation after its last turn, and some end that one otherwise.
        shared_end = last[: self._shared(last, followed[2])].rstrip()
        if shared_end:
            return Edges(prompt, after_user, shared_end, shared_end)
        other = self.special.match(followed[2])
        return Edges(prompt, after_user, last, other.group() if other else "")

    def _probe(self, *messages: Mapping[str, Any], prompt: bool = False) -> list[str] | None:
        """What stands before, between and after the contents; None if they are not all there."""
        marked = [{**turn, "content": OPEN + turn["content"] + CLOSE} for turn in messages]
        try:
            text, _ = self.render(marked, prompt=prompt)
        except BadRecord:
            return None
        around = re.split(f"{OPEN}[^{CLOSE}]*{CLOSE}", text)
        return around if len(around) == len(messages) + 1 else None

    def _shared(self, one: str, other: str) -> int:
        """Length of the common beginning that cuts no special token in two."""
        cut = common_prefix(one, other)
        for text in (one, other):
            for found in self.special.finditer(text):
                if found.start() < cut < found.end():
                    cut = found.start()
        return cut


def _plain(messages: Sequence[Mapping[str, Any]]) -> bool:
    return all(
        turn.keys() == _TEXTS and type(turn["role"]) is type(turn["content"]) is str
        for turn in messages
    )


_KNOWN: WeakKeyDictionary[Any, tuple[Any, ChatTemplate]] = WeakKeyDictionary()


def common_prefix(one: str, other: str) -> int:
    """Its length."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def words(error: BaseException) -> str:
    """The whole message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _frozen(template: str) -> str:
    fixed = _DATE.sub(lambda call: repr(FROZEN.strftime(call[1][1:-1])), template)
    if re.search(r"strftime_now\s*\(", fixed):  # of a format that is not written there
        macro = f"{{%- macro strftime_now(format) %}}{FROZEN:%d %b %Y}{{%- endmacro +%}}"
        fixed = macro + fixed
    return fixed
