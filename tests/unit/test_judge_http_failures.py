"""What a judge over HTTP tries again, what fails one row, what stops everything; and its key, which
is told nowhere.
"""

from __future__ import annotations

import logging
import pickle
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from judge_server import KEY, Answer, StandIn, ask, judge_at, says

from versatune_ray.errors import UserError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    with closing(StandIn()) as server:
        yield server


def test_an_endpoint_that_refuses_log_probabilities_is_told_at_once(server: StandIn) -> None:
    server.behave = lambda body, times: Answer(
        {"error": {"message": "logprobs are not supported by this model"}}, 400
    )
    with pytest.raises(UserError, match=r"detection\.judge\.answer=label"):
        ask(judge_at(server), "text")


def test_too_many_requests_are_repeated_when_the_server_says(server: StandIn) -> None:
    server.behave = lambda body, times: (
        says("A", {"A": 1.0})
        if times
        else Answer({"error": {"message": "slow"}}, 429, Retry_After="1")
    )
    start = time.perf_counter()
    rows = ask(judge_at(server, retries=1), "one", "two")
    assert time.perf_counter() - start >= 1
    assert [row["values"] for row in rows] == [[1, 0, 0]] * 2 and len(server.bodies) == 4


def test_a_server_error_is_repeated(server: StandIn) -> None:
    server.behave = lambda body, times: says("A", {"A": 1.0}) if times == 2 else Answer("oops", 500)
    assert ask(judge_at(server, retries=2), "text")[0]["values"] == [1, 0, 0]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer("upstream is gone", 502), "upstream is gone"),
        (Answer({"detail": "too long"}, 400), "too long"),
        (says("A", {"A": 1.0}, delay=2.5), "Request timed out."),
        (Answer("{not json"), "the reply is no chat completion"),
        (Answer("<html>", Content_Type="text/html"), "the reply is no chat completion"),
        (Answer({"choices": []}), "the reply is no chat completion"),
        (Answer([]), "the reply is no chat completion"),
    ],
    ids=["502", "400", "time-out", "garbage", "page", "no choice", "list"],
)
def test_a_request_that_fails_for_good_is_a_row_of_its_own(
    server: StandIn, answer: Answer, words: str
) -> None:
    server.behave = lambda body, times: (
        answer if "bad" in body["messages"][0]["content"] else says("A", {"A": 1.0})
    )
    good, bad = ask(judge_at(server, timeout=1.5), "good", "bad")
    assert good["values"] == [1, 0, 0]
    assert (
        bad["failed"]
        and bad["discarded"].startswith("judging failed: ")
        and words in bad["discarded"]
    )
    assert np.isnan([*bad["values"], bad["mass"]]).tolist() == [True] * 4


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "environment variable JUDGE_API_KEY"),
        (403, "environment variable JUDGE_API_KEY"),
        (404, "no model 'big' there"),
    ],
)
def test_a_refused_key_or_model_stops_everything_and_tells_no_key(
    server: StandIn, status: int, words: str
) -> None:
    server.behave = lambda body, times: Answer(
        {"error": {"message": f"Bearer {KEY} may not"}}, status, delay=0.05
    )
    with pytest.raises(UserError, match=words) as caught:
        ask(judge_at(server), *map(str, range(200)))
    assert server.url in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__context__ is None
    assert "[key]" in str(caught.value) and KEY not in "".join(
        traceback.format_exception(caught.value)
    )
    assert len(server.bodies) <= 8  # of 200: the rest was called off


