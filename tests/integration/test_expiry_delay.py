"""G6 and G7: when a message may no longer start, and when it may not start yet."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from support.waiting import eventually

from mqcore import Broker, DeadLetter, Queue, RetryPolicy, Settings, ValidationError, fixed
from mqcore.testing import VirtualClock

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
words = Queue("words", str)


class Log:
    """A handler that notes what it was given and when."""

    def __init__(self, clock: VirtualClock, lasts: float = 0.0) -> None:
        self.clock, self.lasts = clock, lasts
        self.times: dict[str, float] = {}

    async def __call__(self, word: str) -> None:
        self.times[word] = self.clock.monotonic()
        if self.lasts:
            await self.clock.sleep(self.lasts)


@pytest.mark.parametrize("ttl", [3600, timedelta(hours=1)], ids=["seconds", "timedelta"])
async def test_nothing_starts_after_its_ttl(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead, ttl: float | timedelta
) -> None:
    await broker.publish(words, "x", ttl=ttl)
    await clock.advance(3600)
    log = Log(clock)
    async with serve(words, log):
        await clock.settle()
    assert not log.times
    (letter,) = await dead(words)
    assert (letter.reason, letter.attempts, letter.body) == ("expired", 0, b"x")


async def test_it_starts_just_before(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    await broker.publish(words, "x", ttl=3600)
    await clock.advance(3599.9)
    log = Log(clock)
    async with serve(words, log):
        await clock.settle()
    assert log.times == {"x": 3599.9}


@pytest.mark.parametrize(
    ("queue_ttl", "ttl", "lives"), [(10, 100, 10), (100, 10, 10), (10, None, 10)]
)
async def test_the_shorter_ttl_wins(
    broker: Broker,
    clock: VirtualClock,
    dead: Dead,
    queue_ttl: float,
    ttl: float | None,
    lives: float,
) -> None:
    brief = Queue("brief", str, ttl=queue_ttl)
    await broker.publish(brief, "x", ttl=ttl)
    await clock.advance(lives - 0.1)
    async with broker.consume(brief) as deliveries:
        await (await anext(deliveries)).release()
    await clock.advance(0.1)
    async with broker.consume(brief) as deliveries:
        getting = asyncio.create_task(deliveries.get(timeout=1))
        await clock.advance(1)
        assert await getting is None
    assert [letter.reason for letter in await dead(brief)] == ["expired"]


async def test_a_configured_ttl_counts(clock: VirtualClock, url: str, serve: Any) -> None:
    settings = Settings.model_validate({"queues": {"words": {"ttl": 5.0}}})
    async with Broker.connect(url, clock=clock, settings=settings) as broker:
        await broker.publish(words, "x")
        await clock.advance(5)
        log = Log(clock)
        async with serve(words, log, on=broker):
            await clock.settle()
        assert not log.times
        with pytest.raises(ValidationError, match="ttl 5"):
            await broker.publish(words, "y", delay=5)


async def test_what_expires_behind_a_busy_handler_never_starts(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    await broker.publish(words, "long")
    await broker.publish(words, "brief", ttl=30)
    log = Log(clock, lasts=100)
    async with serve(words, log, concurrency=1, prefetch=2):
        await clock.settle()
        assert (await broker.counts(words))[0].leased == 2  # it is here, in the buffer
        await clock.advance(100)
    assert log.times == {"long": 0}
    assert [letter.reason for letter in await dead(words)] == ["expired"]


async def test_an_expired_one_is_swept_while_all_handlers_are_busy(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    await broker.publish(words, "long")
    await broker.publish_many(words, ["a", "b", "c"], ttl=30)
    await broker.publish(words, "patient")
    log = Log(clock, lasts=1000)
    async with serve(words, log, concurrency=1, prefetch=1, timeout=None):
        await clock.advance(29)
        assert await dead(words) == []
        await clock.advance(6)
        assert [letter.body for letter in await dead(words)] == [b"a", b"b", b"c"]
        assert (await broker.counts(words))[0].ready == 1
        await clock.advance(2000)
    assert log.times == {"long": 0, "patient": 1000}


async def test_an_expired_one_deep_in_the_queue_is_swept(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    await broker.publish_many(words, [f"n{n}" for n in range(50)])
    await broker.publish(words, "brief", ttl=20)
    async with serve(words, Log(clock, lasts=10), concurrency=1, prefetch=2, run={"grace": 0}):
        await clock.advance(30)
        assert [letter.body for letter in await dead(words)] == [b"brief"]


async def test_a_dead_letter_does_not_expire_again(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    await broker.publish(words, "x", ttl=10)
    await clock.advance(10)
    async with serve(words, Log(clock)):
        await clock.settle()
    await clock.advance(10**7)
    assert len(await dead(words)) == 1
    async with broker.consume("words.dlq") as deliveries:
        assert (await anext(deliveries)).value == b"x"


async def test_expired_without_a_dead_letter_queue_is_dropped_and_counted(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    loose = Queue("loose", str, dead_letter=None)
    await broker.publish(loose, "x", ttl=1)
    await clock.advance(2)
    async with serve(loose, Log(clock)):
        await clock.settle()
    assert broker.events.counts["message.dropped"] == 1
    assert (await broker.counts(loose))[0].ready == 0


async def test_the_pull_api_does_not_hand_out_what_has_expired(
    broker: Broker, clock: VirtualClock, dead: Dead
) -> None:
    await broker.publish(words, "a")
    await broker.publish(words, "b", ttl=10)
    async with broker.consume(words) as deliveries:
        await (await anext(deliveries)).ack()
        await clock.advance(10)  # b was buffered meanwhile
        getting = asyncio.create_task(deliveries.get(timeout=1))
        await clock.advance(1)
        assert await getting is None
    assert [letter.reason for letter in await dead(words)] == ["expired"]


async def test_a_delay_of_a_day(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    await broker.publish(words, "x", delay=timedelta(days=1))
    log = Log(clock)
    async with serve(words, log):
        await clock.advance(86_399.99)
        assert not log.times
        counts = (await broker.counts(words))[0]
        assert (counts.delayed, counts.ready, counts.leased) == (1, 0, 0)
        await clock.advance(0.01)
        assert log.times == {"x": pytest.approx(86_400, abs=0.005)}


async def test_in_order_of_due_time_and_a_short_one_is_not_stuck_behind_a_long_one(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    for delay in (50, 5, 500, 20, 0, 35):
        await broker.publish(words, f"{delay}", delay=delay)
    log = Log(clock)
    async with serve(words, log, concurrency=1):
        await clock.advance(1000)
    assert log.times == {"0": 0, "5": 5, "20": 20, "35": 35, "50": 50, "500": 500}
    assert list(log.times) == ["0", "5", "20", "35", "50", "500"]


async def test_many_that_fall_due_at_once_keep_their_order(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    await broker.publish_many(words, [f"{n}" for n in range(200)], delay=60)
    log = Log(clock)
    async with serve(words, log, concurrency=1):
        await clock.advance(60)
    assert list(log.times) == [f"{n}" for n in range(200)]


async def test_a_delayed_message_keeps_its_priority(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    await broker.publish(words, "low", delay=10, priority=1)
    await broker.publish(words, "high", delay=10, priority=9)
    await clock.advance(10)
    log = Log(clock)
    async with serve(words, log, concurrency=1):
        await clock.settle()
    assert list(log.times) == ["high", "low"]


async def test_a_delay_survives_a_client(
    broker: Broker, other: Broker, clock: VirtualClock, serve: Any
) -> None:
    await other.publish(words, "x", delay=100)
    await other.close()
    await clock.advance(100)
    log = Log(clock)
    async with serve(words, log):
        await clock.settle()
    assert log.times == {"x": 100}


@pytest.mark.parametrize(("delay", "ttl"), [(10, 10), (11, 10)])
async def test_a_delay_beyond_the_expiry_is_an_error(
    broker: Broker, delay: float, ttl: float
) -> None:
    with pytest.raises(ValidationError, match="expired"):
        await broker.publish(words, "x", delay=delay, ttl=ttl)
    with pytest.raises(ValidationError, match="expired"):
        await broker.publish(Queue("brief", str, ttl=ttl), "x", delay=delay)


async def test_ttl_counts_from_publish_not_from_due(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    await broker.publish(words, "x", delay=10, ttl=15)
    await clock.advance(15)
    log = Log(clock)
    async with serve(words, log):
        await clock.settle()
    assert not log.times
    assert [letter.reason for letter in await dead(words)] == ["expired"]


async def test_a_batch_that_lingers_does_not_start_what_expired_meanwhile(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    batches: list[list[str]] = []

    async def handler(items: list[Any]) -> None:
        batches.append([item.value for item in items])

    await broker.publish(words, "brief", ttl=5)
    await broker.publish(words, "patient")
    async with serve(words, handler, batch=10, linger=10):
        await clock.advance(10)
    assert batches == [["patient"]]
    assert [letter.reason for letter in await dead(words)] == ["expired"]


async def test_a_blocking_handler_does_not_start_what_expired_while_it_waited_for_a_thread(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    go, started = threading.Event(), []

    async def both_dead() -> bool:
        return len(await dead(words)) == 2

    def handler(word: str) -> None:
        started.append(word)
        go.wait(2)

    await broker.publish(words, "stuck")
    await broker.publish(words, "brief", ttl=60)
    try:
        async with serve(
            words,
            handler,
            concurrency=1,
            timeout=10,
            retry=RetryPolicy(1, fixed(0)),
            run={"grace": 0},
        ):
            await clock.advance(30)  # the first is settled, its thread goes on
            assert [letter.reason for letter in await dead(words)] == ["timeout"]
            await clock.advance(60)
            assert started == ["stuck"]
            go.set()
            await eventually(both_dead)
    finally:
        go.set()
    assert started == ["stuck"]
    assert [letter.reason for letter in await dead(words)] == ["timeout", "expired"]
