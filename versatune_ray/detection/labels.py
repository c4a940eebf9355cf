"""Which option a judge chose: read from the first token of its answer, or from all that it
wrote.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

EMPTY = "empty answer"
NONE = "no label in the answer"
SEVERAL = "several labels in the answer"
REFUSED = "the judge refuses to answer"
THOUGHTS = "thoughts and no answer (see detection.judge.answer_tokens)"

_EDGE = string.whitespace + string.punctuation + "“”‘’«»…–—"
# A refusal often names what it is afraid of: "it may break the law". Only what declines a request
# counts: "I cannot say" may go on with a guess.
_REFUSAL = re.compile(
    r"(?i)\b(?:can(?:no|['’])t|can ?not|couldn['’]t|could not|won['’]t|will not|unable to"
    r"|not able to|not comfortable|decline to|refuse to)\s+(?:\w+\s+){0,2}"
    r"(?:help|assist|comply|fulfill?|provide|engage|continue|respond|process|classify|discuss"
    r"|support|do (?:that|this))"
    r"|\bI must decline|against my (?:guidelines|policy|policies)|无法(?:协助|帮助|回答|提供)"
)
# what stands before a name in its own clause and denies it: "does not belong to law"
_DENIED = re.compile(
    r"(?i)(?:\b(?:not(?! only\b| just\b)|never|neither|nor|rather than|instead of)\b|n['’]t\b)"
    r"(?:(?!\b(?:but|and it|so)\b)[^.!?;:,\n]){0,40}$"
)
# unlike at \b, "_law_" holds the word law; "not law" does not choose it
_BEGIN, _END = r"(?<![^\W_])(?<![Nn]ot )", r"(?![^\W_])"
_DELIMITER = r"(?=\s*(?:$|[.):;,/!?*_`\"”’\]}\n–—。，：；、）】」]|'(?!\w)|-\s|(?:and|or)\b))"
_KIND = r"(?:option|choice|label|letter|domain|category)"
_ENGLISH = rf"{_BEGIN}(?i:(?:answer|{_KIND})(?:\s+is\b|\W*[:=])\W*(?:(?:the\s+)?{_KIND}\b)?)"
_ANSWER = rf"(?:{_ENGLISH}|(?:答案|选项|類別|类别|领域|答え|正解)\W*(?:是|为|為|は|[:：]))\W*"
_ALSO = r"\W*(?:and|or|[,/&])\W*"


def label_of_token(token: str, names: Sequence[str]) -> int | None:
    """The index of the option whose name is ``token``, or else of the only one whose name begins
    with it.

    Case counts among one-character names alone: there "a" begins a sentence more often than it
    means option A.
    """
    said = token.strip()
    for i, name in enumerate(names):
        if _fold(name) == _fold(said):
            return i
    begun = [
        i
        for i, name in enumerate(names)
        if said and len(name) > 1 and name.casefold().startswith(said.casefold())
    ]
    return begun[0] if len(begun) == 1 else None


def parse_label(text: str, names: Sequence[str]) -> tuple[int | None, str | None]:
    """The index of the option that ``text`` chooses, and None; or None and the reason: ``EMPTY``,
    ``NONE``, ``SEVERAL`` or ``REFUSED``.

    The first of these that is there decides: nothing but a name; "Answer: B" or "the answer is
    (B)"; a line that begins as "B. law" does; a mention that is not denied, unless the answer is a
    refusal. What a reasoning model thinks before ``</think>`` is not its answer.
    """
    answer = text.rpartition("</think>")[2].strip()
    if not answer:
        return None, EMPTY
    if answer.startswith("<think>"):  # cut off in the middle of a thought
        return None, NONE
    whole = _whole(answer, names)
    if whole is not None:
        return whole, None
    strict, loose = _any_of(names), _any_of(names, undelimited=True)
    stages = (
        [rf"{_ANSWER}({loose})(?:{_ALSO}({loose}))?"],
        [rf"(?m)^[^\w\n]*({strict}){_DELIMITER}(?:{_ALSO}({strict}))?"],
        [rf"{_BEGIN}({strict})", rf"{_BEGIN}(?i:{_KIND})\s+\W*({loose})"],
    )
    known = [_fold(name) for name in names]
    for patterns in stages:
        if patterns is stages[-1] and _REFUSAL.search(answer):
            return None, REFUSED
        matches = (match for pattern in patterns for match in re.finditer(pattern, answer))
        if patterns is stages[-1]:
            matches = (
                match
                for match in matches
                if not _DENIED.search(answer[max(0, match.start() - 60) : match.start()])
            )
        found = {known.index(_fold(name)) for match in matches for name in match.groups() if name}
        if found:
            return (found.pop(), None) if len(found) == 1 else (None, SEVERAL)
    return None, NONE


def _whole(answer: str, names: Sequence[str]) -> int | None:
    # First as it stands: a name may end in punctuation itself, as "c++" does.
    for edge in ("", _EDGE):
        same = [
            i
            for i, name in enumerate(names)
            if name.strip(edge).casefold() == answer.strip(edge).casefold()
        ]
        if len(same) == 1:
            return same[0]
    return None


def _any_of(names: Sequence[str], *, undelimited: bool = False) -> str:
    """A pattern for any of the names, the longest that fits.

    A one-character name needs a delimiter behind it, because "A" is also an article and "I" a
    pronoun; ``undelimited`` lets the other capitals go without.
    """
    patterns = []
    for name in sorted(names, key=len, reverse=True):
        if len(name) > 1:
            patterns.append(f"(?i:{re.escape(name)}){_END}")
        else:
            bare = undelimited and name.isupper() and name not in "AI"
            patterns.append(re.escape(name) + (_END if bare else _DELIMITER))
    return "|".join(patterns)


def _fold(text: str) -> str:
    return text if len(text) == 1 else text.casefold()
