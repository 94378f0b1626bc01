"""Batches in special cases: invalid items, messages that come alone, a stop during the linger."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mqcore import (
    App,
    Broker,
    Context,
    DeadLetter,
    Queue,
    Received,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.middleware import Middleware
from mqcore.testing import VirtualClock

Dead = Callable[[Queue[Any]], Awaitable[list[DeadLetter]]]
numbers = Queue("numbers", int)
TWICE = RetryPolicy(2, fixed(10))


class Batches:
    """A handler of batches that notes them, and fails those with a number below 0."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    async def __call__(self, items: list[Received[int]]) -> None:
        self.seen.append([item.value for item in items])
        if any(item.value < 0 for item in items):
            raise ValueError


async def test_an_invalid_item_is_not_started_and_not_the_batchs_face(
    clock: VirtualClock, url: str
) -> None:
    faces: list[str] = []

    class Looking(Middleware):
        async def handle(
            self, ctx: Context, call_next: Callable[[Context], Awaitable[object]]
        ) -> object:
            faces.append(ctx.id)
            return await call_next(ctx)

    app, batches = App("test", middleware=[Looking()]), Batches()
    app.consumer(numbers, batch=3, linger=0)(batches)
    async with app.connect(url, clock=clock, settings=Settings()) as broker:
        await broker.publish("numbers", "no number", id="invalid", priority=9)
        await broker.publish(numbers, 1, id="first")
        await broker.publish(numbers, 2, id="second")
        async with Worker(app, broker):
            await clock.settle()
        counts = broker.health().counts
        (letter,) = await broker.dead_letters(numbers).list()
    assert (batches.seen, faces) == ([[1, 2]], ["first"])
    assert (counts["message.started"], counts["message.done"], counts["message.dead"]) == (2, 2, 1)
    assert (letter.id, letter.reason, letter.attempts) == ("invalid", "invalid", 0)


async def test_a_later_attempt_does_not_sit_among_first_ones(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    batches = Batches()
    await broker.publish_many(numbers, [-1, 2])
    async with serve(numbers, batches, batch=8, linger=1, concurrency=1, retry=TWICE):
        await clock.advance(10.5)
        await broker.publish_many(numbers, [3, 4])
        await clock.advance(30)
    assert batches.seen == [[-1, 2], [3, 4], [-1], [2]]


async def test_suspects_come_alone(
    broker: Broker, clock: VirtualClock, serve: Any, suspect: Any
) -> None:
    batches = Batches()
    await broker.publish_many(numbers, [1, 2, 3])
    await suspect(numbers, 2)
    async with serve(numbers, batches, batch=8, linger=1):
        await clock.advance(10)
    assert sorted(batches.seen) == [[1], [2], [3]]


async def test_a_stop_while_it_waits_for_more_gives_back(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    batches = Batches()
    async with serve(numbers, batches, batch=8, linger=60) as worker:
        await broker.publish_many(numbers, [1, 2])
        await clock.advance(30)
        await worker.drain()
        counts = (await broker.counts(numbers))[0]
    assert (batches.seen, counts.ready, counts.leased) == ([], 2, 0)
    assert [entry.message.attempt for entry in await broker.peek(numbers)] == [1, 1]


async def test_a_drain_releases_what_a_batch_has_not_settled(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    async def handler(items: list[Received[int]]) -> None:
        await items[0].ack()
        await items[1].reject("odd")
        await asyncio.Event().wait()

    await broker.publish_many(numbers, [1, 2, 3, 4])
    async with serve(numbers, handler, batch=4) as worker:
        await clock.settle()
        await worker.drain(0)
        counts = (await broker.counts(numbers))[0]
    assert (counts.ready, counts.leased) == (2, 0)
    assert [letter.id for letter in await dead(numbers)] != []
    assert [entry.message.attempt for entry in await broker.peek(numbers)] == [1, 1]


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_request_in_a_batch_is_answered(
    broker: Broker, clock: VirtualClock, serve: Any, *, blocking: bool
) -> None:
    handled: list[int] = []

    def blocks(items: list[Received[int]]) -> str:
        handled.extend(item.value for item in items)
        return "for nobody"

    async def awaits(items: list[Received[int]]) -> str:
        return blocks(items)

    async with serve(numbers, blocks if blocking else awaits, batch=2, linger=0.1):
        asked = asyncio.gather(*(broker.request(numbers, n, timeout=60) for n in range(3)))
        await clock.advance(1)
        assert await asked == [None, None, None]
    assert sorted(handled) == [0, 1, 2]
