"""Distribution, judge's prompt, published distributions: everything of detection that needs no engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from versatune_ray.detection.distribution import PUBLISHED, estimate, given, total_variation
from versatune_ray.detection.prompt import DEFAULT_PROMPT, answer_ids, option_names, render
from versatune_ray.errors import UserError

QWEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "models" / "qwen2.5_tokenizer"
SIX = ["law", "medicine", "finance", "science", "code", "general"]


def test_the_share_is_the_mean_probability_and_repeats_are_means_of_their_own() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.5, 0.5]])
    found = estimate(probabilities, np.array([0, 0, 1, 1]), repeats=2)
    np.testing.assert_allclose(found.share, [0.5, 0.5])
    np.testing.assert_allclose(found.repeats, [[0.75, 0.25], [0.25, 0.75]])
    # Sample variance of (1, .5, 0, .5) is 0.5 / 3; the half-width 1.96 · sqrt(0.5 / 3 / 4) = 0.4001.
    np.testing.assert_allclose(found.ci95[0], [0.0999, 0.9001], atol=1e-4)


def test_intervals_cover_the_true_share_in_95_percent_of_draws() -> None:
    rng, truth, covered = np.random.default_rng(0), np.array([0.1, 0.3, 0.6]), 0
    for _ in range(2000):
        draws = np.eye(3)[rng.choice(3, size=500, p=truth)]
        interval = estimate(draws, np.zeros(500, dtype=np.int64), 1).ci95
        covered += (interval[:, 0] <= truth) & (truth <= interval[:, 1])
    assert (np.abs(covered / 2000 - 0.95) < 0.02).all()


def test_a_repeat_without_a_judged_sequence_is_unknown_not_zero() -> None:
    found = estimate(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 0]), repeats=2)
    assert np.isnan(found.repeats[1]).all()


def test_one_sequence_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least two"):
        estimate(np.array([[1.0, 0.0]]), np.array([0]), 1)


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


def test_the_prompt_before_the_text_is_the_same_for_every_text(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    before, after = render(tokenizer, "w3 w4 {text} w5", ["law", "code"], {})
    assert before == [tokenizer.bos_token_id, 3, 4]
    assert after == [5]


def test_a_prompt_without_text_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match=r"has no \{text\}"):
        render(AutoTokenizer.from_pretrained(tiny_model), "which domain?", ["law", "code"], {})


def test_option_names_end_where_one_token_letters_end() -> None:
    assert option_names(["x"] * 27, "letters")[-1] == "a"
    with pytest.raises(UserError, match="63 domains"):
        option_names(["x"] * 63, "letters")


@pytest.mark.skipif(not QWEN.is_dir(), reason="needs the shared test data")
def test_with_a_chat_template_the_judge_is_asked_in_chat_and_answers_one_token_per_option() -> None:
    tokenizer = AutoTokenizer.from_pretrained(QWEN)
    before, after = render(tokenizer, DEFAULT_PROMPT, SIX, {"law": "statutes"})
    text = tokenizer.decode(before)
    assert "A. law: statutes\nB. medicine\n" in text
    assert text.startswith("<|im_start|>")
    assert tokenizer.decode(after).endswith("<|im_start|>assistant\n")
    assert [tokenizer.decode([i]) for i in answer_ids(tokenizer, SIX, "letters")] == list("ABCDEF")
    assert len(set(answer_ids(tokenizer, SIX, "names"))) == 6
    with pytest.raises(UserError, match="begin with the same token"):
        answer_ids(tokenizer, ["law", "law"], "names")
