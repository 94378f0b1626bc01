"""A cluster as one connection: a close answers callers that wait, and cancels none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis import exceptions as redis

from mqcore.spi import Ack, ConnectionLost, Unknown
from mqcore_redis import RedisOptions
from mqcore_redis import cluster as module
from mqcore_redis.batches import Batches
from mqcore_redis.cluster import ClusterLink
from mqcore_redis.options import read
from mqcore_redis.scripts import Call
from mqcore_redis.session import Session

PLACE = read("redis+cluster://127.0.0.1:1", RedisOptions())


class Client:
    """A cluster that answers when a test says so."""

    def __init__(self, **_: Any) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def initialize(self) -> None: ...

    async def aclose(self) -> None: ...

    async def execute_command(self, *_: Any) -> Any:
        return await asyncio.shield(self.answer)


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RedisCluster", Client)


async def test_who_waits_when_it_is_closed_is_told_and_not_cancelled() -> None:
    link = ClusterLink(PLACE, lambda _: None)
    futures = [
        link.call("GET", "a"),
        *link.run([Call("count", ("{a}",), ())] * 2),
    ]
    await asyncio.sleep(0)
    futures.append(link.call("GET", "late"))  # has not even begun
    async with asyncio.timeout(5):
        await link.close()
        answers = [await future for future in futures]
    assert [type(answer) for answer in answers] == [ConnectionLost] * 4
    assert isinstance(await link.call("GET", "a"), ConnectionLost)


async def test_a_settlement_under_way_ends_as_unknown() -> None:
    session = Session(PLACE, lambda _: None)
    session.main = await session.connect()
    deadline = asyncio.get_running_loop().time() + 60
    settling = asyncio.create_task(
        Batches(session).settle("q", [Ack(b"t|1|05000000000000001")], deadline)
    )
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await session.close()
        (settled,) = await settling
    assert isinstance(settled, Unknown)


async def test_a_caller_that_is_cancelled_takes_nothing_with_it() -> None:
    link = ClusterLink(PLACE, lambda _: None)
    leaves, stays = link.call("GET", "a"), link.call("GET", "a")
    await asyncio.sleep(0)
    leaves.cancel()
    link.client.answer.set_result(b"1")  # type: ignore[attr-defined]  # it is the client of these tests
    assert await stays == b"1"
    await link.close()


@pytest.mark.parametrize(
    "error", [redis.ConnectionError("broken"), ValueError("odd")], ids=["broken", "odd"]
)
async def test_an_error_is_an_answer_and_a_broken_connection_is_told_once(error: Exception) -> None:
    broken: list[Exception] = []
    link = ClusterLink(PLACE, broken.append)
    futures = [link.call("GET", "a"), link.call("GET", "b")]
    link.client.answer.set_exception(error)  # type: ignore[attr-defined]  # it is the client of these tests
    assert [await future for future in futures] == [error, error]
    assert broken == ([error] if isinstance(error, redis.ConnectionError) else [])
    await link.close()
