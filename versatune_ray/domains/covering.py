"""From characters to tokens: which tokens of a text that was tokenised carry loss."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from versatune_ray.domains.masks import Learned, Span
from versatune_ray.domains.records import BadRecord
from versatune_ray.domains.template import BREAK

_FEW = 8  # spans; each is looked for from the beginning of a text


def masked(found: Any, one: Learned) -> tuple[list[int], list[bool]]:
    """Tokens, and which of them carry loss.

    Raises:
        BadRecord: a token is a break and something else.
    """
    if one.breaks:
        tokens, offsets = without_breaks(found.ids, found.offsets, one.breaks)
        return tokens, covered(offsets, one.spans)
    tokens = found.ids
    known = runs(found, one, len(tokens))
    if known is None:
        return tokens, covered(found.offsets, one.spans)
    mask = [False] * len(tokens)
    for first, last in known:
        mask[first:last] = [True] * (last - first)
    return tokens, mask


def with_breaks(text: str, breaks: Sequence[int]) -> str:
    """The text to tokenise: a special token with a ``BREAK`` in it is none."""
    return BREAK.join(text[a:b] for a, b in pairwise([0, *breaks, len(text)]))


def without_breaks(
    tokens: Sequence[int], offsets: Sequence[Span], breaks: Sequence[int]
) -> tuple[list[int], list[Span]]:
    """Drop the tokens that are a ``BREAK`` and give the others their places in the text as it was.

    Raises:
        BadRecord: a token is a ``BREAK`` and something else.
    """
    places = [place + number for number, place in enumerate(breaks)]
    kept: list[int] = []
    moved: list[Span] = []
    for token, (start, end) in zip(tokens, offsets, strict=True):
        first, last = bisect_left(places, start), bisect_left(places, end)
        if first != last:
            if (start, end) != (places[first], places[first] + 1):
                raise BadRecord("it spells a special token that this tokenizer cannot take as text")
            continue
        kept.append(token)
        moved.append((start - first, end - last))
    return kept, moved


def covered(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Tokens that overlap a span. Some vocabularies leave white space out of a token's offsets: a
    gap belongs to the token that follows it.
    """
    mask = [False] * len(offsets)
    ends = [end for _, end in offsets]
    for start, end in spans:
        first = bisect_right(ends, start)
        last = bisect_left(ends, end, first)
        # the token that reaches the end, and others of the same last character
        while last < len(ends) and (offsets[last][0] < end or (last and ends[last - 1] < end)):
            last += 1
        mask[first:last] = found = [begin < end for begin, end in offsets[first:last]]
        if False in found:
            for place in range(first, last):
                mask[place] = mask[place] or (ends[place - 1] if place else 0) < ends[place]
    return mask


def runs(found: Any, one: Learned, count: int) -> list[Span] | None:
    """``covered`` as runs of tokens ``[first, last)``, without a Python object for every offset.

    Args:
        found: what a tokenizer made of ``one``, which has no breaks: ``count`` tokens.

    Returns:
        None where there are many spans, or white space at the end of one is in no token.
    """
    if len(one.spans) > _FEW:
        return None
    if one.everything:
        return [(0, count)]
    size, tokens = len(one.text), []
    for start, end in one.spans:
        first = found.char_to_token(start)
        last = count if end >= size else found.char_to_token(end)
        if first is None or last is None or first >= last:
            return None
        if found.token_to_chars(last - 1)[1] < end:
            return None
        if last < count and found.token_to_chars(last)[0] < end:
            return None
        tokens.append((first, last))
    return tokens
