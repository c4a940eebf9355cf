"""What is told and kept: no secret, and nothing that steers a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from versatune_ray.errors import UserError, one_line, printable, redacted, root_cause
from versatune_ray.runs.cache import cached
from versatune_ray.settings.loading import dump, parse

SECRET = "s3cr3tS3cr3tS3cr3tS3cr3t"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"https://me:{SECRET}@host/x", "https://host/x"),
        (f"https://{SECRET}@host/x y", "https://host/x y"),
        (f"mysql://me:{SECRET}@host:1/x", "mysql://me:[redacted]@host:1/x"),
        (
            f"https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature={SECRET}",
            "https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Signature=[redacted]",
        ),
        (f"https://h/k?X-Amz-Security-Token={SECRET}&a=1", "?X-Amz-Security-Token=[redacted]&a=1"),
        (f"abfs://c@a.dfs.core.windows.net/x?sv=2&sig={SECRET}", "windows.net/x?sv=2&sig=[redac"),
        (f"https://h/x?api_key={SECRET}", "https://h/x?api_key=[redacted]"),
        (f"401: Bearer {SECRET} may not", "401: Bearer [redacted] may not"),
        (f"no such token hf_{SECRET}", "no such token [redacted]"),
        (f"key sk-proj-{SECRET}.", "key [redacted]."),
    ],
)
def test_secrets_in_texts_are_redacted(text: str, shown: str) -> None:
    for found in (
        redacted(text),
        one_line(UserError(text)),
        one_line(OSError(text)),
        json.dumps(redacted({"a": [{"b": text}], "c": (text,)})),
    ):
        assert SECRET not in found and shown in found
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8000/v1",
        "hf://datasets/owner/name@main/data.jsonl",
        "http://host:8000/a@b",
        "abfs://container@account.dfs.core.windows.net/x",
        "s3://bucket/task-aware-sk-learn?region=eu",
        "The token of a bearer is a key",
        "a?b=c",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_settings_named_as_secrets_are_redacted_and_others_are_not() -> None:
    given = {
        **dict.fromkeys(("hf_token", "token", "API-Key", "aws_secret_access_key"), SECRET),
        **dict.fromkeys(("password", "Authorization", "openai_api_key"), SECRET),
        "eos_token": "</s>",
        "max_tokens": 3,
        "tokenizer": "x",
        "key_variable": "OPENAI_API_KEY",
        "hf_hub_token": None,
    }
    found = redacted({"engine": {"options": given}})["engine"]["options"]
    assert {name for name in given if found[name] == "[redacted]"} == {
        *("hf_token", "token", "API-Key", "aws_secret_access_key"),
        *("password", "Authorization", "openai_api_key"),
    }
    assert found["eos_token"] == "</s>" and found["hf_hub_token"] is None


def test_no_secret_is_in_the_kept_configuration_or_a_key(tmp_path: Path) -> None:
    url = f"https://h/law.jsonl?sig={SECRET}"
    config = parse(
        {
            "model": {"path": "m"},
            "domains": {name: {"train": url} for name in ("law", "code")},
            "detection": {"engine": {"options": {"hf_token": SECRET, "seed": 1}}},
        }
    )
    assert SECRET not in dump(config) and "hf_token: '[redacted]'" in dump(config)
    assert config.detection.engine.options["hf_token"] == SECRET  # which is what the engine gets
    entry, _ = cached(tmp_path, "kind", {"options": {"hf_token": SECRET}}, lambda work: None)
    assert SECRET not in (entry / "key.json").read_text()


def test_control_characters_do_not_reach_a_terminal() -> None:
    text = "a\x1b[2J\x1b]0;title\x07\x9b31m\u202eevil\r\x00\ud800é\U0001f468\u200d\U0001f469\tb"
    shown = printable(text)
    assert shown == (
        r"a\x1b[2J\x1b]0;title\x07\x9b31m\u202eevil\r\x00\ud800é" "\U0001f468\u200d\U0001f469\tb"
    )
    assert "\x1b" not in one_line(ValueError(text)) and "\x1b" not in one_line(UserError(text))


def test_what_a_person_is_told_stays_whatever_it_was_raised_from() -> None:
    try:
        try:
            raise OSError("Not a gzipped file")
        except OSError as error:
            raise UserError("law.jsonl.gz: cannot be read") from error
    except UserError as error:
        assert one_line(error) == "law.jsonl.gz: cannot be read" and root_cause(error) is error

    class Wrapped(UserError):  # as Ray makes them: of the class of the cause, and with a long text
        cause = UserError("law.jsonl: no record")

    assert one_line(Wrapped("ray::task() …")) == "law.jsonl: no record"


def test_a_machine_without_memory_is_one_line_with_its_numbers_and_the_way_out() -> None:
    told = one_line(
        RuntimeError(
            "6 worker(s) were killed due to the node running low on memory. Memory on the node "
            "(IP: 192.0.2.2, ID: 7093) was 22.43GB used / 23.54GB limit (0.952955)\n"
            "OOM kill reason: Memory usage 24166793216B exceeded threshold of 24012685312B\n"
            "Refer to the documentation on how to address the out of memory issue: https://docs"
        )
    )
    assert told == (
        "a machine ran out of memory (22.43GB used / 23.54GB limit), and Ray ended what ran there; "
        "let less run beside each other, or on larger machines, and the same command goes on from "
        "here"
    )
