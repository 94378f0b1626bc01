"""G8, G9 and G12: who goes first, in which order, and how few messages a consumer holds."""

import asyncio
import random
from typing import Any

import pytest

from mqcore import Broker, Queue, RetryPolicy, fixed
from mqcore.testing import VirtualClock

words = Queue("words", str)
ONCE = RetryPolicy(1)


async def filled(broker: Broker, *names: str, priorities: list[int]) -> None:
    for name, priority in zip(names, priorities, strict=True):
        await broker.publish(words, name, priority=priority)


@pytest.mark.parametrize("prefetch", [1, 7, 200])
async def test_the_highest_first_and_inside_a_level_first_in_first_out(
    broker: Broker, prefetch: int
) -> None:
    priorities = [random.randint(0, 10) for _ in range(100)]
    await filled(broker, *[f"{n}" for n in range(100)], priorities=priorities)
    expected = sorted(range(100), key=lambda n: (-priorities[n], n))
    async with broker.consume(words, prefetch=prefetch) as deliveries:
        await asyncio.sleep(0.001)
        seen = []
        for _ in range(100):
            delivery = await anext(deliveries)
            seen.append(int(delivery.value))
            await delivery.ack()
    assert seen == expected


async def test_five_is_the_default(broker: Broker) -> None:
    await broker.publish(words, "four", priority=4)
    await broker.publish(words, "default")
    await broker.publish(words, "six", priority=6)
    async with broker.consume(words) as deliveries:
        assert [(await anext(deliveries)).value for _ in range(3)] == ["six", "default", "four"]


@pytest.mark.parametrize("prefetch", [1, 4])
async def test_inversion_is_bounded_by_what_handlers_hold(
    broker: Broker, clock: VirtualClock, serve: Any, prefetch: int
) -> None:
    log: list[str] = []

    async def handler(word: str) -> None:
        log.append(word)
        await clock.sleep(1)

    await broker.publish_many(words, [f"low-{n}" for n in range(100)], priority=1)
    async with serve(words, handler, concurrency=1, prefetch=prefetch, run={"grace": 0}):
        await clock.settle()
        assert log == ["low-0"]
        await broker.publish(words, "high", priority=9)
        await clock.advance(prefetch)
    assert log[: prefetch + 1][-1] == "high" or log.index("high") <= prefetch


