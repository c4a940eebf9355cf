"""What a judge's token or answer is read as."""

from __future__ import annotations

import time

import pytest

from versatune_ray.detection.labels import (
    EMPTY,
    NONE,
    REFUSED,
    SEVERAL,
    label_of_token,
    parse_label,
)

LETTERS = ["A", "B", "C", "D"]
NAMES = ["law", "medicine", "finance", "computer science", "science"]


@pytest.mark.parametrize(
    "text",
    [
        *("B", " b\n", "B.", "**B**", '"B"', "(B)", "`B`", "[B]", "“B”"),
        *(
            "Answer: B",
            "**Answer:** B",
            "answer = B",
            "The answer is (B).",
            "The correct option is **B**",
            "The answer is the letter B",
        ),
        *(
            "The answer is B because it is about drugs",
            "Domain: B. medicine",
            "The answer is not A but B.",
        ),
        *(
            "B. medicine",
            "(B) medicine",
            "B: medicine",
            "B - medicine",
            "B\n\nIt is about drugs.",
            "B. medicine, not A.",
        ),
        *("A text about drugs, so B.", "I would choose option B here", "It is 'B'."),
        "<think>A. or C. or D.</think>\nB",
        "A. law: no\nB. medicine: yes\n\nAnswer: B",
    ],
)
def test_a_letter_is_found(text: str) -> None:
    assert parse_label(text, LETTERS) == (1, None)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *(("law", 0), ("Law.", 0), ("- *medicine*", 1), ("_law_", 0), ("Domain: Finance", 2)),
        *(("The text belongs to medicine and nothing else", 1), ("Answer: law, not medicine", 0)),
        *(("It is about computer science", 3), ("Science: it is about law", 4)),
    ],
)
def test_a_name_is_found(text: str, label: int) -> None:
    assert parse_label(text, NAMES) == (label, None)


@pytest.mark.parametrize(
    ("text", "names", "reason"),
    [
        *((text, LETTERS, EMPTY) for text in ("", " \n", "<think>B</think>")),
        *(
            (text, LETTERS, NONE)
            for text in (
                "A legal text",
                "Answer: A legal text",
                "E",
                "banana",
                "<think>It may be B.",
                "Not B.",
                "***",
            )
        ),
        *(
            (text, LETTERS, SEVERAL)
            for text in (
                "A or B",
                "A/B",
                "Answer: A or B",
                "The answer is B, C",
                "A. law\nB. medicine",
                "It is (A) (B)",
            )
        ),
        *((text, NAMES, NONE) for text in ("lawful", "outlaw", "medical", "not law")),
        *(
            (text, NAMES, SEVERAL)
            for text in ("law or finance", "law, finance", "science and computer science")
        ),
    ],
)
def test_an_unclear_answer_has_a_reason(text: str, names: list[str], reason: str) -> None:
    assert parse_label(text, names) == (None, reason)


def test_a_name_may_end_in_punctuation() -> None:
    assert parse_label("C++", ["c", "c++"]) == (1, None)
    assert parse_label("It is C++ code", ["rust", "c++"]) == (1, None)


def test_lettered_options_beyond_z_differ_by_case() -> None:
    assert parse_label("Answer: a", ["A", "a"]) == (1, None)
    assert label_of_token("a", ["A", "a"]) == 1


def test_a_long_answer_is_read_quickly() -> None:
    start = time.perf_counter()
    for text in ("-" * 2000, "\n" * 2000, "A " * 1000, "Answer:" + " *" * 1000):
        parse_label(text + "x", LETTERS)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("token", "names", "label"),
    [
        *(
            ("B", LETTERS, 1),
            (" B", LETTERS, 1),
            ("b", LETTERS, None),
            ("", LETTERS, None),
            ("Be", LETTERS, None),
        ),
        *(
            ("law", NAMES, 0),
            (" Med", NAMES, 1),
            ("comp", NAMES, 3),
            ("sci", NAMES, 4),
            ("laws", NAMES, None),
            (" ", NAMES, None),
        ),
        *(("law", ["lawsuit", "law"], 1), ("la", ["lawsuit", "law"], None)),
    ],
)
def test_a_token_is_an_option_or_the_beginning_of_exactly_one(
    token: str, names: list[str], label: int | None
) -> None:
    assert label_of_token(token, names) == label


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that. It may break the law.",
        "I cannot assist with this request, since it asks for medicine.",
        "I’m unable to provide an assessment of finance.",
        "I won't classify this text about law and medicine.",
        "抱歉，我无法回答 law。",
        "I can't help with that.",
    ],
)
def test_a_refusal_that_names_a_domain_is_no_label(text: str) -> None:
    assert parse_label(text, NAMES) == (None, REFUSED)


@pytest.mark.parametrize(
    ("text", "names", "label"),
    [
        ("It isn't law. It is finance.", NAMES, 2),
        ("This text belongs to medicine. It does not belong to law.", NAMES, 1),
        ("It is about law rather than medicine", NAMES, 0),
        ("I can't help with everything, but the answer is law.", NAMES, 0),
        ("It is neither A nor B, so C", LETTERS, 2),
        ("答案是B", LETTERS, 1),
        ("答案：A。", LETTERS, 0),
        ("正解はC", LETTERS, 2),
    ],
)
def test_what_is_denied_is_not_chosen(text: str, names: list[str], label: int) -> None:
    assert parse_label(text, names) == (label, None)


def test_not_only_denies_nothing() -> None:
    assert parse_label("It is not only law but also medicine", NAMES) == (None, SEVERAL)
