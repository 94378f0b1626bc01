"""One connection used by many: answers go to whom they belong, whoever has gone, and a silent peer is noticed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis import exceptions as redis

from mqcore.spi import ConnectionLost
from mqcore_redis import link as module
from mqcore_redis.link import Link

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection


class Wire:
    """A connection whose other end is a test."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = False

    async def send_packed_command(self, packed: list[bytes], *, check_health: bool) -> None:
        self.sent.append(b"".join(packed))

    async def read_response(self, timeout: float, *, disconnect_on_error: bool) -> Any:
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def disconnect(self) -> None:
        self.closed = True


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK", 0.01)


def linked(wire: Wire, broken: list[Exception], patience: int = 3) -> Link:
    return Link(cast("AbstractConnection", wire), broken.append, patience)


async def test_commands_of_one_turn_leave_in_one_write_and_answers_find_their_callers(
    wire: Wire,
) -> None:
    link = linked(wire, [])
    futures = [link.call("GET", name) for name in ("a", "b", "c")]
    for answer in (b"1", redis.ResponseError("ERR no"), None):
        wire.answers.put_nowait(answer)
    await asyncio.wait(futures)
    one, two, three = [future.result() for future in futures]
    assert (one, type(two), three) == (b"1", redis.ResponseError, None)
    assert len(wire.sent) == 1
    await link.close()
    assert wire.closed


async def test_a_caller_that_goes_takes_no_answer_of_another_with_it(wire: Wire) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    gone, stays = link.call("GET", "a"), link.call("GET", "b")
    await asyncio.sleep(0)
    gone.cancel()
    wire.answers.put_nowait(b"a")
    wire.answers.put_nowait(b"b")
    assert await stays == b"b"
    assert await asyncio.wait_for(asyncio.gather(_answered(link, wire)), 1) == [b"c"]
    await link.close()
    assert not broken


async def _answered(link: Link, wire: Wire) -> Any:
    future = link.call("GET", "c")
    wire.answers.put_nowait(b"c")
    return await future


@pytest.mark.parametrize(
    "error",
    [redis.BusyLoadingError("wait"), redis.AuthenticationError("no")],
    ids=lambda it: type(it).__name__,
)
async def test_an_answer_that_redis_py_calls_a_broken_connection_breaks_nothing(
    wire: Wire, error: Exception
) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    wire.answers.put_nowait(error)
    assert await link.call("GET", "a") is error
    assert await _answered(link, wire) == b"c"
    await link.close()
    assert not broken


async def test_when_it_breaks_everybody_is_told_and_the_owner_once(wire: Wire) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    waiting = [link.call("GET", "a"), link.call("GET", "b")]
    wire.answers.put_nowait(redis.ConnectionError("reset"))
    await asyncio.wait(waiting)
    assert [type(future.result()) for future in waiting] == [redis.ConnectionError] * 2
    assert isinstance(await link.call("GET", "c"), redis.ConnectionError)
    await link.close()
    assert [type(error) for error in broken] == [redis.ConnectionError]


async def test_closing_tells_who_waits_but_not_the_owner(wire: Wire) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    waiting = link.call("GET", "a")
    await link.close()
    assert isinstance(waiting.result(), ConnectionLost)
    assert isinstance(await link.call("GET", "b"), ConnectionLost)
    await link.close()
    assert not broken


async def test_a_silent_peer_is_noticed(wire: Wire, quick: None) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    async with asyncio.timeout(5):
        assert isinstance(await link.call("GET", "a"), ConnectionLost)
    assert len(broken) == 1
    await link.close()


async def test_a_peer_that_nobody_asks_is_asked_whether_it_is_there(
    wire: Wire, quick: None
) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    async with asyncio.timeout(5):
        while not broken:  # noqa: ASYNC110 - the link's own watch is what passes the time
            await asyncio.sleep(0.01)
    assert b"PING" in wire.sent[0]
    await link.close()


async def test_a_slow_peer_that_answers_is_not_silent(wire: Wire, quick: None) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken, patience=10_000)
    for _ in range(20):
        future = link.call("GET", "a")
        await asyncio.sleep(0.01)
        wire.answers.put_nowait(b"x")
        assert await future == b"x"
    await link.close()
    assert not broken
