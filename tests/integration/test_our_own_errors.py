"""An error of mqcore, a driver or a codec around a handler dead-letters that message alone.

Where there are no leases nobody else would ever get the message, and a place of the prefetch would
be gone for good.
"""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from support.waiting import eventually

from mqcore import Broker, Context, Queue, Received
from mqcore.messages.codec import TextCodec
from mqcore.spi import Capability, Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pydantic import TypeAdapter
    from support.faulty import Do, Fault, Faults, FaultyBackend

    from mqcore.testing import VirtualClock

jobs = Queue("jobs", str)
PREFETCH = 2
BAD = ("bad-1", "bad-2", "bad-3")
"""More than the prefetch: if each of them took its place, nothing more would come."""


@pytest.fixture
async def shown() -> Iterator[list[Any]]:
    """The errors that the event loop was told of: one of ours must not be silent."""
    told: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context.get("exception")))
    yield told
    loop.set_exception_handler(None)


@pytest.fixture(params=[True, False], ids=["with leases", "without leases"], autouse=True)
def leases(request: pytest.FixtureRequest, faults: Faults) -> None:
    if not request.param:
        faults.without.add(Capability.LEASE)


def spoiled(**changes: Any) -> Fault:
    """What is received with a bad id has other facts than it was sent with."""

    async def fault(_backend: FaultyBackend, do: Do, batch: Sequence[Any]) -> Any:
        found: Sequence[Delivery] = await do(batch)
        return [
            replace(it, message=replace(it.message, **changes)) if it.message.id in BAD else it
            for it in found
        ]

    return fault


async def published(broker: Broker) -> None:
    for name in (*BAD, "good"):
        await broker.publish(jobs, "bad" if name in BAD else "good", id=name)


async def all_but_the_good_one_are_dead(broker: Broker, error: str) -> None:
    async def there() -> bool:
        (counts,) = await broker.counts(jobs)
        return (counts.ready, counts.leased) == (0, 0)

    await eventually(there)
    letters = await broker.dead_letters(jobs).list()
    assert {letter.id for letter in letters} == set(BAD)
    assert {letter.reason for letter in letters} == {"rejected"}
    assert all(error in letter.error for letter in letters)


async def test_while_a_message_is_concluded(
    faulty: Broker, faults: Faults, serve: Any, shown: list[Any]
) -> None:
    """A fact of the wrong type, such as a driver once made of bytes that are not UTF-8."""
    handled: list[str] = []

    async def handle(value: str) -> None:
        handled.append(value)
        if value == "bad":
            raise ValueError(value)

    await published(faulty)
    faults.next("receive", *[spoiled(attempt="one")] * 20)
    async with serve(jobs, handle, on=faulty, concurrency=1, prefetch=PREFETCH):
        await eventually(lambda: "good" in handled)
        await all_but_the_good_one_are_dead(faulty, "TypeError: ")
    assert len(shown) == len(BAD)


async def test_while_a_reply_is_sent(faulty: Broker, faults: Faults, serve: Any) -> None:
    """What cannot be answered is handled all the same."""
    handled: list[str] = []

    async def handle(value: str) -> str:
        handled.append(value)
        return value

    await published(faulty)
    faults.next("receive", *[spoiled(reply_to=b"\xff\xfe")] * 20)
    async with serve(jobs, handle, on=faulty, concurrency=1, prefetch=PREFETCH):
        await eventually(lambda: "good" in handled)
        await eventually(lambda: faulty.events.counts["message.done"] == len(BAD) + 1)
    assert faulty.events.counts["reply.failed"] == len(BAD)
    assert await faulty.dead_letters(jobs).list() == []


