"""One connection for many callers: answers in order, callers that end, and a silent server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis import exceptions as redis

from mqcore.spi import ConnectionLost
from mqcore_redis import link as module
from mqcore_redis.link import Link
from mqcore_redis.options import RedisOptions, read
from mqcore_redis.scripts import Call, script
from mqcore_redis.session import Session

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection


class Wire:
    """A connection, its writer and its transport in one, whose other end is a test."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = self.aborted = False
        self._writer = self.transport = self
        self.protocol: Any = self
        self.lost: list[Exception | None] = []

    def get_protocol(self) -> Any:
        return self.protocol

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.append(error)

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def answer(self, *answers: bytes) -> None:
        self.protocol.data_received(b"".join(answers))

    async def disconnect(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


def text(answer: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(answer), answer)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECK", 0.01)


def linked(wire: Wire, broken: list[Exception], patience: int = 3) -> Link:
    return Link(cast("AbstractConnection", wire), broken.append, patience)


async def test_commands_of_one_turn_leave_in_one_write_and_answers_find_their_callers(
    wire: Wire,
) -> None:
    link = linked(wire, [])
    futures = [link.call("GET", name) for name in ("a", "b", "c")]
    await asyncio.sleep(0)
    wire.answer(text(b"1"), b"-ERR no\r\n", b"$-1\r\n")
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
    wire.answer(text(b"a"), text(b"b"))
    assert await stays == b"b"
    assert await _answered(link, wire) == b"c"
    await link.close()
    assert not broken


async def _answered(link: Link, wire: Wire) -> Any:
    future = link.call("GET", "c")
    await asyncio.sleep(0)
    wire.answer(text(b"c"))
    return await future


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"-LOADING wait\r\n", redis.BusyLoadingError),
        (b"-WRONGPASS no\r\n", redis.AuthenticationError),
    ],
)
async def test_an_answer_that_redis_py_calls_a_broken_connection_breaks_nothing(
    wire: Wire, line: bytes, kind: type[Exception]
) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    future = link.call("GET", "a")
    wire.answer(line)
    assert type(await future) is kind
    assert await _answered(link, wire) == b"c"
    await link.close()
    assert not broken


async def test_an_answer_may_come_in_any_number_of_pieces(wire: Wire) -> None:
    link = linked(wire, [])
    one, two = link.call("GET", "a"), link.call("GET", "b")
    for byte in text(b"first") + text(b"second"):
        wire.answer(bytes([byte]))
    assert (await one, await two) == (b"first", b"second")
    await link.close()


async def test_commands_wait_while_the_server_takes_them_too_slowly(wire: Wire) -> None:
    link = linked(wire, [])
    wire.protocol.pause_writing()
    link.call("GET", "a")
    await asyncio.sleep(0)
    link.call("GET", "b")
    await asyncio.sleep(0)
    assert wire.sent == []

    wire.protocol.resume_writing()
    assert len(wire.sent) == 1
    link.call("GET", "c")
    await asyncio.sleep(0)
    assert len(wire.sent) == 2
    await link.close()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", redis.InvalidResponse),
        (b"+nobody asked\r\n+nor here\r\n", IndexError),
        (b"-ERR max number of clients reached\r\n", redis.ConnectionError),
    ],
)
async def test_what_is_no_answer_breaks_the_connection(
    wire: Wire, data: bytes, kind: type[Exception]
) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    future = link.call("GET", "a")
    wire.answer(data)
    assert future.done()
    await link.close()
    assert [type(error) for error in broken] == [kind]


async def test_a_deadline_answers_none_and_the_late_answer_is_dropped(wire: Wire) -> None:
    broken: list[Exception] = []
    session = Session(read("redis://h", RedisOptions()), broken.append)
    session.main = link = linked(wire, broken)
    loop, count = asyncio.get_running_loop(), Call("count", ("q",), ())

    patient = asyncio.create_task(session.gather([count], loop.time() + 10.0))
    late = asyncio.create_task(session.gather([count], loop.time() + 0.01))
    passed = asyncio.create_task(session.gather([count], loop.time() - 1.0))
    assert await passed == [None]
    assert await late == [None]
    assert not patient.done()
    wire.answer(text(b"1"), text(b"2"), text(b"3"))
    assert (await patient, await _answered(link, wire)) == ([b"1"], b"c")
    await link.close()
    assert not broken


async def test_a_script_that_is_alone_is_sent_at_once(wire: Wire) -> None:
    link, count = linked(wire, []), Call("count", ("q",), ())
    one = link.run([count], at_once=True)
    assert len(wire.sent) == 1
    two = link.run([count], at_once=True) + link.run([count])
    assert len(wire.sent) == 1
    await asyncio.sleep(0)
    assert len(wire.sent) == 2
    wire.answer(text(b"1"), text(b"2"), text(b"3"))
    assert [await future for future in one + two] == [b"1", b"2", b"3"]
    await link.close()


async def test_a_script_that_the_server_has_forgotten_is_sent_again_as_text(wire: Wire) -> None:
    """The digest is missing, so nothing ran. A caller that has gone asks for nothing more."""
    link, count = linked(wire, []), Call("count", ("q",), ("word",))
    stays, gone = link.run([count, count], at_once=True)
    gone.cancel()
    wire.answer(*[b"-NOSCRIPT No matching script\r\n"] * 2)
    await asyncio.sleep(0)
    assert [data.count(b"EVAL\r\n") for data in wire.sent] == [0, 1]
    assert script("count").text in wire.sent[1]
    wire.answer(text(b"1"))
    assert await stays == b"1"
    await link.close()


async def test_a_server_that_has_become_a_replica_is_reported(wire: Wire) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    future = link.call("SET", "a", "b")
    wire.answer(b"-READONLY You can't write against a read only replica.\r\n")
    assert isinstance(await future, redis.ReadOnlyError)
    assert [type(error) for error in broken] == [redis.ReadOnlyError]
    await link.close()


async def test_when_it_breaks_everybody_is_told_and_the_owner_once(wire: Wire) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    waiting = [link.call("GET", "a"), link.call("GET", "b")]
    wire.protocol.connection_lost(ConnectionResetError("reset"))
    assert [type(future.result()) for future in waiting] == [ConnectionResetError] * 2
    assert isinstance(await link.call("GET", "c"), ConnectionResetError)
    await link.close()
    assert [type(error) for error in broken] == [ConnectionResetError]
    assert [type(error) for error in wire.lost] == [ConnectionResetError]


async def test_an_orderly_end_of_the_server_breaks_the_connection_too(wire: Wire) -> None:
    broken: list[Exception] = []
    link = linked(wire, broken)
    waiting = link.call("GET", "a")
    wire.protocol.connection_lost(None)
    assert isinstance(await waiting, redis.ConnectionError)
    await link.close()
    assert len(broken) == 1


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
        wire.answer(text(b"x"))
        assert await future == b"x"
    await link.close()
    assert not broken


async def test_a_cancelled_close_leaves_no_open_transport(wire: Wire) -> None:
    link = linked(wire, [])

    closing = asyncio.create_task(link.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])

    assert wire.aborted
