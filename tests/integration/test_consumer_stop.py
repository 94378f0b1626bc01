"""`Consumer.stop`: nothing more comes in, and what was handed out can still be settled."""

from __future__ import annotations

import threading

import pytest

from mqcore import Broker, ConnectionLost, Queue
from mqcore.sync import Broker as SyncBroker
from mqcore.sync.loop_thread import LoopThread

jobs = Queue("jobs", str)


async def test_what_waits_goes_back_and_what_was_handed_out_is_settled(broker: Broker) -> None:
    await broker.publish_many(jobs, ["a", "b", "c"])
    async with broker.consume(jobs, prefetch=2) as deliveries:
        first = await anext(deliveries)
        await deliveries.stop()
        await deliveries.stop()
        assert [delivery async for delivery in deliveries] == []
        [counts] = await broker.counts(jobs)
        assert (counts.ready, counts.leased) == (2, 1)
        await first.ack()
    [counts] = await broker.counts(jobs)
    assert (counts.ready, counts.leased) == (2, 0)


async def test_a_consumer_that_has_not_begun_stops_too(broker: Broker) -> None:
    await broker.consume(jobs).stop()


def test_the_blocking_consumer(url: str) -> None:
    with SyncBroker.connect(url) as broker:
        broker.publish_many(jobs, ["a", "b"])
        with broker.consume(jobs) as deliveries:
            first = next(deliveries)
            deliveries.stop()
            assert list(deliveries) == []
            first.ack()
        assert broker.counts(jobs)[0].ready == 1


async def _nothing() -> None:
    pass


async def _turn() -> None:
    pass


def test_posted_calls_are_made_in_order_and_an_error_ends_no_other() -> None:
    loop, made = LoopThread(_nothing), list[int]()

    def call(number: int) -> None:
        made.append(number)
        if number == 1:
            raise ValueError("a call that fails")

    for number in range(4):
        loop.post(lambda number=number: call(number))  # type: ignore[misc]  # the default of a lambda
    for _ in range(3):
        loop.run(_turn())
    assert made == [0, 1, 2, 3]
    loop.close()
    with pytest.raises(ConnectionLost):
        loop.post(print)


def test_no_posted_call_is_lost_between_threads() -> None:
    loop, made = LoopThread(_nothing), list[int]()
    threads = [
        threading.Thread(target=lambda: [loop.post(lambda: made.append(1)) for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for _ in range(3):
        loop.run(_turn())
    assert len(made) == 2000
    loop.close()
