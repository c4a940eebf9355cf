"""The judge over HTTP against vLLM's own server: the probabilities are the model's, and what the
server refuses is told.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from conftest import SharedRay
from processes import patience
from tiny import random_llama, word_tokenizer

from versatune_ray.detection.endpoint import Endpoint
from versatune_ray.detection.judge_http import HttpJudge, http_stage
from versatune_ray.detection.judge_spec import JudgeSpec
from versatune_ray.detection.labels import parse_label
from versatune_ray.detection.prompt import Question
from versatune_ray.errors import UserError
from versatune_ray.runtime.engine import cpu_environment
from versatune_ray.settings import Engine, Http, Judge

KEY_VARIABLE = "VERSATUNE_TEST_API_KEY"
DOMAINS = ("law", "medicine", "finance", "science", "code", "general")
QUESTION = Question(DOMAINS, {}, "{text} of {options} ?", permute=True)
QUESTIONS = [
    (QUESTION.prompt(order), QUESTION.option_names(order)) for order in range(QUESTION.orders)
]
TEXTS = [" ".join(f"w{(i * j) % 9}" for j in range(1, 2 + i % 7)) for i in range(48)]


class Served(NamedTuple):
    model: Path
    endpoint: Endpoint


@pytest.fixture(scope="module")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that knows 20 words, as many as an endpoint gives log-probabilities of; heads
    of 32 suit vLLM on a CPU.
    """
    folder = tmp_path_factory.mktemp("judge") / "random-judge"
    words = ["<s>", "</s>", "<pad>", *"ABCDEF", "answer", "?", *(f"w{i}" for i in range(9))]
    shape = {"vocab_size": len(words), "max_position_embeddings": 128, "initializer_range": 0.3}
    random_llama(folder, **shape)
    word_tokenizer(
        folder,
        words,
        "{{ bos_token }} {% for message in messages %}{{ message['content'] }} {% endfor %}answer",
    )
    return folder


@pytest.fixture(scope="module")
def sockets() -> Iterator[str]:
    """Where the server's processes meet, which it leaves: a short path, for a socket's has a
    limit.
    """
    with tempfile.TemporaryDirectory(prefix="judge-") as folder:
        yield folder


@pytest.fixture(scope="module")
def served(judge_model: Path, sockets: str) -> Iterator[Served]:
    """vLLM's server on a free port of this machine, with a key of its own, ended afterwards with
    all its processes.
    """
    key = secrets.token_urlsafe(24)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(judge_model),
        "--served-model-name",
        "judge",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
    environment = os.environ | {
        "VLLM_API_KEY": key,
        "TMPDIR": sockets,
        **cpu_environment(Engine()),
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = judge_model.parent / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    before = os.environ.get(KEY_VARIABLE)
    os.environ[KEY_VARIABLE] = key
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield Served(
            judge_model,
            Endpoint(
                f"http://127.0.0.1:{port}/v1", "judge", KEY_VARIABLE, concurrency=8, retries=1
            ),
        )
    finally:
        os.environ.pop(KEY_VARIABLE)
        if before is not None:
            os.environ[KEY_VARIABLE] = before
        server.terminate()
        try:
            server.wait(30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)  # the session is the server's own
            server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + patience(200)
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"vLLM's server did not start:\n{log.read_text()[-3000:]}")


def batch(texts: Sequence[str]) -> pa.Table:
    n = len(texts)
    return pa.table(
        {
            "id": np.arange(n),
            "store": np.zeros(n, np.int64),
            "text": list(texts),
            "order": np.arange(n) % len(QUESTIONS),
        }
    )


def ask(
    endpoint: Endpoint, texts: Sequence[str], answer: Any = "probabilities", longest_text: int = 200
) -> list[dict[str, Any]]:
    judge = HttpJudge(endpoint, QUESTIONS, answer, answer_tokens=6, longest_text=longest_text)

    async def run() -> pa.Table:
        try:
            return await judge(batch(texts))
        finally:
            await judge._client.close()

    rows: list[dict[str, Any]] = asyncio.run(run()).to_pylist()
    assert [row["id"] for row in rows] == list(range(len(texts)))
    return rows


