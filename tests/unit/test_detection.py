"""Distribution, judge's prompt, published distributions: everything of detection that needs no
engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from transformers import AutoTokenizer

from versatune_ray.detection.distribution import PUBLISHED, given, total_variation
from versatune_ray.detection.generate import is_degenerate, request_seed
from versatune_ray.detection.prompt import (
    Node,
    Question,
    answer_ids,
    combine,
    nodes,
    order_of,
    render,
)
from versatune_ray.errors import UserError
from versatune_ray.runtime import engine

QWEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "models" / "qwen2.5_tokenizer"
SIX = ["law", "medicine", "finance", "science", "code", "general"]


def test_total_variation_is_half_the_absolute_difference() -> None:
    assert total_variation(np.array([0.5, 0.5, 0]), np.array([0.3, 0.3, 0.4])) == pytest.approx(0.4)


def test_a_published_distribution_is_normalised_and_put_in_the_configured_order() -> None:
    shares = dict(zip(SIX[::-1], given("Llama-2-7B", SIX[::-1])["share"], strict=True))
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["general"] == pytest.approx(64.97 / sum(PUBLISHED["llama-2-7b"]))


def test_a_distribution_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "distribution.json"
    file.write_text(json.dumps({"domains": ["code", "law"], "share": [3, 1]}))
    assert given(str(file), ["law", "code"])["share"] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "neither a file nor one of llama-2-7b"),
        ("{}", "needs `domains` and `share`"),
        ('{"domains": ["law"], "share": [1]}', "are not"),
    ],
)
def test_a_wrong_distribution_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "d.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=words):
        given(str(file), ["law", "code"])


def question(**settings: Any) -> Question:
    return Question(("law", "code", "art"), {"law": "statutes"}, **settings)


def test_the_prompt_before_the_text_is_the_same_for_every_text(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    before, after = render(tokenizer, question(template="w3 w4 {text} w5").prompt(0))
    assert before == [tokenizer.bos_token_id, 3, 4]
    assert after == [5]


def test_a_prompt_without_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"has no \{text\}"):
        question(template="which domain?")


def test_option_names_end_where_one_token_letters_end() -> None:
    assert Question(tuple(map(str, range(27))), {}).option_names(0)[-1] == "a"
    with pytest.raises(UserError, match="63 domains"):
        Question(tuple(map(str, range(63))), {})


def test_options_rotate_with_the_order_and_names_follow_them() -> None:
    asked = question(permute=True)
    assert asked.orders == 3
    assert "A. law: statutes\nB. code\nC. art" in asked.prompt(0)
    assert "A. code\nB. art\nC. law: statutes" in asked.prompt(1)
    assert asked.option_names(1) == ["C", "A", "B"]
    ids = np.arange(3000)
    orders = order_of(ids, 3)
    # Domain d stands at position (d - order) mod 3, as the prompts above show.
    assert (asked.positions(ids)[:, 0] == np.array([0, 2, 1])[orders]).all()
    # Orders are as frequent within every repeat (id mod T) as in all, T a multiple of k or not:
    # standard deviation 0.015.
    for repeats in (3, 5):
        shares = [np.mean(orders[ids % repeats == repeat] == 0) for repeat in range(repeats)]
        np.testing.assert_allclose(shares, 1 / 3, atol=0.07)


def test_options_do_not_rotate_where_the_prompt_does_not_list_them() -> None:
    assert question(template="{text}", permute=True).orders == 1
    assert question(labels="names", permute=True).option_names(2) == ["law", "code", "art"]
    assert question(permute=False).orders == 1


def test_labels_whose_first_tokens_differ_need_one_request() -> None:
    assert nodes([[5], [6, 9], [7]], end=1) == [Node((), (5, 6, 7), ((0,), (1,), (2,)))]


def test_labels_that_share_tokens_are_asked_where_they_part() -> None:
    # "c d" and "c e" part after "c"; "c" ends there, which the end token tells.
    parted = nodes([[3], [4, 5], [4, 6], [4]], end=1)
    assert parted == [
        Node((), (3, 4), ((0,), (1, 2, 3))),
        Node((4,), (5, 6, 1), ((1,), (2,), (3,))),
    ]
    values = [np.array([[0.25, 0.75]]), np.array([[0.5, 0.3, 0.2]])]
    np.testing.assert_allclose(combine(parted, values, 4), [[0.25, 0.375, 0.225, 0.15]])


def test_a_shared_beginning_of_all_labels_costs_no_request() -> None:
    assert nodes([[8, 2, 3], [8, 2, 4]], end=1) == [Node((8, 2), (3, 4), ((0,), (1,)))]


@pytest.mark.parametrize(
    ("labels", "end"), [([[3], [3]], 1), ([[3], [3]], None), ([[3], [3, 4]], None)]
)
def test_labels_that_tokens_cannot_tell_apart_are_refused(
    labels: list[list[int]], end: int | None
) -> None:
    with pytest.raises(UserError, match=r"detection\.judge\.labels"):
        nodes(labels, end)


def test_one_token_repeated_is_degenerate_and_a_short_text_is_not() -> None:
    assert is_degenerate([7] * 9 + [8])
    assert not is_degenerate([7] * 8 + [8, 8])
    assert not is_degenerate([7] * 7)


def test_a_short_cycle_that_fills_a_text_is_degenerate() -> None:
    assert is_degenerate([1, 2] * 4) and is_degenerate([5, 6, 7] * 20 + [5])
    assert is_degenerate([90, 91, 92] + list(range(32)) * 8)  # begins with other words
    assert is_degenerate([1, 2, 3] * 9 + [1, 2, 4])  # one of 30 is another
    assert not is_degenerate([1, 2, 3] * 3)  # three rounds only
    assert not is_degenerate(list(range(33)) * 8)  # a long one
    assert not is_degenerate(list(range(100, 160)) + [1, 2, 3] * 40)  # two thirds of it
    words = np.random.default_rng(0).zipf(1.3, size=(200, 256)) % 1000
    assert not any(map(is_degenerate, words))


def test_no_two_sequences_of_a_store_share_a_seed_even_in_32_bits() -> None:
    seeds = [request_seed(7, row) for row in range(100_000)]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert max(seeds) >= 1 << 40  # more than 31 bits are used
    assert request_seed(7, 0) != request_seed(8, 0) == request_seed(8, 0)
    other = {request_seed(8, row) for row in range(100_000)}
    assert not other & set(seeds)
    # the last row that has one, and beyond
    assert request_seed(7, (1 << 32) - 1) not in seeds
    with pytest.raises(ValueError, match="row: 4294967296 is not within"):
        request_seed(7, 1 << 32)


def test_engines_that_seed_no_request_draw_a_seed_each(monkeypatch: pytest.MonkeyPatch) -> None:
    class Given(BaseModel):
        model_source: str = "m"
        engine_kwargs: dict[str, int]

    monkeypatch.setattr(
        engine,
        "engine_stage",
        lambda config: (dict, {"fn_constructor_kwargs": config.model_dump()}),
    )
    shared = Given(engine_kwargs={"max_model_len": 9})
    replicas = [engine.started(shared, fetched=False, own_seeds=True) for _ in range(3)]
    assert len({told["engine_kwargs"]["seed"] for told in replicas}) == 3
    assert shared.engine_kwargs == {"max_model_len": 9}  # the others draw their own
    told = engine.started(shared, fetched=False, own_seeds=False)
    assert told == {"model_source": "m", "engine_kwargs": {"max_model_len": 9}}


@pytest.mark.skipif(not QWEN.is_dir(), reason="needs the shared test data")
def test_with_a_chat_template_the_judge_is_asked_in_chat_and_answers_one_token_per_option() -> None:
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    asked = Question(tuple(SIX), {"law": "statutes"})
    before, after = render(tokenizer, asked.prompt(0))
    text = tokenizer.decode(before)
    assert "A. law: statutes\nB. medicine\n" in text
    assert text.startswith("<|im_start|>")
    assert tokenizer.decode(after).endswith("<|im_start|>assistant\n")
    assert [tokenizer.decode(ids) for ids in answer_ids(tokenizer, asked.option_names(0))] == list(
        "ABCDEF"
    )
    assert len(nodes(answer_ids(tokenizer, SIX), tokenizer.eos_token_id)) == 1
    assert (
        len(
            nodes(
                answer_ids(tokenizer, ["data science", "data engineering", "law"]),
                tokenizer.eos_token_id,
            )
        )
        == 2
    )
