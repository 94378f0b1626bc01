"""Batch consumers: lists, items settled apart, and what happens when a list fails."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mqcore import App, Broker, ConfigurationError, DeadLetter, Queue, Received, RetryPolicy, fixed
from mqcore.spi import Message, Outgoing
from mqcore.testing import VirtualClock

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
numbers = Queue("numbers", int)
TWICE = RetryPolicy(2, fixed(10))


class Batches:
    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    async def __call__(self, items: list[Received[int]]) -> None:
        self.seen.append([item.value for item in items])


@pytest.fixture
def batches() -> Batches:
    return Batches()


async def test_up_to_batch_at_once(
    broker: Broker, clock: VirtualClock, serve: Any, batches: Batches
) -> None:
    await broker.publish_many(numbers, range(10))
    async with serve(numbers, batches, batch=4, linger=1, concurrency=1):
        await clock.advance(2)
    assert batches.seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (await broker.counts(numbers))[0].ready == 0


async def test_a_full_batch_does_not_linger(
    broker: Broker, clock: VirtualClock, serve: Any, batches: Batches
) -> None:
    await broker.publish_many(numbers, range(4))
    async with serve(numbers, batches, batch=4, linger=60):
        await clock.settle()
        assert batches.seen == [[0, 1, 2, 3]]


async def test_linger_counts_from_the_first(
    broker: Broker, clock: VirtualClock, serve: Any, batches: Batches
) -> None:
    async with serve(numbers, batches, batch=10, linger=5):
        for n in range(4):
            await broker.publish(numbers, n)
            await clock.advance(2)
        await clock.advance(5)
    assert batches.seen == [[0, 1, 2], [3]]


async def test_without_linger_what_is_there_goes(
    broker: Broker, clock: VirtualClock, serve: Any, batches: Batches
) -> None:
    await broker.publish_many(numbers, range(3))
    async with serve(numbers, batches, batch=10, linger=0):
        await clock.settle()
    assert sorted(n for batch in batches.seen for n in batch) == [0, 1, 2]


async def test_prefetch_is_at_least_the_batch(
    broker: Broker, clock: VirtualClock, serve: Any, batches: Batches
) -> None:
    await broker.publish_many(numbers, range(50))
    async with serve(numbers, batches, batch=50, concurrency=1, prefetch=1):
        await clock.advance(1)
    assert batches.seen == [list(range(50))]


async def test_items_are_settled_apart(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    seen: list[list[tuple[int, int]]] = []

    async def handler(items: list[Received[int]]) -> None:
        seen.append([(item.value, item.attempt) for item in items])
        for item in items:
            if item.value == 0:
                await item.ack()
            elif item.value == 1:
                await item.reject("bad")
            elif item.value == 2 and item.attempt == 1:
                await item.retry(delay=3)
            elif item.value == 3 and not item.redelivered:
                await item.release()

    await broker.publish_many(numbers, range(5))
    async with serve(numbers, handler, batch=5, linger=0):
        await clock.advance(5)
    assert seen[0] == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]
    assert [(3, 1)] in seen
    assert [(2, 2)] in seen
    assert [letter.body for letter in await dead(numbers)] == [b"1"]
    counts = (await broker.counts(numbers))[0]
    assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 0)


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_batch_that_raises_is_retried_in_batches_of_one(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead, *, blocking: bool
) -> None:
    seen: list[list[int]] = []

    def run(items: list[Received[int]]) -> None:
        seen.append([item.value for item in items])
        if any(item.value == 2 for item in items):
            raise ValueError("one of them")

    async def run_async(items: list[Received[int]]) -> None:
        run(items)

    await broker.publish_many(numbers, range(4))
    async with serve(numbers, run if blocking else run_async, batch=4, retry=TWICE):
        await clock.advance(20)
    assert seen[0] == [0, 1, 2, 3]
    assert sorted(seen[1:]) == [[0], [1], [2], [3]]
    (letter,) = await dead(numbers)
    assert (letter.body, letter.attempts) == (b"2", 2)


async def test_what_was_settled_before_the_raise_stays_settled(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    seen: list[list[int]] = []

    async def handler(items: list[Received[int]]) -> None:
        seen.append([item.value for item in items])
        await items[0].ack()
        if len(items) > 1:
            raise ValueError

    await broker.publish_many(numbers, range(3))
    async with serve(numbers, handler, batch=3, retry=TWICE):
        await clock.advance(20)
    assert seen[0] == [0, 1, 2]
    assert sorted(seen[1:]) == [[1], [2]]


async def test_an_invalid_item_is_dead_lettered_alone(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead, batches: Batches
) -> None:
    await broker.declare(numbers)
    await broker.publish(numbers, 1)
    await broker._session.connection.publish([Outgoing("numbers", Message(id="bad", body=b"{"))], 1)
    await broker.publish(numbers, 3)
    async with serve(numbers, batches, batch=3):
        await clock.settle()
    assert batches.seen == [[1, 3]]
    assert [(letter.id, letter.reason) for letter in await dead(numbers)] == [
        ("bad", "undecodable")
    ]


async def test_a_batch_of_nothing_good_runs_nothing(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead, batches: Batches
) -> None:
    await broker.declare(numbers)
    for n in range(3):
        await broker._session.connection.publish(
            [Outgoing("numbers", Message(id=f"{n}", body=b"{"))], 1
        )
    async with serve(numbers, batches, batch=3):
        await clock.settle()
        await broker.publish(numbers, 1)
        await clock.advance(1)
    assert batches.seen == [[1]]
    assert len(await dead(numbers)) == 3


async def test_a_batch_that_runs_too_long_is_a_timeout_of_each(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    async def handler(items: list[Received[int]]) -> None:
        await asyncio.Event().wait()

    await broker.publish_many(numbers, range(3))
    async with serve(numbers, handler, batch=3, timeout=5, retry=RetryPolicy(1)):
        await clock.advance(5)
    assert sorted(letter.reason for letter in await dead(numbers)) == ["timeout"] * 3


async def test_concurrent_batches(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    running = most = 0

    async def handler(items: list[Received[int]]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await clock.sleep(1)
        running -= 1

    await broker.publish_many(numbers, range(40))
    async with serve(numbers, handler, batch=5, linger=0.1, concurrency=3, prefetch=15):
        await clock.advance(20)
    assert most == 3
    assert (await broker.counts(numbers))[0].ready == 0


@pytest.mark.parametrize(
    "options", [{"process": True}, {"ack_first": True}, {"batch": -1}, {"linger": -1}], ids=repr
)
def test_what_does_not_go_with_a_batch_is_refused(options: dict[str, Any]) -> None:
    async def handler(items: list[Received[int]]) -> None: ...

    with pytest.raises(ConfigurationError):
        App("test").consumer(numbers, **{"batch": 5, **options})(handler)