def expected(model: Path) -> tuple[np.ndarray, np.ndarray]:
    """By transformers alone: domain probabilities [n, k] and what all options have together [n]."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(model).eval(),
    )
    shares, mass = [], []
    for i, text in enumerate(TEXTS):
        prompt, names = QUESTIONS[i % len(QUESTIONS)]
        chat = [{"role": "user", "content": prompt.replace("{text}", text)}]
        ids = tokenizer(
            tokenizer.apply_chat_template(chat, tokenize=False),
            add_special_tokens=False,
            return_tensors="pt",
        ).input_ids
        with torch.inference_mode():
            logits = network(ids).logits[0, -1].double()
        options = tokenizer.convert_tokens_to_ids(names)
        shares.append(logits[options].softmax(0).numpy())
        mass.append(logits.softmax(0)[options].sum().item())
    return np.array(shares), np.array(mass)


def test_probabilities_are_those_of_the_model(served: Served) -> None:
    rows = ask(served.endpoint, TEXTS)
    shares, mass = expected(served.model)
    assert shares.std(axis=0).min() > 0.01  # the texts differ for the model
    np.testing.assert_allclose([row["values"] for row in rows], shares, atol=1e-3)
    np.testing.assert_allclose([row["mass"] for row in rows], mass, atol=1e-3)
    assert all(
        row["discarded"] is None and row["answer"] is None and not row["failed"] for row in rows
    )


def test_as_a_stage_of_ray_data_it_gives_the_same(served: Served, shared_ray: SharedRay) -> None:
    import ray

    shared_ray.stop()  # workers have the environment of their Ray's start, and the key is new
    shared_ray.start()
    at = served.endpoint
    settings = Judge(
        kind="http",
        path=at.model,
        http=Http(url=at.url, key_variable=at.key_variable, concurrency=8),
        prompt=QUESTION.template,
    )
    spec = JudgeSpec(settings, QUESTION, "", trust_remote_code=False, gpu=False)
    blocks = [batch(TEXTS).slice(i, 8) for i in range(0, len(TEXTS), 8)]
    with http_stage(spec) as pool:
        rows = sorted(pool(ray.data.from_arrow(blocks)).take_all(), key=lambda row: row["id"])
    assert [row["id"] for row in rows] == list(range(len(TEXTS)))
    np.testing.assert_allclose(
        [row["values"] for row in rows], expected(served.model)[0], atol=1e-3
    )


def test_in_label_mode_the_judge_writes(served: Served) -> None:
    rows = ask(served.endpoint, TEXTS, "label")
    for i, row in enumerate(rows):
        label, reason = parse_label(row["answer"], QUESTIONS[i % len(QUESTIONS)][1])
        assert row["discarded"] == reason and not row["failed"]
        assert len(row["answer"].split()) <= 6
        assert (
            math.isnan(row["values"][0])
            if label is None
            else row["values"] == np.eye(len(DOMAINS))[label].tolist()
        )


def test_a_text_that_is_too_long_for_the_server_fails_alone(served: Served) -> None:
    good, bad = ask(served.endpoint, [TEXTS[0], "w1 " * 500], longest_text=2000)
    assert good["discarded"] is None
    assert bad["failed"] and "maximum context length" in bad["discarded"]


def test_a_wrong_key_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "not-the-key")
    with pytest.raises(
        UserError,
        match=f"{served.endpoint.url}: the endpoint does not accept the key .* {KEY_VARIABLE}",
    ) as caught:
        ask(served.endpoint, TEXTS)
    assert "not-the-key" not in str(caught.value)


def test_an_unknown_model_is_refused(served: Served) -> None:
    with pytest.raises(UserError, match="no model 'other' there"):
        ask(replace(served.endpoint, model="other"), TEXTS)
