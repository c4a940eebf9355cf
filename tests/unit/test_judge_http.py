"""The judge over HTTP against a stand-in endpoint: what is asked, what is read, what is tried
again, and what is never told.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import pickle
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from versatune_ray.detection.endpoint import Endpoint
from versatune_ray.detection.judge_http import HttpJudge
from versatune_ray.detection.judge_spec import JUDGED, judge_spec
from versatune_ray.detection.labels import THOUGHTS
from versatune_ray.errors import UserError
from versatune_ray.settings import Judge
from versatune_ray.settings.loading import load

KEY = "sk-very+secret/0123456789"
ROWS = pa.schema({"store": pa.int64(), **JUDGED})
LETTERS = [("Which?\n{text}\nAnswer:", ["A", "B", "C"])]


class Answer:
    """What the stand-in sends: a status, headers, a body, after a delay."""

    def __init__(self, body: Any, status: int = 200, delay: float = 0.0, **headers: str) -> None:
        self.status, self.delay = status, delay
        self.headers = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        self.body = body.encode() if isinstance(body, str) else json.dumps(body).encode()


def says(text: str | None, top: dict[str, float] | None = None, delay: float = 0.0) -> Answer:
    """A chat completion that writes ``text``; ``top`` gives probabilities of its first token."""
    content = [
        {
            "top_logprobs": [
                {"token": token, "logprob": math.log(p)} for token, p in (top or {}).items()
            ]
        }
    ]
    return Answer(
        {
            "choices": [
                {"message": {"content": text}, "logprobs": {"content": content} if top else None}
            ]
        },
        delay=delay,
    )


class StandIn:
    """An endpoint on 127.0.0.1 that answers with ``behave(body, times)``: ``times`` the same prompt
    was asked before.
    """

    def __init__(self) -> None:
        self.behave: Callable[[dict[str, Any], int], Answer] = lambda body, times: says(
            "A", {"A": 1.0}
        )
        self.bodies: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self.times: Counter[str] = Counter()
        self.lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # header and body in one packet; two cost 40 ms of delayed acknowledgement
            wbufsize = -1

            def do_POST(self) -> None:
                stand_in.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self.thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with self.lock:
            self.bodies.append(body)
            self.authorizations.add(handler.headers["Authorization"])
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            times = self.times[prompt]
            self.times[prompt] += 1
        answer = (
            self.behave(body, times) if handler.path == "/v1/chat/completions" else Answer("", 405)
        )
        time.sleep(answer.delay)
        with self.lock:
            self.at_once -= 1
        try:
            handler.send_response(answer.status)
            for name, value in answer.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(answer.body)))
            handler.end_headers()
            handler.wfile.write(answer.body)
            handler.wfile.flush()
        except ConnectionError:  # the judge did not wait
            handler.close_connection = True

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    server = StandIn()
    yield server
    server.close()


def judge_at(
    server: StandIn | str,
    answer: Any = "probabilities",
    questions: Any = LETTERS,
    longest_text: int = 100,
    **settings: Any,
) -> HttpJudge:
    url = server if isinstance(server, str) else server.url
    endpoint = Endpoint(
        url, "big", **({"key_variable": "JUDGE_API_KEY", "retries": 0, "concurrency": 4} | settings)
    )
    return HttpJudge(endpoint, questions, answer, answer_tokens=50, longest_text=longest_text)


def batch(*texts: str, order: int = 0) -> pa.Table:
    n = len(texts)
    return pa.table(
        {
            "id": np.arange(n) + 5,
            "store": np.arange(n) * 10,
            "text": list(texts),
            "order": np.full(n, order),
        }
    )


def run(judge: HttpJudge, *batches: pa.Table) -> pa.Table:
    """Judge the batches at the same time, on one loop as an actor does."""

    async def all_of_them() -> list[pa.Table]:
        try:
            return await asyncio.gather(*map(judge, batches))
        except UserError:
            # an actor's loop lives on, and so would requests that are not called off
            await asyncio.sleep(0.4)
            raise
        finally:
            if "_client" in vars(judge):
                await judge._client.close()

    tables = asyncio.run(all_of_them())
    assert all(table.schema == ROWS for table in tables)
    return pa.concat_tables(tables)


def ask(judge: HttpJudge, *texts: str, order: int = 0) -> list[dict[str, Any]]:
    table = run(judge, batch(*texts, order=order))
    assert table["id"].to_pylist() == [5 + i for i in range(len(texts))]
    assert table["store"].to_pylist() == [10 * i for i in range(len(texts))]
    rows: list[dict[str, Any]] = table.to_pylist()
    assert KEY not in str(rows)
    return rows


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


def test_an_endpoint_that_refuses_log_probabilities_is_told_at_once(server: StandIn) -> None:
    server.behave = lambda body, times: Answer(
        {"error": {"message": "logprobs are not supported by this model"}}, 400
    )
    with pytest.raises(UserError, match=r"detection\.judge\.answer=label"):
        ask(judge_at(server), "text")


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


def test_an_address_that_is_no_url_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"detection\.judge\.http\.url: 'localhost:8000/v1' does not begin with"
    ):
        ask(judge_at("localhost:8000/v1"), "text")


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


ANYWHERE: dict[str, list[str]] = {
    "judge.example": ["93.184.215.14"],
    "rebound.example": ["93.184.215.14", "169.254.169.254"],
    "2852039166": ["169.254.169.254"],
    "inside": ["10.0.0.7"],
    "localhost": ["127.0.0.1", "::1"],
    "metadata.google.internal": [],
}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", (one, 0)) for one in ANYWHERE.get(host, [host])]

    monkeypatch.setattr("versatune_ray.detection.endpoint.socket.getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000/v1",
        "http://127.0.0.1:8000/v1",
        "http://[::1]:8000/v1",
        "http://0.0.0.0:8000/v1",
        "https://judge.example/v1",
        "https://inside/v1",
    ],
)
def test_this_machine_and_https_may_be_asked(names: None, url: str) -> None:
    Endpoint(url, "m").check()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://judge.example/v1", "is another machine"),
        ("http://inside:8000/v1", "is another machine"),
        ("https://rebound.example/v1", "its own credentials"),
        ("http://2852039166/v1", "its own credentials"),
        ("http://169.254.169.254/latest", "its own credentials"),
        ("https://169.254.170.2/v2", "its own credentials"),
        ("http://[fe80::1]/v1", "its own credentials"),
        ("http://[fd00:ec2::254]/v1", "its own credentials"),
        ("http://[::ffff:169.254.169.254]/v1", "its own credentials"),
        ("http://metadata.google.internal/v1", "its own credentials"),
        ("http://100.100.100.200/v1", "its own credentials"),
        ("file:///etc/passwd", "does not begin with"),
        ("ftp://judge.example", "does not begin with"),
        ("http://", "does not begin with"),
        ("http://[/v1", "does not begin with"),
        ("http://x:port/v1", "does not begin with"),
    ],
)
def test_another_machine_in_the_clear_and_metadata_are_refused(
    names: None, monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Endpoint(url, "m").check()
    if "its own" in words:  # whatever the environment says
        monkeypatch.setenv("VERSATUNE_ALLOWED_HOSTS", url.split("/")[2].strip("[]"))
        with pytest.raises(UserError, match=words):
            Endpoint(url, "m").check()


def test_the_environment_of_the_cluster_names_hosts(
    names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERSATUNE_ALLOWED_HOSTS", "inside:8000, judge.example")
    for url in ("http://inside:8000/v1", "http://judge.example/v1", "http://localhost/v1"):
        Endpoint(url, "m").check()
    for url in ("http://inside:9000/v1", "https://93.184.215.14/v1"):
        with pytest.raises(UserError, match="VERSATUNE_ALLOWED_HOSTS"):
            Endpoint(url, "m").check()


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


def test_a_parameter_that_is_refused_stops_everything_at_once(server: StandIn) -> None:
    server.behave = lambda body, times: Answer(
        {"error": {"message": "Unrecognized parameter: 'messages'"}}, 400, delay=0.05
    )
    with pytest.raises(UserError, match=r"refuses what every request says.*'messages'"):
        ask(judge_at(server, "label"), *map(str, range(50)))
    assert len(server.bodies) <= 8


def test_thoughts_without_an_answer_have_a_reason_of_their_own(server: StandIn) -> None:
    message = {"content": None, "reasoning_content": "It may be B, or"}
    server.behave = lambda body, times: Answer({"choices": [{"message": message}]})
    (row,) = ask(judge_at(server, "label"), "text")
    assert row["discarded"] == THOUGHTS and not row["failed"]


def test_an_endpoint_that_may_not_be_asked_is_told_before_anything_is_generated() -> None:
    http = {"url": "http://169.254.169.254/v1"}
    config = load([], ["model.path=m", "domains.law=a.jsonl", "domains.code=b.jsonl"])
    settings = config.detection.model_copy(
        update={"judge": Judge.model_validate({"kind": "http", "path": "big", "http": http})}
    )
    with pytest.raises(UserError, match="its own credentials"):
        judge_spec(config.model_copy(update={"detection": settings}), gpu=False)
