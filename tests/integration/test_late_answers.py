"""G3, G13: a settlement under way at the end is waited for, and its message not released."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from support.faulty import Faults, hung, plugin_for, stored_first
from support.waiting import eventually

import mqcore.sync
from mqcore import Broker, LeaseLost, Queue, Settings
from mqcore.config.plugins import Plugins
from mqcore.errors import Reject
from mqcore.spi import Subscription
from mqcore.testing import memory_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqcore.events import Event
    from mqcore.testing import VirtualClock

jobs = Queue("jobs", str)
LATE = 0.8
"""Seconds: more than the tail of a drain, which comes after its grace."""


@pytest.fixture
async def real(faults: Faults) -> AsyncIterator[Broker]:
    """As `faulty`, in real time."""
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    where = memory_url().replace("memory://", "faulty://")
    async with Broker.connect(where, settings=Settings(), plugins=plugins) as broker:
        yield broker


async def contents(broker: Broker, queue: str = "jobs") -> list[tuple[bytes, int]]:
    """Receive what is in a queue: each body, and how often it was taken over."""
    subscription: Subscription = await broker._session.connection.backend.subscribe(
        queue, prefetch=100, lease=30
    )
    got = await subscription.receive(100, 0)
    return sorted((it.message.body, it.takeovers) for it in got)


async def reject(_: str) -> None:
    raise Reject("as the test says")


async def test_a_drain_waits_for_late_answers_as_long_as_its_grace(
    real: Broker, faults: Faults, serve: Any
) -> None:
    await real.publish_many(jobs, ["a", "b", "c"])
    faults.next("settle", *[stored_first(LATE)] * 3)
    async with serve(jobs, reject, on=real, run={"grace": 20}):
        await eventually(lambda: faults.calls["settle"])
    assert await contents(real) == []
    assert await contents(real, "jobs.dlq") == [(b"a", 0), (b"b", 0), (b"c", 0)]


async def test_without_an_answer_at_the_end_the_source_is_left_to_the_broker(
    real: Broker, faults: Faults, serve: Any
) -> None:
    """A release would make it look untouched, and be one more settlement without an answer."""
    seen: list[Event] = []
    real.events.listen(seen.append)
    await real.publish_many(jobs, ["a", "b", "c"])
    faults.next("settle", *[stored_first(60)] * 3)
    async with serve(jobs, reject, on=real, run={"grace": 0}):
        await eventually(lambda: faults.calls["settle"])
    assert await contents(real) == [(b"a", 1), (b"b", 1), (b"c", 1)]
    assert await contents(real, "jobs.dlq") == [(b"a", 0), (b"b", 0), (b"c", 0)]
    assert faults.calls["settle"] == 1
    assert len([event for event in seen if event.name == "settle.unanswered"]) == 3


async def test_a_second_signal_ends_the_wait_for_answers(
    real: Broker, faults: Faults, serve: Any
) -> None:
    await real.publish(jobs, "a")
    faults.next("settle", hung())
    async with serve(jobs, reject, on=real) as worker:
        await eventually(lambda: faults.calls["settle"])
        draining = asyncio.create_task(worker.drain(3600))
        await asyncio.sleep(0.01)
        assert not draining.done()
        worker._hurry()
        await asyncio.wait_for(draining, 10)


async def test_the_pull_api_waits_for_late_answers_too(real: Broker, faults: Faults) -> None:
    await real.publish_many(jobs, ["a", "b"])
    async with real.consume(jobs) as consumer:
        rejected, kept = await anext(consumer), await anext(consumer)
        faults.next("settle", stored_first(LATE))
        rejecting = asyncio.create_task(rejected.reject("as the test says"))
        await eventually(lambda: faults.calls["settle"])
    await rejecting
    assert await contents(real) == [(kept.value.encode(), 0)]
    assert await contents(real, "jobs.dlq") == [(rejected.value.encode(), 0)]


def test_the_blocking_api_waits_for_late_answers_too(faults: Faults) -> None:
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    where = memory_url().replace("memory://", "faulty://")
    with mqcore.sync.Broker.connect(where, settings=Settings(), plugins=plugins) as broker:
        broker.publish(jobs, "a")
        with broker.consume(jobs) as consumer, ThreadPoolExecutor(1) as pool:
            delivery = next(consumer)
            faults.next("settle", stored_first(LATE))
            rejecting = pool.submit(delivery.reject, "as the test says")
            while not faults.calls["settle"]:
                time.sleep(0.001)
            consumer.close()
            rejecting.result()
        (counts,) = broker.counts(jobs)
        assert (counts.ready, counts.leased) == (0, 0)
        assert [letter.body for letter in broker.dead_letters(jobs).list()] == [b"a"]


async def test_a_settlement_that_comes_while_its_message_is_released_is_too_late(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.publish(jobs, "a")
    consumer = faulty.consume(jobs)
    delivery = await anext(consumer)
    faults.next("settle", stored_first(1))
    closing = asyncio.create_task(consumer.close())
    await clock.settle()
    with pytest.raises(LeaseLost):
        await asyncio.gather(delivery.ack(), clock.advance(2))
    await closing
    assert await contents(faulty) == [(b"a", 0)]


async def test_a_connection_lost_in_a_drain_is_restored_for_what_is_held_and_takes_in_nothing(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, held: Any
) -> None:
    """Where claims outlive the connection, the ack of a handler that ends later must arrive."""
    faults.keeps_claims = True
    await faulty.publish(jobs, "a")
    async with serve(jobs, held, on=faulty) as worker:
        await clock.settle()
        draining = asyncio.create_task(worker.drain(60))
        await clock.settle()
        faults.lose()
        await clock.advance(5)
        await faulty.publish(jobs, "b")
        await clock.advance(5)
        held.go.set()
        await clock.advance(5)
        await draining
    assert held.began == held.ended == ["a"]
    assert await contents(faulty) == [(b"b", 0)]
