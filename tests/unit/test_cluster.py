"""Starting Ray."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray

from versatune_ray.errors import UserError
from versatune_ray.runtime.cluster import connect


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("The current node timed out during startup.", UserError, "run the same command again"),
        ("No space left.", OSError, "No space left"),
    ],
)
def test_a_machine_too_busy_for_ray_is_told_in_one_line(
    said: str, kind: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(*_: object, **__: Any) -> None:
        raise OSError(said)

    monkeypatch.setattr(ray, "init", stand_in)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    # connect sets them: back afterwards
    for name in ("TMPDIR", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    with pytest.raises(kind, match=told):
        connect()
