"""Which characters of a rendered conversation are learned.

A template's ``{% generation %}`` blocks say so. Where it has none, marks are put around the texts
of all turns and a conversation is rendered once more, the first of its kind at least (see
``skeleton``): without the marks it must read as before,
and with them it shows where each text went, whatever the template strips, moves or leaves out. An
assistant turn is learned from where the generation prompt would end through its end-of-turn marker.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from versatune_ray.domains.marks import (
    TOOLS,
    BreakAt,
    Layout,
    Marker,
    Piece,
    broken,
    lay_out,
    parsed,
)
from versatune_ray.domains.records import BadRecord, Example
from versatune_ray.domains.skeleton import Key, Skeleton, plain, remember
from versatune_ray.domains.template import RESERVED, ChatTemplate, common_prefix

_EMPTY_THOUGHT = re.compile(r"\s*(?:<think>\s*)?</think>\s*")
_WAY_OUT = "give one that keeps it as data.chat_template"

Span = tuple[int, int]


class Learned(NamedTuple):
    """A rendered conversation. breaks: places inside of special tokens that a text spells; spans:
    what is learned, ``[start, end)``; response_bytes: UTF-8 bytes of the answers in it; dropped:
    learned turns whose reasoning the template left out.
    """

    text: str
    breaks: list[int]
    spans: list[Span]
    response_bytes: int
    dropped: int

    @property
    def everything(self) -> bool:
        """Whether all of it is learned, and no text in it spells a special token."""
        return not self.breaks and self.spans == [(0, len(self.text))]


def learned(
    template: ChatTemplate,
    example: Example,
    break_at: BreakAt,
    rendered: tuple[str, list[Span]] | None = None,
) -> Learned:
    """Render a conversation, unless it is, and find what is learned of it.

    Raises:
        BadRecord: the template refuses the conversation, or leaves out of it what it must not.
    """
    text, generated = rendered or template.render(example.messages, example.tools)
    _check_reserved(text)
    said = plain(template, example)
    known = template.skeletons.get(said[0]) if said else None
    if said and known and (spans := known.spans(text, said[1], example.trains)) is not None:
        answers = zip(said[1], example.trains, strict=True)
        return Learned(text, [], spans, sum(len(a.encode()) for a, trains in answers if trains), 0)
    layout, seen = lay_out(template, example, text, break_at)
    if layout is None:
        raise BadRecord(
            "the chat template edits the texts of turns, which hides the answers in it; give one "
            "that does not as data.chat_template"
        )
    if lost := _lost_beside_answers(example, layout, seen):
        asked = _as_asked(template, example, layout, break_at)
        if asked is None or _lost_beside_answers(example, asked, seen):
            raise BadRecord(f"the chat template leaves out {lost}; {_WAY_OUT}")
        layout, generated = asked, []
    if lost := _lost_of_answers(example, layout, seen):
        raise BadRecord(f"the chat template leaves out part of {lost}; {_WAY_OUT}")
    if said and layout.text == text:
        _remember(template, example, layout, said[0])
    blocks = _by_turn(example, layout, generated)
    present = {region.piece for region in layout.regions}
    shortened = {piece.turn for piece in seen if piece not in present}
    spans = []
    size = dropped = 0
    for turn, trains in enumerate(example.trains):
        regions = layout.of(turn)
        dropped += trains and turn in shortened
        if trains and regions:
            found = blocks.get(turn, []) if generated else [_span(template, example, layout, turn)]
            spans += _without_empty_thought(example, layout, turn, found)
            start, end = _answer(layout, turn)
            size += len(layout.text[start:end].encode())
    return Learned(layout.text, layout.breaks, spans, size, dropped)


def _remember(template: ChatTemplate, example: Example, layout: Layout, key: Key) -> None:
    """Keep what is around the turns, if each is there once and in order."""
    regions = layout.regions
    if [region.piece.turn for region in regions] != list(range(len(example.messages))):
        return
    ends = [0, *(region.end for region in regions)]
    starts = [*(region.start for region in regions), len(layout.text)]
    around = {}
    for turn, message in enumerate(example.messages):
        if message["role"] == "assistant":
            found = [_span(template, example, layout, turn)]
            ((start, end),) = _without_empty_thought(example, layout, turn, found)
            around[turn] = (regions[turn].start - start, end - regions[turn].end)
    between = tuple(layout.text[a:b] for a, b in zip(ends, starts, strict=True))
    remember(template, key, Skeleton(between, around))


def prompt_text(
    template: ChatTemplate, example: Example, break_at: BreakAt
) -> tuple[str, list[int]]:
    """What asks for the next assistant turn, and the breaks in it.

    Raises:
        BadRecord: the template refuses the conversation.
    """
    text, _ = template.render(example.messages, example.tools, prompt=True)
    _check_reserved(text)
    messages = [broken(template, turn, break_at) for turn in example.messages]
    if messages == list(example.messages):
        return text, []
    layout = parsed(template.render(messages, example.tools, prompt=True)[0])
    return text, layout.breaks if layout is not None and layout.text == text else []


def raw_text(template: ChatTemplate, text: str, break_at: BreakAt) -> Learned:
    """A text of which all is learned."""
    _check_reserved(text)
    breaks: list[int] = []
    if template.spells_special(text):
        layout = parsed(broken(template, text, break_at))
        assert layout is not None
        breaks = layout.breaks
    return Learned(text, breaks, [(0, len(text))], len(text.encode()), 0)


def _check_reserved(text: str) -> None:
    if not text.isascii() and (found := RESERVED.search(text)):
        raise BadRecord(f"it holds U+{ord(found.group()):04X}, which is no character")


def _lost_beside_answers(example: Example, layout: Layout, seen: Sequence[Piece]) -> str | None:
    """What is not there of tools and of turns that others say."""
    present = {region.piece for region in layout.regions}
    for piece in seen:
        if piece in present:
            continue
        if piece.turn == TOOLS:
            return "the tools"
        role = example.messages[piece.turn]["role"]
        if role != "assistant":
            return f"turn {piece.turn + 1} ({role})"
    return None


def _lost_of_answers(example: Example, layout: Layout, seen: Sequence[Piece]) -> str | None:
    """What is not there of assistant turns. Reasoning of turns before the last question is the
    template's to leave out.
    """
    present = {region.piece for region in layout.regions}
    asked = max((i for i, turn in enumerate(example.messages) if turn["role"] == "user"), default=0)
    for piece in seen:
        thought = piece.kind == "reasoning"
        if piece in present or (
            thought and not (piece.turn > asked and example.trains[piece.turn])
        ):
            continue
        return f"turn {piece.turn + 1}" + (f", its {piece.kind}" if piece.kind != "text" else "")
    return None


def _as_asked(
    template: ChatTemplate, example: Example, layout: Layout, break_at: BreakAt
) -> Layout | None:
    """The last turn after what asks for it: some templates show the system text, or the tools, only
    there.
    """
    last = len(example.messages) - 1
    if example.messages[last]["role"] != "assistant" or not layout.of(last):
        return None
    head = Example(example.messages[:last], example.trains[:last], example.tools)
    marker = Marker(template, break_at)
    try:
        text, _ = template.render(head.messages, head.tools, prompt=True)
        marked, _ = template.render(*marker.conversation(head), prompt=True)
    except BadRecord:
        return None
    asked = parsed(marked, marker.pieces)
    if asked is None or asked.text != text:
        return None
    start, _ = _span(template, example, layout, last)
    by = len(text) - start
    return Layout(
        text + layout.text[start:],
        asked.regions
        + [one._replace(start=one.start + by, end=one.end + by) for one in layout.of(last)],
        asked.breaks + [place + by for place in layout.breaks if place >= start],
    )


def _span(template: ChatTemplate, example: Example, layout: Layout, turn: int) -> Span:
    """From where the generation prompt would end through the end-of-turn marker."""
    text, edges, mine = layout.text, template.edges, layout.of(turn)
    begin, stop = mine[0].start, mine[-1].end
    before, after = layout.around(turn)
    start, gap = _answer(layout, turn)[0], text[before:begin]
    # what must be there of the prompt; a thought that it opens need not be
    header = edges.prompt.partition("<think>")[0].strip()
    if turn == 0:  # nothing asks for it
        pass
    elif header:
        place = gap.rfind(header)
        if place >= 0:
            start = before + place + common_prefix(edges.prompt.lstrip(), gap[place:])
    elif edges.after_user and example.messages[turn - 1]["role"] == "user":
        place = gap.find(edges.after_user)
        if place >= 0:
            start = before + place + len(edges.after_user)
            start += common_prefix(edges.prompt, text[start:begin])
    tail = text[stop:after]
    marker = edges.end if after < len(text) else edges.last_end
    place = tail.find(marker)
    special = template.special.search(tail)
    if place >= 0:
        end = stop + place + len(marker)
    elif special:  # as after a call of a tool
        end = stop + special.end()
    else:
        end = stop + (len(tail.rstrip()) if after == len(text) else 0)
    return start, max(end, _answer(layout, turn)[1])


def _answer(layout: Layout, turn: int) -> Span:
    """The texts of a turn, with the tags around them that are its own."""
    first, *_, last = [*(regions := layout.of(turn)), regions[-1]]
    text, start, end = layout.text, first.start, last.end
    if text.endswith(first.piece.before, 0, start):
        start -= len(first.piece.before)
    if text.startswith(last.piece.after, end):
        end += len(last.piece.after)
    return start, end


def _by_turn(example: Example, layout: Layout, generated: Sequence[Span]) -> dict[int, list[Span]]:
    """Generation blocks, without white space at their ends, by the turn whose text is in them or
    before them.
    """
    answers = [
        region
        for region in layout.regions
        if region.piece.turn != TOOLS and example.messages[region.piece.turn]["role"] == "assistant"
    ]
    found: dict[int, list[Span]] = {}
    for start, end in generated:
        end = start + len(layout.text[start:end].rstrip())
        begun = [region for region in answers if region.start < end]
        if start < end and begun:
            found.setdefault(begun[-1].piece.turn, []).append((start, end))
    return found


def _without_empty_thought(
    example: Example, layout: Layout, turn: int, spans: Sequence[Span]
) -> list[Span]:
    """Spans without a thought of no words, unless the record itself has it."""
    if "<think>" in (example.messages[turn].get("content") or ""):
        return list(spans)
    begin = layout.of(turn)[0].start
    empty = (_EMPTY_THOUGHT.match(layout.text, start, max(begin, start)) for start, _ in spans)
    return [
        (found.end() if found else start, end)
        for found, (start, end) in zip(empty, spans, strict=True)
    ]
