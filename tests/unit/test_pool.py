"""Who of a pool takes the next batch, and what its actors answer with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from versatune_ray.errors import UserError
from versatune_ray.runtime.pool import Desk, Pool, Staff, _Host


def test_a_batch_goes_to_who_is_there_and_has_least_to_do() -> None:
    desk = Desk(3, at_once=2)
    assert desk.take() is None  # nobody is there yet
    desk.arrived(1)
    assert [desk.take(), desk.take(), desk.take()] == [1, 1, None]
    desk.arrived(0)
    assert [desk.take(), desk.take(), desk.take()] == [0, 0, None]
    desk.give_back(1)
    assert desk.take() == 1
    assert not desk.lost(2) and not desk.lost(0)
    assert desk.lost(1)
    desk.give_back(1)  # its last batch failed with it
    assert desk.take() is None


def test_a_pool_is_lost_only_with_its_last_actor() -> None:
    desk = Desk(2, at_once=1)
    assert not desk.lost(0)
    assert desk.lost(1)


def ask(host: _Host, batch: Any) -> Any:
    return asyncio.run(host.answer(batch))


def test_what_answers_may_be_plain_or_awaited_or_a_generator() -> None:
    async def awaited(batch: int) -> int:
        return batch + 1

    async def generated(batch: int) -> AsyncIterator[int]:
        yield batch + 1

    for answer in (lambda batch: batch + 1, awaited, generated):
        assert ask(_Host(lambda answer=answer: answer), 1) == 2  # type: ignore[misc]


def test_an_actor_that_cannot_start_says_why() -> None:
    def broken() -> Any:
        raise UserError("m: no weights")

    host = _Host(broken)
    for asked in (host.ready, lambda: host.answer(1)):
        with pytest.raises(UserError, match="m: no weights"):
            asyncio.run(asked())


def test_nothing_is_asked_of_what_is_closed() -> None:
    host = _Host(lambda: lambda batch: batch)
    asyncio.run(host.close())
    with pytest.raises(RuntimeError, match="the job ends"):
        ask(host, 1)
    pool = Pool(lambda: Staff(lambda: None, (1, 1), {}, 1))
    pool.close()
    with pytest.raises(RuntimeError, match="the job ends"):
        pool.start()
