"""Which addresses a judge over HTTP may have: this machine, https, and what the cluster's
environment allows; never metadata.
"""

from __future__ import annotations

from typing import Any

import pytest
from judge_server import ask, judge_at

from versatune_ray.detection.endpoint import Endpoint
from versatune_ray.detection.judge_spec import judge_spec
from versatune_ray.errors import UserError
from versatune_ray.settings import Judge
from versatune_ray.settings.loading import load


def test_an_address_that_is_no_url_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"detection\.judge\.http\.url: 'localhost:8000/v1' does not begin with"
    ):
        ask(judge_at("localhost:8000/v1"), "text")


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


def test_an_endpoint_that_may_not_be_asked_is_told_before_anything_is_generated() -> None:
    http = {"url": "http://169.254.169.254/v1"}
    config = load([], ["model.path=m", "domains.law=a.jsonl", "domains.code=b.jsonl"])
    settings = config.detection.model_copy(
        update={"judge": Judge.model_validate({"kind": "http", "path": "big", "http": http})}
    )
    with pytest.raises(UserError, match="its own credentials"):
        judge_spec(config.model_copy(update={"detection": settings}), gpu=False)
