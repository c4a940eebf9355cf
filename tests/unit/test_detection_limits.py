"""The rate and the cost of a judge behind HTTP, for all that ask it together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import ray

from versatune_ray.detection.endpoint import Endpoint
from versatune_ray.detection.judge import StandingJudge
from versatune_ray.detection.judge_http import HttpJudge
from versatune_ray.detection.judge_spec import judge_spec
from versatune_ray.detection.limits import Limits, Prices
from versatune_ray.errors import UserError
from versatune_ray.settings.loading import parse


def test_requests_begin_evenly_whoever_asks() -> None:
    limits = Limits(120, None, Prices(0, 0))  # one each half second
    assert [limits.wait(now) for now in (10.0, 10.0, 10.25, 20.0)] == [0.0, 0.5, 0.75, 0.0]
    free = Limits(None, None, Prices(0, 0))
    assert [free.wait(1.0), free.wait(1.0)] == [0.0, 0.0]


def test_nothing_is_asked_once_the_money_is_spent() -> None:
    limits = Limits(None, 0.01, Prices(read=2.0, written=10.0))
    limits.spend(3000, 300)  # 0.006 and 0.003
    assert limits.cost == pytest.approx(0.009) and limits.wait(0.0) == 0.0
    limits.spend(600, 0)
    assert limits.wait(0.0) is None


class Remote:
    """``Limits`` as its actor is called."""

    def __init__(self, limits: Limits):
        self.limits = limits

    def __getattr__(self, name: str) -> Any:
        limits = self.limits

        class Method:
            def remote(self, *given: Any) -> Any:
                made: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                made.set_result(getattr(limits, name)(*given))
                return made

        return Method()


def test_the_judge_stops_with_one_line_that_says_how_to_go_on() -> None:
    limits = Limits(None, 1.0, Prices(1.0, 1.0))
    limits.spend(1_000_000, 0)
    at = Endpoint("http://127.0.0.1:1/v1", "m")
    judge = HttpJudge(at, [], "label", 1, 10, Remote(limits))
    with pytest.raises(UserError, match="max_cost: it is spent; what is judged stays"):
        asyncio.run(judge._allowed())


def test_a_cost_without_prices_is_refused() -> None:
    http = {"url": "http://localhost:1/v1", "max_cost": 5}
    judge = {"kind": "http", "path": "m", "http": http}
    with pytest.raises(UserError, match="max_cost: what a request costs is not known"):
        parse({"detection": {"judge": judge}})
    parse({"detection": {"judge": judge | {"http": http | {"input_price": 0.5}}}})


def test_what_is_spent_stays_spent_when_the_judge_starts_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Actor:
        def __init__(self, kind: Any):
            self.kind = kind

        def options(self, **_: Any) -> Actor:
            return self

        def remote(self, *given: Any) -> Any:
            return self.kind(*given)

    monkeypatch.setattr(ray, "remote", Actor)
    http = {"url": "http://localhost:1/v1", "requests_per_minute": 60, "actors": 1}
    config = parse(
        {
            "model": {"path": "x"},
            "domains": {"law": "x.jsonl", "code": "y.jsonl"},
            "detection": {"judge": {"kind": "http", "path": "m", "http": http}},
        }
    )
    judge = StandingJudge(judge_spec(config, gpu=False))

    def limits() -> Any:
        return judge.checked()._hire().make.args[-1]  # type: ignore[attr-defined]

    first = limits()
    judge.close(for_good=False)
    assert isinstance(first, Limits) and limits() is first
    judge.close()
    with pytest.raises(RuntimeError, match="the job ends"):
        judge.checked()