def test_the_key_is_told_nowhere(server: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    echoes = {
        "json": Answer({"error": {"message": f"no: Bearer {KEY}"}}, 500),
        "other": Answer({"detail": [f"Bearer {KEY}"]}, 422),
        "plain": Answer(f"Authorization: Bearer {KEY}", 503),
        "answer": says(f"B. {KEY}"),
    }
    server.behave = lambda body, times: echoes[body["messages"][0]["content"]]
    judge = judge_at(server, "label", questions=[("{text}", ["A", "B", "C"])])
    before = pickle.dumps(judge)
    with caplog.at_level(logging.DEBUG):
        rows = ask(judge, *echoes)  # which looks for the key in all of them
    assert [row["failed"] for row in rows] == [True, True, True, False]
    assert [("[key]" in (row["answer"] or row["discarded"])) for row in rows] == [True] * 4
    assert KEY not in caplog.text and "HTTP Request" not in caplog.text
    assert KEY not in repr(judge) and KEY.encode() not in before


def test_without_a_key_none_is_sent(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_API_KEY")
    ask(judge_at(server), "text")
    assert server.authorizations == {"Bearer none"}
    server.behave = lambda body, times: Answer({"error": {"message": "who are you?"}}, 401)
    with pytest.raises(
        UserError,
        match=r"wants a key, "
        r"and there is none in the workers' environment variable JUDGE_API_KEY.*who are you\?",
    ):
        ask(judge_at(server), "text")


def test_what_cannot_be_a_key_is_not_sent(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "two\nsecrets")
    with pytest.raises(
        UserError, match="JUDGE_API_KEY: this environment variable of the workers holds no key"
    ) as caught:
        ask(judge_at(server), "text")
    assert "secret" not in str(caught.value) and not server.bodies


def test_an_endpoint_that_is_down_stops_everything() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    rows = ask(judge_at(url), *map(str, range(11)))
    assert all(row["failed"] and "Connection error." in row["discarded"] for row in rows)
    with pytest.raises(UserError, match=f"{url}: 12 requests in a row failed"):
        ask(judge_at(url), *map(str, range(100)))


def test_failures_with_replies_between_them_are_no_reason_to_stop(server: StandIn) -> None:
    server.behave = lambda body, times: (
        Answer("", 500) if int(body["messages"][0]["content"]) % 3 else says("A", {"A": 1.0})
    )
    rows = ask(
        judge_at(server, questions=[("{text}", ["A", "B"])], concurrency=1), *map(str, range(30))
    )
    assert [row["failed"] for row in rows] == [bool(i % 3) for i in range(30)]


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "", "api_key"])
def test_only_a_judges_key_may_be_named(
    server: StandIn, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, "AKIA-of-the-cluster")
    with pytest.raises(UserError, match=r"http\.key_variable: .* does not end in _API_KEY"):
        ask(judge_at(server, key_variable=variable), "text")
    assert not server.bodies
    if variable:
        monkeypatch.setenv("VERSATUNE_ALLOWED_KEYS", f"OTHER, {variable}")
        ask(judge_at(server, key_variable=variable), "text")
        assert server.authorizations == {"Bearer AKIA-of-the-cluster"}


def test_a_redirection_is_not_followed(server: StandIn) -> None:
    server.behave = lambda body, times: Answer("", 307, Location=f"{server.url}/elsewhere")
    (row,) = ask(judge_at(server), "text")
    assert row["failed"] and len(server.bodies) == 1


def test_what_an_endpoint_says_does_not_steer_a_terminal(server: StandIn) -> None:
    server.behave = lambda body, times: (
        says("A \x1b[2Jx") if "good" in body["messages"][0]["content"] else Answer("\x1b[31m", 502)
    )
    good, bad = ask(judge_at(server, "label"), "good", "bad")
    assert "\x1b" not in good["answer"] and "\x1b" not in bad["discarded"]


def test_a_parameter_that_is_refused_stops_everything_at_once(server: StandIn) -> None:
    server.behave = lambda body, times: Answer(
        {"error": {"message": "Unrecognized parameter: 'messages'"}}, 400, delay=0.05
    )
    with pytest.raises(UserError, match=r"refuses what every request says.*'messages'"):
        ask(judge_at(server, "label"), *map(str, range(50)))
    assert len(server.bodies) <= 8
