"""Groups of workers that tune one domain after another; awaited as Ray does it, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from versatune_ray.domains import DomainPaths
from versatune_ray.runs.cache import key_of
from versatune_ray.settings.loading import load
from versatune_ray.training.reference import in_turn, reference_keys


class Worker:
    """Notes what it is asked; ``fails``: at this domain."""

    def __init__(self, told: list[Any], name: str, fails: str = ""):
        self.told, self.name, self.fails = told, name, fails

    @property
    def tune(self) -> Worker:
        return self

    def remote(self, domain: str) -> tuple[str, str, bool]:
        self.told.append((self.name, domain))
        return self.name, domain, domain == self.fails


@pytest.fixture
def awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last that was asked is done first."""

    def get(ref: Any) -> None:
        if ref[2]:
            raise ValueError(f"{ref[0]} on {ref[1]}")

    monkeypatch.setattr(ray, "wait", lambda refs: ([refs[-1]], refs[:-1]))
    monkeypatch.setattr(ray, "get", get)


def test_a_group_is_free_when_all_its_workers_are(awaited: None) -> None:
    told: list[Any] = []
    groups = [[Worker(told, "a0"), Worker(told, "a1")], [Worker(told, "b0"), Worker(told, "b1")]]
    in_turn(groups, ["law", "code", "general"])
    assert told == [
        ("a0", "law"),
        ("a1", "law"),
        ("b0", "code"),
        ("b1", "code"),
        # b1 and then b0 are done, and a still works on law
        ("b0", "general"),
        ("b1", "general"),
    ]


def test_what_any_worker_raises_is_told(awaited: None) -> None:
    told: list[Any] = []
    with pytest.raises(ValueError, match="a1 on law"):
        in_turn([[Worker(told, "a0"), Worker(told, "a1", "law")]], ["law", "code"])
    assert ("a0", "code") not in told


def test_a_cached_loss_is_that_of_the_precision_and_order_it_was_made_with() -> None:
    stores = {"law": DomainPaths(Path("law"), None)}

    def key(*overrides: str, gpu: bool = False) -> str:
        config = load([], ["model.path=m", "domains.law=a", "domains.code=b", *overrides])
        return key_of(reference_keys("m", stores, config, "nats/token", gpu)["law"])

    assert key("training.precision=fp32") == key("training.learning_rate=1e-3") == key()
    assert key(gpu=True) == key("training.precision=bf16") != key()
    assert key("data.shards_at_once=1") != key("data.shards_at_once=2") != key()
