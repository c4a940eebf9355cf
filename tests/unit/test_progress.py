"""Messages reach the driver's screen once each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from versatune_ray.runtime.progress import Board, Display


def test_each_message_is_printed_once_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board, display = Board(), Display()
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    monkeypatch.setattr(
        display, "_board", SimpleNamespace(read=SimpleNamespace(remote=board.read)), raising=False
    )
    monkeypatch.setattr(display, "_said", 0, raising=False)

    def shown(*texts: str) -> Any:
        for text in texts:
            board.say("fine-tuning", text)
        display._show()
        return capsys.readouterr().out.splitlines()

    assert shown("warning: a", "warning: b") == [
        "[fine-tuning] warning: a",
        "[fine-tuning] warning: b",
    ]
    assert shown("warning: b") == []  # said again by work that was done again
    assert shown("warning: c") == ["[fine-tuning] warning: c"]