async def test_with_prefetch_one_the_high_one_is_next(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    log: list[str] = []

    async def handler(word: str) -> None:
        log.append(word)
        await clock.sleep(1)

    await broker.publish_many(words, [f"low-{n}" for n in range(100)], priority=1)
    async with serve(words, handler, concurrency=1, prefetch=1, run={"grace": 0}):
        await clock.settle()
        await broker.publish(words, "high", priority=9)
        await clock.advance(1)
        assert log == ["low-0", "high"]


async def test_the_buffer_is_sorted_too(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    log: list[str] = []

    async def handler(word: str) -> None:
        log.append(word)
        await clock.sleep(1)

    await broker.publish(words, "first", priority=1)
    async with serve(words, handler, concurrency=1, prefetch=10):
        await clock.settle()
        await filled(broker, "low", "high", "middle", priorities=[2, 9, 5])
        await clock.advance(10)
    assert log == ["first", "high", "middle", "low"]


async def test_priority_survives_retry_dead_letter_and_redrive(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async def fail(_: str) -> None:
        raise ValueError

    await filled(broker, "low", "high", priorities=[1, 9])
    async with serve(words, fail, retry=RetryPolicy(2, fixed(10)), concurrency=1):
        await clock.advance(20)
    letters = await broker.dead_letters(words).list()
    assert [letter.message.priority for letter in letters] == [9, 1]
    assert [entry.message.body for entry in await broker.peek("words.dlq")] == [b"high", b"low"]
    await broker.dead_letters(words).redrive()
    async with broker.consume(words) as deliveries:
        assert [(await anext(deliveries)).value for _ in range(2)] == ["high", "low"]


async def test_a_released_message_returns_to_its_old_place(broker: Broker) -> None:
    await broker.publish_many(words, ["a", "b", "c"])
    async with broker.consume(words, prefetch=1) as deliveries:
        await (await anext(deliveries)).release()
        again = await anext(deliveries)
        assert (again.value, again.redelivered, again.attempt) == ("a", True, 1)
        await again.ack()
        second = await anext(deliveries)
        assert (second.value, second.redelivered) == ("b", False)


async def test_a_retried_message_goes_to_the_end_of_its_level(
    broker: Broker, clock: VirtualClock
) -> None:
    await broker.publish_many(words, ["a", "b", "c"])
    async with broker.consume(words, prefetch=1, retry=RetryPolicy(3, fixed(0))) as deliveries:
        await (await anext(deliveries)).retry()
        seen = []
        for _ in range(3):
            delivery = await anext(deliveries)
            seen.append(delivery.value)
            await delivery.ack()
    assert seen == ["b", "c", "a"]


async def test_one_consumer_sees_publish_order(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    log: list[str] = []

    async def handler(word: str) -> None:
        log.append(word)

    async with serve(words, handler, concurrency=1):
        for n in range(50):
            await broker.publish(words, f"{n}")
        await broker.publish_many(words, [f"{n}" for n in range(50, 500)])
        await clock.settle()
    assert log == [f"{n}" for n in range(500)]


@pytest.mark.parametrize(("concurrency", "prefetch"), [(1, 1), (3, 3), (2, 8), (8, 2)])
async def test_prefetch_is_an_exact_ceiling_whatever_the_depth(
    broker: Broker, clock: VirtualClock, serve: Any, concurrency: int, prefetch: int
) -> None:
    most = 0
    handled = 0

    async def handler(_: str) -> None:
        nonlocal most, handled
        most = max(most, (await broker.counts(words))[0].leased)
        handled += 1

    await broker.publish_many(words, [""] * 1000)
    async with serve(words, handler, concurrency=concurrency, prefetch=prefetch):
        await clock.settle()
    assert handled == 1000
    assert most == prefetch


async def test_a_deep_queue_is_not_taken_in(
    broker: Broker, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await broker.publish_many(words, [""] * 20_000)
    async with serve(words, held, concurrency=4, prefetch=6, run={"grace": 0}) as worker:
        await clock.settle()
        counts = (await broker.counts(words))[0]
        assert (counts.leased, counts.ready) == (6, 19_994)
        assert worker._runners[0].receiver.holding == 6
        assert len(held.began) == 4
    assert (await broker.counts(words))[0].ready == 20_000


async def test_a_thousand_at_once(
    broker: Broker, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await broker.publish_many(words, [""] * 3000)
    async with serve(words, held, concurrency=1000):
        await clock.settle()
        assert len(held.began) == 1000
        assert (await broker.counts(words))[0].leased == 2000
        held.go.set()
        await clock.settle()
        assert len(held.ended) == 3000


async def test_two_workers_share_and_each_message_is_handled_once(
    broker: Broker, other: Broker, clock: VirtualClock, serve: Any
) -> None:
    log: list[tuple[str, str]] = []

    def handler(name: str) -> Any:
        async def handle(word: str) -> None:
            log.append((name, word))
            await clock.sleep(0.001)

        return handle

    await broker.publish_many(words, [f"{n}" for n in range(300)])
    async with (
        serve(words, handler("one"), concurrency=5),
        serve(words, handler("two"), concurrency=5, on=other),
    ):
        await clock.advance(1)
    assert sorted(word for _, word in log) == sorted(f"{n}" for n in range(300))
    assert {name for name, _ in log} == {"one", "two"}


async def test_cancelled_pulls_lose_nothing(broker: Broker) -> None:
    await broker.publish_many(words, [f"{n}" for n in range(100)])
    seen: list[str] = []

    async def pull(deliveries: Any) -> None:
        delivery = await anext(deliveries)
        seen.append(delivery.value)
        await delivery.ack()

    for turn in range(400):
        async with asyncio.timeout(5), broker.consume(words, prefetch=1 + turn % 5) as deliveries:
            task = asyncio.create_task(pull(deliveries))
            for _ in range(turn % 13):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    async with broker.consume(words) as deliveries:
        while (delivery := await deliveries.get(timeout=0.0)) is not None:
            seen.append(delivery.value)
            await delivery.ack()
            await asyncio.sleep(0)
    counts = (await broker.counts(words))[0]
    assert len(set(seen)) + counts.ready == 100
    assert counts.leased == 0
