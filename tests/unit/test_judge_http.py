"""The judge over HTTP against a stand-in endpoint: what is asked, and what is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from judge_server import KEY, LETTERS, Answer, StandIn, ask, batch, judge_at, run, says

from versatune_ray.detection.labels import THOUGHTS


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    with closing(StandIn()) as server:
        yield server


def test_probabilities_of_the_options_are_summed_and_normalised(server: StandIn) -> None:
    server.behave = lambda body, times: says("B", {" B": 0.5, "the": 0.1, "A": 0.2, "B": 0.1})
    (row,) = ask(judge_at(server), "some text")
    assert row["values"] == pytest.approx([0.25, 0.75, 0])  # 0.2 and 0.5 + 0.1, of 0.8
    assert row["mass"] == pytest.approx(0.8)
    assert (row["answer"], row["discarded"], row["failed"]) == (None, None, False)
    (body,) = server.bodies
    assert {
        "model": "big",
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 20,
    }.items() <= body.items()
    assert body["messages"] == [{"role": "user", "content": "Which?\nsome text\nAnswer:"}]
    assert server.authorizations == {f"Bearer {KEY}"}


def test_a_name_is_recognised_by_its_first_token(server: StandIn) -> None:
    server.behave = lambda body, times: says("med", {"med": 0.3, "law": 0.1, "s": 0.2})
    (row,) = ask(
        judge_at(server, questions=[("{text}", ["law", "medicine", "science", "sport"])]), "text"
    )
    assert row["values"] == pytest.approx([0.25, 0.75, 0, 0])  # "s" could begin two of them


def test_values_are_in_domain_order_whatever_the_label_order(server: StandIn) -> None:
    server.behave = lambda body, times: says("A", {"A": 1.0})
    judge = judge_at(server, questions=[*LETTERS, ("Now: {text}", ["C", "A", "B"])])
    assert ask(judge, "text", order=1)[0]["values"] == [0, 1, 0]
    assert server.bodies[0]["messages"][0]["content"] == "Now: text"


def test_a_text_is_cut_and_its_braces_are_left_alone(server: StandIn) -> None:
    ask(judge_at(server, longest_text=8), "{a} {text} and more")
    assert server.bodies[0]["messages"][0]["content"] == "Which?\n{a} {tex\nAnswer:"


def test_no_label_among_the_likely_tokens_discards_the_row(server: StandIn) -> None:
    server.behave = lambda body, times: says("The", {"The": 0.9, "This": 0.1})
    (row,) = ask(judge_at(server), "text")
    assert row["discarded"] == "no label among the likely tokens"
    assert np.isnan(row["values"]).tolist() == [True] * 3
    assert (row["mass"], row["failed"]) == (0, False)


def test_without_log_probabilities_the_written_text_counts(server: StandIn) -> None:
    server.behave = lambda body, times: says(
        " B" if "good" in body["messages"][0]["content"] else "The"
    )
    good, bad = ask(judge_at(server), "good", "bad")
    assert (good["values"], good["mass"], good["answer"], good["discarded"]) == (
        [0, 1, 0],
        1,
        " B",
        None,
    )
    assert (bad["answer"], bad["discarded"]) == ("The", "no label in the answer")


def test_in_label_mode_the_judge_writes_and_a_label_is_read(server: StandIn) -> None:
    texts = {"1": "The answer is (C).", "2": "I cannot say. " * 50, "3": None, "4": "B"}
    server.behave = lambda body, times: says(texts[body["messages"][0]["content"]])
    rows = ask(judge_at(server, "label", questions=[("{text}", ["A", "B", "C"])]), *texts)
    assert [row["discarded"] for row in rows] == [
        None,
        "no label in the answer",
        "empty answer",
        None,
    ]
    assert [rows[0]["values"], rows[3]["values"]] == [[0, 0, 1], [0, 1, 0]]
    assert [row["mass"] for row in rows] == [1] * 4
    assert [row["answer"] for row in rows] == [
        "The answer is (C).",
        ("I cannot say. " * 50)[:200],
        "",
        "B",
    ]
    assert not any(row["failed"] for row in rows)
    assert all(
        body["max_tokens"] == 50 and body["temperature"] == 0 and "logprobs" not in body
        for body in server.bodies
    )


def test_batches_share_the_bound_on_requests_and_keep_their_order(server: StandIn) -> None:
    def behave(body: dict[str, Any], times: int) -> Answer:
        i = int(body["messages"][0]["content"])
        return says(
            "A", {"A": (i + 1) / 100, "B": 1 - (i + 1) / 100}, delay=0.01 + 0.002 * (i * 7 % 13)
        )

    server.behave = behave
    judge = judge_at(server, questions=[("{text}", ["A", "B"])])

    table = run(judge, *(batch(*map(str, range(start, start + 30))) for start in (0, 30, 60)))
    assert 1 < server.most_at_once <= 4
    first = [values[0] for values in table["values"].to_pylist()]
    np.testing.assert_allclose(first, (np.arange(90) + 1) / 100)


def test_a_batch_without_rows_has_all_columns(server: StandIn) -> None:
    assert run(judge_at(server), batch("text").slice(0, 0)).num_rows == 0


def test_an_endpoint_that_wants_other_parameters_gets_them(
    server: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    def behave(body: dict[str, Any], times: int) -> Answer:
        for name, message in (
            ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."),
            ("temperature", "Unsupported value: 'temperature' does not support 0."),
        ):
            if name in body:
                return Answer({"error": {"message": message}}, 400)
        return says("B")

    server.behave = behave
    rows = ask(judge_at(server, "label"), *map(str, range(20)))
    assert [row["values"] for row in rows] == [[0, 1, 0]] * 20
    assert server.bodies[-1]["max_completion_tokens"] == 50
    assert len(server.bodies) <= 20 + 2 * 4  # each request in flight learns it once
    assert capsys.readouterr().out.count("takes no temperature") == 1


def test_thoughts_without_an_answer_have_a_reason_of_their_own(server: StandIn) -> None:
    message = {"content": None, "reasoning_content": "It may be B, or"}
    server.behave = lambda body, times: Answer({"choices": [{"message": message}]})
    (row,) = ask(judge_at(server, "label"), "text")
    assert row["discarded"] == THOUGHTS and not row["failed"]