async def test_while_a_message_comes_in(
    faulty: Broker, serve: Any, shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[str] = []

    def broken(heap: list[Any], item: Any) -> None:
        if item[-1].delivery.message.id in BAD:
            raise KeyError("a bug")
        heapq.heappush(heap, item)

    async def handle(value: str) -> None:
        handled.append(value)

    await published(faulty)
    monkeypatch.setattr(
        "mqcore.consuming.receiver.heapq", SimpleNamespace(heappush=broken, heappop=heapq.heappop)
    )
    async with serve(jobs, handle, on=faulty, concurrency=1, prefetch=PREFETCH):
        await eventually(lambda: handled == ["good"])
        await all_but_the_good_one_are_dead(faulty, "KeyError: 'a bug'")
    assert len(shown) == len(BAD)


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes a codec that cannot have the memory for a bad body."""
    decode = TextCodec.decode

    def decoded(self: TextCodec, body: bytes, adapter: TypeAdapter[Any]) -> object:
        if body == b"bad":
            raise MemoryError
        return decode(self, body, adapter)

    return lambda: monkeypatch.setattr(TextCodec, "decode", decoded)


async def test_while_a_message_is_decoded(
    faulty: Broker, serve: Any, shown: list[Any], greedy: Callable[[], None]
) -> None:
    handled: list[str] = []

    async def handle(value: str, ctx: Context) -> None:
        handled.append(ctx.id)

    await published(faulty)
    greedy()
    async with serve(jobs, handle, on=faulty, concurrency=1, prefetch=PREFETCH):
        await eventually(lambda: handled == ["good"])
        await all_but_the_good_one_are_dead(faulty, "MemoryError")
    assert len(shown) == len(BAD)


@pytest.mark.usefixtures("shown")
async def test_while_one_of_a_batch_is_decoded(
    faulty: Broker, clock: VirtualClock, serve: Any, greedy: Callable[[], None]
) -> None:
    handled: list[str] = []

    async def handle(batch: list[Received[str]]) -> None:
        handled.extend(item.id for item in batch)

    await published(faulty)
    greedy()
    async with serve(jobs, handle, on=faulty, batch=4, concurrency=1, prefetch=4):
        await clock.advance(1)
        await eventually(lambda: handled == ["good"])
        await all_but_the_good_one_are_dead(faulty, "MemoryError")


@pytest.mark.usefixtures("shown")
async def test_while_the_pull_api_decodes(faulty: Broker, greedy: Callable[[], None]) -> None:
    await published(faulty)
    greedy()
    async with faulty.consume(jobs, prefetch=1) as deliveries:
        for _ in BAD:
            with pytest.raises(MemoryError):
                await deliveries.get(timeout=10)
        delivery = await deliveries.get(timeout=10)
        assert delivery is not None
        assert delivery.value == "good"
        await delivery.ack()
        await all_but_the_good_one_are_dead(faulty, "MemoryError")


async def test_what_a_driver_cannot_read_is_undecodable(
    faulty: Broker, faults: Faults, serve: Any
) -> None:
    """Core dead-letters it: no handler sees it, and a suspect skips the quarantine (G11)."""

    async def unreadable(_backend: FaultyBackend, do: Do, batch: Sequence[Any]) -> Any:
        found: Sequence[Delivery] = await do(batch)
        bad = "the property p is not UTF-8"
        return [
            replace(it, unreadable=bad, takeovers=2) if it.message.id in BAD else it for it in found
        ]

    handled: list[str] = []

    async def handle(value: str) -> None:
        handled.append(value)

    await published(faulty)
    faults.next("receive", *[unreadable] * 20)
    async with serve(jobs, handle, on=faulty, concurrency=1, prefetch=PREFETCH):
        await eventually(lambda: handled == ["good"])
        await eventually(lambda: faulty.events.counts["message.dead"] == len(BAD))
    letters = await faulty.dead_letters(jobs).list()
    assert {(letter.reason, letter.error, letter.attempts) for letter in letters} == {
        ("undecodable", "the property p is not UTF-8", 0)
    }
    assert faulty.events.counts["message.quarantined"] == 0
