"""What records say beside a question and an answer: context, turns that are not learned, tools,
reasoning, verdicts, weights, and columns of other names.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from versatune_ray.domains import (
    BadRecord,
    Example,
    LeftOut,
    Rules,
    content_hash,
    interpret,
    to_example,
)
from versatune_ray.domains.records import read_choices

ASKED = [{"role": "user", "content": "Rain?"}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ostra"}}}


def turns(record: dict[str, Any], rules: Rules | None = None) -> list[tuple[str, str, bool]]:
    example = to_example(record, rules)
    return [
        (turn["role"][0], turn["content"], trains)
        for turn, trains in zip(example.messages, example.trains, strict=True)
    ]


@pytest.mark.parametrize(
    ("record", "question", "answer"),
    [
        (
            {"instruction": "When?", "context": "In 1931.", "response": "1931"},
            "When?\n\nIn 1931.",
            "1931",
        ),
        (
            {"question": "Who?", "context": "Holt did.", "answer": "Holt"},
            "Who?\n\nHolt did.",
            "Holt",
        ),
        ({"question": "Who?", "context": ["A.", "B."], "answer": "A"}, "Who?\n\nA.\n\nB.", "A"),
        (
            {"prompt": "Read: Holt did. Who?", "context": "Holt did.", "completion": "Holt"},
            "Read: Holt did. Who?",
            "Holt",
        ),
        ({"problem": "1+1?", "solution": "2"}, "1+1?", "2"),
        ({"query": "1+1?", "response": "2"}, "1+1?", "2"),
        ({"question": "Who?", "answer": ["Holt", "M. Holt"]}, "Who?", "Holt"),
        (
            {
                "question": "Who?",
                "answer": [{"type": "text", "text": "Ho"}, {"type": "text", "text": "lt"}],
            },
            "Who?",
            "Holt",
        ),
        ({"prompt": b"Who?", "completion": "Holt"}, "Who?", "Holt"),
        (
            {"messages": json.dumps([*ASKED, {"role": "assistant", "content": "No."}])},
            "Rain?",
            "No.",
        ),
        ({"messages": str([*ASKED, {"role": "assistant", "content": "No."}])}, "Rain?", "No."),
        (
            {
                "messages": [
                    {"from": None, "role": "user", "content": "Rain?", "tool_calls": None},
                    {"from": "gpt", "value": "No.", "role": None},
                ]
            },
            "Rain?",
            "No.",
        ),
    ],
)
def test_fields_that_carry_meaning_are_read(
    record: dict[str, Any], question: str, answer: str
) -> None:
    assert turns(record) == [("u", question, False), ("a", answer, True)]


def test_system_prompt_and_history_come_before_the_question() -> None:
    record = {
        "system_prompt": "In French.",
        "history": [["Hi", "Salut"], [None, None], ["Ca va?", None]],
        "query": "Bye",
        "response": "Adieu",
    }
    expected = [
        ("s", "In French.", False),
        ("u", "Hi", False),
        ("a", "Salut", True),
        ("u", "Ca va?", False),
        ("u", "Bye", False),
        ("a", "Adieu", True),
    ]
    assert turns(record) == expected
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Salut"}]
    assert turns(record | {"history": said})[1:3] == expected[1:3]


def test_of_prompt_and_completion_as_turns_only_the_completion_is_learned() -> None:
    record = {
        "prompt": [*ASKED, {"role": "assistant", "content": "No."}, *ASKED],
        "completion": [{"role": "assistant", "content": "Yes."}],
    }
    assert [trains for _, _, trains in turns(record)] == [False, False, False, True]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}, {"loss": "false"}, {"train": 0}])
def test_turns_that_are_not_to_be_learned_stay_as_context(flag: dict[str, Any]) -> None:
    wrong, right = {"role": "assistant", "content": "5"}, {"role": "assistant", "content": "4"}
    record = {"messages": [*ASKED, wrong | flag, *ASKED, right | {"weight": 1, "train": None}]}
    assert [trains for _, _, trains in turns(record)] == [False, False, False, True]
    with pytest.raises(LeftOut, match="none of its turns is to be learned"):
        to_example({"messages": [*ASKED, wrong | flag]})


def test_calls_are_learned_and_what_a_tool_answers_is_not() -> None:
    record = {
        "messages": [
            *ASKED,
            {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": "c1"}]},
            {"role": "tool", "content": {"sky": "grey"}, "tool_call_id": "c1"},
            {"role": "assistant", "content": "Yes."},
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "weather"}}]),
    }
    example = to_example(record)
    assert example.trains == (False, True, False, True)
    assert example.tools == [{"type": "function", "function": {"name": "weather"}}]
    assert example.messages[1]["tool_calls"] == [{"type": "function", "id": "c1", **CALL}]
    assert example.messages[2]["content"] == '{"sky": "grey"}'


@pytest.mark.parametrize(
    "turn",
    [
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Ostra"}'}}],
        },
        {"role": "assistant", "function_call": CALL["function"], "tool_calls": []},
        {
            "role": "assistant",
            "tool_calls": [{"name": "weather", "arguments": {"city": "Ostra", "day": None}}],
        },
    ],
)
def test_a_call_is_the_same_in_every_spelling(turn: dict[str, Any]) -> None:
    record = {"conversations": [*ASKED, turn, {"from": "observation", "value": "grey"}]}
    example = to_example(record)
    assert example.messages[1].get("tool_calls") == [CALL]
    assert example.trains == (False, True, False)


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "Yes.", "reasoning_content": "Clouds."},
        {"content": "Yes.", "thinking": "Clouds.", "reasoning": ""},
        {
            "content": [
                {"type": "thinking", "thinking": "Clouds."},
                {"type": "text", "text": "Yes."},
            ]
        },
    ],
)
def test_reasoning_goes_beside_the_answer(answer: dict[str, Any]) -> None:
    (_, turn) = to_example({"messages": [*ASKED, {"role": "assistant", **answer}]}).messages
    assert turn == {"role": "assistant", "content": "Yes.", "reasoning_content": "Clouds."}
    flat = to_example({"question": "Rain?", "reasoning": "Clouds.", "answer": "Yes."})
    assert flat.messages[1] == turn


PAIR = {"chosen": "good", "rejected": "bad"}


def test_preference_records_train_on_what_was_chosen_only_where_it_is_asked_for() -> None:
    before = [
        {"from": "human", "value": "a?"},
        {"from": "gpt", "value": "b."},
        {"from": "human", "value": "c?"},
    ]
    whole = [*ASKED, {"role": "assistant", "content": "good"}]
    records: list[tuple[dict[str, Any], list[bool]]] = [
        ({"prompt": "a?", **PAIR}, [False, True]),
        (
            {"conversations": before, "chosen": {"from": "gpt", "value": "good"}, "rejected": "x"},
            [False, False, False, True],
        ),
        ({"prompt": "Rain?", "chosen": whole, "rejected": whole}, [False, True]),
    ]
    for record, learned in records:
        with pytest.raises(BadRecord, match=r"preference data \(chosen, rejected\)"):
            to_example(record)
        example = to_example(record, Rules(preference="chosen"))
        assert list(example.trains) == learned
        assert example.messages[-1]["content"] == "good"
    with pytest.raises(BadRecord, match=r"preference data \(rejected_response\)"):
        to_example({"messages": whole, "rejected_response": "bad"})


def test_an_answer_that_is_marked_as_unwanted_is_left_out_unless_it_is_asked_for() -> None:
    record = {"prompt": "a?", "completion": "b", "label": False}
    for unwanted in (record, record | {"label": "False"}, {"kto_tag": False, **record}):
        with pytest.raises(LeftOut, match="is false: an answer that is not wanted"):
            to_example(unwanted)
    assert interpret(record | {"label": True}).unused == ()
    assert interpret(record | {"label": 0}).unused == ("label",)  # a class, no verdict
    assert to_example(record, Rules(where={"label": [True, False]})).trains == (False, True)
    with pytest.raises(LeftOut, match="another label"):
        to_example(record, Rules(where={"label": [True]}))


def test_the_weight_of_a_record_is_kept_and_nought_leaves_it_out() -> None:
    record = {"prompt": "a?", "completion": "b"}
    assert to_example(record | {"weight": "2.5"}).weight == 2.5
    for value in (-1, math.inf, True, "heavy"):
        with pytest.raises(BadRecord, match="weight is"):
            to_example(record | {"weight": value})
    for left in ({"weight": 0}, {"train": False}, {"loss": False}):
        with pytest.raises(LeftOut):
            to_example(record | left)
    assert interpret(record | {"loss": 0.3}).unused == ("loss",)  # a measurement


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "a part of type 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": "<image>\nWhat?"}]}, "turn 1 holds <image>"),
        ({"question": "What is in <image 1>?", "answer": "x"}, "question holds <image 1>"),
        ({"prompt": "What?", "completion": "x", "images": ["a.png"]}, "images: only text"),
        (
            {"messages": [*ASKED, {"role": "assistant", "content": "", "tool_calls": []}]},
            "its tool_calls hold no call",
        ),
        (
            {"messages": [*ASKED, {"role": "assistant", "content": "x", "weight": 0.5}]},
            "turn 2 has weight 0.5",
        ),
        ({"messages": "hello"}, "messages is text, and no JSON list of turns"),
        ({"prompt": ["a", "b"], "completion": "x"}, "prompt is a list of texts"),
        ({"chosen": "x", "rejected": "y"}, "chosen without a prompt"),
        ({"text": " "}, "text is empty"),
        ({"\ud83d_id": 1}, r"\\ud83d_id"),
    ],
)
def test_what_cannot_be_trained_on_is_named(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRecord, match=reason.replace("(", r"\(")):
        to_example(record, Rules(preference="chosen"))


def test_an_html_tag_in_an_answer_is_text() -> None:
    assert turns({"prompt": "Embed a film", "completion": "<video>\n</video>"})[1][2]


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["red", "blue"], 1, 1),
        (["red", "blue"], "B", 1),
        (["B", "A"], "A", 1),  # the text of a choice counts before its letter
        (["0", "1"], "1", 1),
        (["1", "0"], "1", 0),
        ([1.5, 1.0], 1.0, 1),
        ({"text": ["red", "blue"], "label": ["1", "2"]}, "1", 0),
        ({"text": ["red", "blue"], "label": ["A", "B"]}, "B", 1),
        ("['red', 'blue']", "blue", 1),
    ],
)
def test_an_answer_says_which_choice_by_one_rule(choices: Any, answer: Any, right: int) -> None:
    assert read_choices({"question": "q", "choices": choices, "answer": answer})[2] == right


@pytest.mark.parametrize(
    ("choices", "answer", "reason"),
    [
        (["yes", "no"], True, "answer is true, which is no index"),
        (["red", "blue"], "1", "is no index"),
        (["red", "blue"], 1.0, "1.0 is no index"),
        ([2, 1, 0], 2, "choice 2, counted from 0, or the choice that is written 2"),
    ],
)
def test_an_answer_that_may_mean_two_choices_is_refused(
    choices: Any, answer: Any, reason: str
) -> None:
    with pytest.raises(BadRecord, match=reason):
        read_choices({"question": "q", "choices": choices, "answer": answer})


def test_the_key_of_arc_is_read() -> None:
    record = {
        "question": "Which?",
        "choices": {"text": ["red", "blue"], "label": ["A", "B"]},
        "answerKey": "B",
        "id": "x",
    }
    assert turns(record) == [("u", "Which?\nA. red\nB. blue", False), ("a", "blue", True)]
    assert interpret(record).unused == ("id",)


def test_columns_are_mapped_and_their_rivals_not_read() -> None:
    record = {"q": "Who?", "a": "Holt", "prompt": "### Who?", "text": "", "lang": "en", "nr": 7}
    rules = Rules(fields={"prompt": "q", "completion": "a"}, where={"lang": ["en", "fr"]})
    read = interpret(record, rules)
    assert turns(record, rules) == [("u", "Who?", False), ("a", "Holt", True)]
    assert (read.shape, read.unused, read.missing) == ("prompt/completion", ("nr", "prompt"), ())
    assert interpret({"question": "Who?", "answer": "Holt", "lang": "fr"}, rules).missing == (
        "q",
        "a",
    )
    with pytest.raises(LeftOut):
        interpret(record | {"lang": "de"}, rules)
    assert interpret({"text": "x", "year": "2020"}, Rules(where={"year": [2020]})).shape == "text"


def test_fields_of_records_and_of_turns_that_were_not_read_are_told() -> None:
    said = [ASKED[0] | {"id": 1, "name": "Ann"}, {"role": "assistant", "content": "No.", "id": 2}]
    record = {"id": "x", "messages": said, "tags": [], "note": None, "source": "web", "prompt": "y"}
    read = interpret(record)
    assert (read.shape, read.unused) == ("messages", ("id", "source", "prompt", "messages.id"))


def test_text_alone_is_raw_text() -> None:
    assert to_example({"text": "A tale.\n", "weight": 2}) == Example((), (), None, 2.0, "A tale.\n")
    assert content_hash(Example((), (), text="a ")) == content_hash(Example((), (), text="a"))
    assert content_hash(Example((), (), text="a")) != content_hash(
        Example.chat([{"role": "user", "content": "a"}])
    )
