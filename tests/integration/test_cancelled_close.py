"""G3, G13: a close that is cancelled goes on, so an ended consumer holds nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.faulty import (
    Faults,
    FaultyBackend,
    FaultySubscription,
    hung,
    late_answer,
    plugin_for,
    slow,
)
from support.waiting import eventually

from mqcore import App, Broker, ConnectionLost, Queue, Settings, Worker
from mqcore.config.plugins import Plugins
from mqcore.spi import Subscription

if TYPE_CHECKING:
    from mqcore.testing import VirtualClock

jobs = Queue("jobs", str)


async def contents(broker: Broker) -> list[tuple[bytes, int]]:
    """Receive what is in the queue: each body, and how often it was taken over."""
    subscription: Subscription = await broker._session.connection.backend.subscribe(
        "jobs", prefetch=100, lease=30
    )
    got = await subscription.receive(100, 0)
    return sorted((it.message.body, it.takeovers) for it in got)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_consumer_whose_close_is_cancelled_while_it_waits_for_answers(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    """Else its claim is renewed as long as the process lives, and is never settled."""
    await faulty.publish(jobs, "a")
    consumer = faulty.consume(jobs)
    await anext(consumer)
    faults.next("settle", hung())
    closing = asyncio.create_task(consumer.close())
    await clock.settle()
    await cancelled(closing)

    for _ in range(20):
        await clock.advance(5)
        await asyncio.sleep(0.1)  # under a virtual clock, answers are waited for in real time
    assert await contents(faulty) == [(b"a", 1)]


@pytest.mark.parametrize("turns", range(1, 7))
async def test_a_close_that_is_cancelled_early(
    faulty: Broker, clock: VirtualClock, turns: int
) -> None:
    await faulty.publish_many(jobs, ["a", "b"])
    consumer = faulty.consume(jobs)
    await anext(consumer)
    closing = asyncio.create_task(consumer.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    if closing.done():
        return
    await cancelled(closing)

    await clock.settle()
    await clock.advance(1)
    assert await contents(faulty) == [(b"a", 0), (b"b", 0)]


async def test_a_close_after_a_cancelled_one_waits_for_its_end(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.publish(jobs, "a")
    consumer = faulty.consume(jobs)
    await anext(consumer)
    faults.next("settle", late_answer(1))
    closing = asyncio.create_task(consumer.close())
    await clock.settle()
    await cancelled(closing)

    again = asyncio.create_task(consumer.close())
    await clock.settle()
    assert not again.done()
    await clock.advance(2)
    await again
    assert await contents(faulty) == [(b"a", 0)]


async def test_a_run_that_is_cancelled_while_its_drain_waits_for_answers(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    """Nothing is left running after it, although the first drain had begun to close."""
    app = App("test")
    app.register(jobs, lambda _: None, {})
    await faulty.publish(jobs, "a")
    faults.next("settle", hung())
    worker = Worker(app, faulty)
    running = asyncio.create_task(worker.run())
    await clock.settle()
    await eventually(lambda: faults.calls["settle"])
    worker.stop()
    await clock.settle()
    await cancelled(running)
    assert await contents(faulty) == [(b"a", 1)]


async def test_an_end_while_the_start_of_a_suspect_is_noted_frees_the_gate(
    faulty: Broker, clock: VirtualClock, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers of a broker share the isolation lock: the next one would start nothing (G4)."""
    asked, handled = asyncio.Event(), asyncio.Event()

    async def never(*_: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    async def handle(_: str) -> None:
        handled.set()

    await faulty.declare(jobs)
    await faulty.publish("jobs.quarantine", "a suspect")
    with monkeypatch.context() as patch:
        patch.setattr(FaultyBackend, "note_start", never, raising=False)
        async with serve(jobs, handle, on=faulty, run={"grace": 0}):
            await asyncio.wait_for(asked.wait(), 10)
            await clock.settle()
    assert not handled.is_set()

    other = Queue("other", str)
    await faulty.publish(other, "an innocent")
    async with serve(other, handle, on=faulty):
        await clock.settle()
        assert handled.is_set()


async def test_a_close_while_the_broker_is_being_opened(
    faults: Faults, clock: VirtualClock, url: str
) -> None:
    """Nobody would close the connection that comes after the close."""
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    where = url.replace("memory://", "faulty://")
    broker = Broker.connect(where, clock=clock, settings=Settings(), plugins=plugins)
    faults.next("open", slow(1))
    opening = asyncio.create_task(broker.open())
    await clock.settle()
    await broker.close()
    await clock.advance(2)
    with pytest.raises(ConnectionLost, match="closed"):
        await opening
    assert not any(backend.up for backend in faults.backends)


async def test_a_connection_lost_while_receiving_stops_is_subscribed_once(
    faulty: Broker,
    faults: Faults,
    clock: VirtualClock,
    serve: Any,
    held: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody would close the first of two subscriptions."""
    receive = FaultySubscription.receive

    async def stubborn(self: FaultySubscription, limit: int, timeout: float) -> Any:
        try:
            return await receive(self, limit, timeout)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            raise

    monkeypatch.setattr(FaultySubscription, "receive", stubborn)
    faults.keeps_claims = True
    await faulty.publish(jobs, "a")
    async with serve(jobs, held, on=faulty) as worker:
        await clock.settle()
        draining = asyncio.create_task(worker.drain(60))
        await asyncio.sleep(0.01)
        subscribed = faults.calls["subscribe"]
        faults.lose()
        await clock.advance(5)
        held.go.set()
        await clock.advance(5)
        await draining
    assert faults.calls["subscribe"] == subscribed + 1
    assert held.ended == ["a"]
