"""An endpoint that stands in for a judge over HTTP, and a judge that asks it."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ray.detection.endpoint import Endpoint
from versatune_ray.detection.judge_http import HttpJudge
from versatune_ray.detection.judge_spec import JUDGED
from versatune_ray.errors import UserError

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
