"""Record shapes: all become the same conversations, and what cannot be one says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from versatune_ray.domains import BadRecord, Question, content_hash, read_questions, to_example
from versatune_ray.errors import UserError


def turns(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in to_example(record).messages]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Why?", "input": "", "output": "So."},
        {"instruction": "Why?", "response": "So."},
        {"instruction": "", "input": "Why?", "output": "So."},
        {"prompt": "Why?", "completion": "So."},
        {"question": "Why?", "answer": "So."},
        {"question": "Why?", "response": "So.", "source": "elsewhere", "answer": None},
        {
            "messages": [
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": "So."},
            ]
        },
        {
            "messages": [
                {"role": "system", "content": " "},
                {"role": "User", "content": "Why?"},
                {"role": "assistant", "content": "So."},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Wh"}, "y?"]},
                {"role": "assistant", "content": "So."},
            ]
        },
        {
            "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}],
            "messages": None,
        },
    ],
)
def test_every_shape_becomes_question_and_answer(record: dict[str, Any]) -> None:
    assert turns(record) == [("user", "Why?"), ("assistant", "So.")]


def test_input_follows_the_instruction_and_system_comes_first() -> None:
    record = {"system": "Be brief.", "instruction": "Add.", "input": "1 and 2", "output": 3}
    assert turns(record) == [
        ("system", "Be brief."),
        ("user", "Add.\n\n1 and 2"),
        ("assistant", "3"),
    ]


def test_turns_keep_their_order_whoever_begins() -> None:
    said = [
        ("gpt", "Hello!"),
        ("human", "a"),
        ("human", "b"),
        ("chatgpt", " 1\n"),
        ("system", "Now briefly."),
        ("human", "c"),
        ("gpt", "2"),
    ]
    record = {
        "system": "Be kind.",
        "conversations": [{"from": who, "value": what} for who, what in said],
    }
    roles = ["system", "assistant", "user", "user", "assistant", "system", "user", "assistant"]
    assert turns(record) == list(zip(roles, ["Be kind."] + [what for _, what in said], strict=True))


def test_choices_are_appended_with_letters_and_the_answer_is_the_choice() -> None:
    for answer in (1, "B", "blue"):
        record = {"question": "Which?", "choices": ["red", "blue"], "answer": answer}
        assert turns(record) == [("user", "Which?\nA. red\nB. blue"), ("assistant", "blue")]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "Why?", "output": " "}, "no answer (output is empty)"),
        ({"instruction": "Why?", "output": None}, "no answer (output is empty)"),
        ({"question": "Why?", "answer": float("nan")}, "no answer (answer is empty)"),
        ({"prompt": "", "completion": "So."}, "no question (prompt is empty)"),
        (
            {"q": "Why?", "a": "So."},
            "unknown shape: fields q, a; expected instruction/output, prompt/completion",
        ),
        ({}, "unknown shape: fields none"),
        ({"messages": None}, "messages is null"),
        ({"prompt": "Why?", "completion": {"x": 1}}, "completion is no text (dict)"),
        ({"prompt": "Why?", "completion": True}, "completion is no text (bool)"),
        ({"prompt": "Why?", "completion": "\ud800"}, "lone surrogate"),
        ({"messages": []}, "messages must be a list of turns"),
        ({"messages": ["hello"]}, "turn 1 is no object"),
        ({"messages": [{"role": "user", "content": "Why?"}]}, "no assistant turn"),
        (
            {"messages": [{"role": "user", "content": "Why?"}, {"role": "judge", "content": "x"}]},
            "unknown role 'judge' in turn 2",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": None},
                ]
            },
            "no answer (turn 2 is empty",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": ""},
                    {"role": "assistant", "content": "So."},
                ]
            },
            "turn 1 (user) is empty",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "turn 1 holds a part of type 'image'",
        ),
        (
            {"question": "Which?", "choices": ["red"], "answer": 1},
            "answer is 1, but the choices count from 0 to 0",
        ),
        ({"question": "Which?", "choices": ["red"], "answer": "green"}, "none of the choices"),
        (
            {"question": "Which?", "choices": "red", "answer": 0},
            "choices is text, and no JSON list of texts",
        ),
    ],
)
def test_a_bad_record_says_why(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord) as error:
        to_example(record)
    assert reason in str(error.value)


def test_the_hash_ignores_shape_and_outer_white_space_but_not_roles_or_words() -> None:
    one = content_hash(to_example({"prompt": "Why?", "completion": "So."}))
    assert 0 <= one < 2**64
    assert content_hash(to_example({"instruction": " Why?\n", "output": "So. "})) == one
    others = [
        {"prompt": "Why?", "completion": "So"},
        {"prompt": "Why?So.", "completion": "."},
        {"prompt": "Why?", "completion": "So.", "system": "Why?"},
        {
            "messages": [
                {"role": "assistant", "content": "Why?"},
                {"role": "assistant", "content": "So."},
            ]
        },
    ]
    assert len({one, *(content_hash(to_example(record)) for record in others)}) == 5


def test_questions_are_read_in_order_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    rows = [
        {"question": "6 × 7?", "answer": 42},
        {"question": "Which?", "choices": ["x", "y"], "answer": 0},
        {"bad": 1},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert read_questions([str(file)], limit=2) == [
        Question("6 × 7?", "42"),
        Question("Which?\nA. x\nB. y", "x"),
    ]
    with pytest.raises(
        UserError, match=r"q\.jsonl:3: unknown shape: fields bad.*\(domains\.law\.questions\)"
    ):
        read_questions([str(file)], key="domains.law.questions")


def test_a_question_with_more_than_one_answer_turn_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    said = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    file.write_text(json.dumps({"messages": said}), encoding="utf-8")
    with pytest.raises(UserError, match=r"q\.jsonl:1: expected one question and one answer"):
        read_questions([str(file)])


def test_the_package_does_not_import_ray_or_transformers() -> None:
    code = (
        "import sys, versatune_ray.domains; "
        "sys.exit(bool({'ray', 'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
