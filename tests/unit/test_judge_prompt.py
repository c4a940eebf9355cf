"""The judge's question in a chat template that is made for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from versatune_ray.detection.prompt import DEFAULT_PROMPT, render
from versatune_ray.errors import UserError

NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (NEEDS_SYSTEM, "refuses a user's turn: no system"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "shows a user's text 2 times"),
        ("{{ messages[0].content[:20] }}", "shows a user's text 0 times"),
        ("{% for x in %}", "refuses a user's turn"),
        ("{{ messages[0].content + 1 }}", "refuses a user's turn"),
    ],
)
def test_a_template_that_is_not_for_users_is_refused_in_one_line(
    tokenizer: Any, template: str, words: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"detection\.judge\.path: its chat template") as caught:
        render(tokenizer, DEFAULT_PROMPT)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_template_for_users_is_taken(tokenizer: Any) -> None:
    tokenizer.chat_template = "w3 {{ messages[0].content }} w4"
    before, after = render(tokenizer, "w5 {text} w6")
    assert (tokenizer.decode(before), tokenizer.decode(after)) == ("<s> w3 w5", "w6 w4")
