"""Workers whose broker is away: they start, wait for it, and may handle what is in the spool."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from support.faulty import Broken, Faults, plugin_for, raised

from mqcore import App, Broker, Context, Fallback, Queue, RetryPolicy, Settings, Worker
from mqcore.broker import session_of
from mqcore.config.plugins import Plugins
from mqcore.consuming.spooled import SpoolBackend
from mqcore.messages.message import Message
from mqcore.publishing.parcel import Parcel, enclose
from mqcore.publishing.relay import relay_specs
from mqcore.publishing.spool import lane_name
from mqcore.rules.backoff import STEADY
from mqcore.rules.retry import fixed
from mqcore.spi import Outgoing
from mqcore.testing import VirtualClock, memory_url

numbers = Queue("numbers", int)
AWAY = 10_000

Run = Callable[..., Any]


@pytest.fixture(params=["memory", "sqlite"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return memory_url() if request.param == "memory" else f"sqlite:///{tmp_path}/spool.db"


async def ended(clock: VirtualClock, call: Any) -> Any:
    task = asyncio.ensure_future(call)
    while not task.done():
        await clock.advance(0.1)
    return await task


async def until(clock: VirtualClock, condition: Callable[[], object], within: float = 60.0) -> None:
    end = clock.monotonic() + within
    while not condition():
        assert clock.monotonic() < end, "it did not happen in time"
        await clock.advance(0.1)


def is_away(faults: Faults) -> None:
    faults.next("open", *[raised(Broken("no server"))] * AWAY)
    faults.lose()


def is_back(faults: Faults) -> None:
    faults.forget("open")


def kept_in(values: list[int]) -> Callable[[int], Any]:
    """Return a handler that keeps what it gets."""

    async def handler(value: int) -> None:
        values.append(value)

    return handler


@pytest.fixture
def run(clock: VirtualClock, url: str, faults: Faults, spool: str) -> Run:
    """Run a worker with one handler on a broker whose server fails as the test says."""
    plugins = Plugins()
    plugins.register(plugin_for(faults))

    @asynccontextmanager
    async def run(
        handler: Callable[..., Any], *, consume: bool, **options: Any
    ) -> AsyncIterator[tuple[Broker, Worker]]:
        app = App("shop")
        app.register(numbers, handler, options)  # type: ignore[arg-type]  # a test names real options
        fallback = Fallback(url=spool, consume=consume)  # type: ignore[arg-type]  # a text is a URL
        where = url.replace("memory://", "faulty://")
        broker = app.connect(
            where, clock=clock, plugins=plugins, fallback=fallback, settings=Settings()
        )
        await broker.open()
        worker = Worker(app, broker, grace=1.0)
        await ended(clock, worker.start())
        try:
            yield broker, worker
        finally:
            await ended(clock, worker.drain())
            await ended(clock, broker.close())

    return run


async def test_a_worker_starts_while_the_broker_is_away(
    run: Run, clock: VirtualClock, faults: Faults, broker: Broker
) -> None:
    handled: list[int] = []
    is_away(faults)
    async with run(kept_in(handled), consume=False) as (app, worker):
        assert worker.health().consuming == {"numbers": False}
        await ended(clock, app.publish(numbers, 1))
        await clock.advance(30.0)
        assert handled == []
        is_back(faults)
        await until(clock, lambda: handled == [1])
        await broker.publish(numbers, 2)
        await until(clock, lambda: handled == [1, 2])
        assert worker.health().ok


async def test_a_worker_that_still_waits_for_the_broker_ends_at_once(
    run: Run, clock: VirtualClock, faults: Faults
) -> None:
    is_away(faults)
    async with run(kept_in([]), consume=False) as (_, worker):
        worker.stop()


async def test_what_is_in_the_spool_is_handled_while_the_broker_stays_away(
    run: Run, clock: VirtualClock, faults: Faults, broker: Broker
) -> None:
    handled: list[int] = []
    is_away(faults)
    async with run(kept_in(handled), consume=True, concurrency=1) as (app, worker):
        for each in range(50):
            await ended(clock, app.publish(numbers, each))
        await until(clock, lambda: len(handled) == 50)
        assert handled == list(range(50))
        await until(clock, lambda: app.events.counts["message.done"] == 50)
        assert worker.health().consuming == {"numbers": True}
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert app.events.counts["message.relayed"] == 0
        assert (await broker.counts("numbers"))[0].total == 0


async def test_a_consumer_that_is_added_handles_what_is_in_the_spool_too(
    run: Run, clock: VirtualClock, faults: Faults, broker: Broker
) -> None:
    handled: list[int] = []
    async with run(kept_in(handled), consume=True) as (app, worker):
        await ended(clock, worker.remove(numbers))
        await ended(clock, worker.add(numbers))
        is_away(faults)
        await ended(clock, app.publish(numbers, 1))
        await until(clock, lambda: handled == [1])

        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        await ended(clock, worker.remove(numbers))
        assert worker._spool_runners == []
        assert (await broker.counts("numbers"))[0].total == 0


async def test_a_lane_that_was_deleted_is_declared_again_by_its_consumer(
    run: Run, clock: VirtualClock, faults: Faults
) -> None:
    handled: list[int] = []
    is_away(faults)
    async with run(kept_in(handled), consume=True) as (app, _):
        await ended(clock, app.publish(numbers, 1))
        await until(clock, lambda: handled == [1])
        standby = session_of(app).standby
        assert standby is not None
        store: Any = standby.spool.connection.backend
        await ended(clock, store.delete("mq.spool.numbers"))
        await until(clock, lambda: app.events.counts["consumer.interrupted"])
        await clock.advance(5.0)
        assert (await ended(clock, app.publish(numbers, 2))).spooled
        await until(clock, lambda: handled == [1, 2])


async def test_the_spool_is_not_consumed_while_the_broker_is_there(
    run: Run, clock: VirtualClock, faults: Faults, broker: Broker
) -> None:
    handled: list[int] = []
    async with run(kept_in(handled), consume=True) as (app, _):
        await ended(clock, app.publish(numbers, 1))
        await until(clock, lambda: handled == [1])
        is_away(faults)
        await ended(clock, app.publish(numbers, 2))
        is_back(faults)
        await until(clock, lambda: handled == [1, 2])
        assert app.events.counts["message.relayed"] == 1


async def test_a_retry_waits_in_the_spool_and_keeps_its_attempts(
    run: Run, clock: VirtualClock, faults: Faults
) -> None:
    attempts: list[tuple[int, float]] = []

    async def handler(_: int, ctx: Any) -> None:
        attempts.append((ctx.attempt, clock.monotonic()))
        if ctx.attempt < 3:
            raise ValueError("not yet")

    is_away(faults)
    retry = RetryPolicy(3, backoff=fixed(10.0))
    async with run(handler, consume=True, retry=retry) as (app, _):
        await ended(clock, app.publish(numbers, 1, headers={"a": "b"}))
        await until(clock, lambda: len(attempts) == 3)
        assert [attempt for attempt, _ in attempts] == [1, 2, 3]
        assert attempts[1][1] - attempts[0][1] >= 10.0


async def test_a_retry_in_the_spool_goes_on_at_the_broker(
    run: Run, clock: VirtualClock, faults: Faults
) -> None:
    attempts: list[int] = []

    async def handler(_: int, ctx: Any) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("not yet")

    is_away(faults)
    retry = RetryPolicy(3, backoff=fixed(10.0))
    async with run(handler, consume=True, retry=retry) as (app, _):
        await ended(clock, app.publish(numbers, 1))
        await until(clock, lambda: len(attempts) == 1)
        is_back(faults)
        await until(clock, lambda: len(attempts) == 3)
        assert attempts == [1, 2, 3]
        await until(clock, lambda: not app.health().degraded)


async def test_a_retry_that_waits_in_the_spool_holds_up_no_publish(
    run: Run, clock: VirtualClock, faults: Faults
) -> None:
    attempts: list[tuple[int, int]] = []

    async def handler(value: int, ctx: Any) -> None:
        attempts.append((value, ctx.attempt))
        if (value, ctx.attempt) == (1, 1):
            raise ValueError("not yet")

    is_away(faults)
    retry = RetryPolicy(3, backoff=fixed(300.0))
    async with run(handler, consume=True, retry=retry) as (app, _):
        await ended(clock, app.publish(numbers, 1))
        await until(clock, lambda: app.events.counts["message.retried"] == 1)
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert not (await ended(clock, app.publish(numbers, 2))).spooled
        await until(clock, lambda: attempts == [(1, 1), (2, 1)])
        await clock.advance(300.0)
        await until(clock, lambda: attempts == [(1, 1), (2, 1), (1, 2)])
        await until(clock, lambda: not app.health().degraded)


async def test_a_dead_letter_in_the_spool_goes_to_the_broker_later(
    run: Run, clock: VirtualClock, faults: Faults, broker: Broker
) -> None:
    async def handler(_: int) -> None:
        raise ValueError("never")

    is_away(faults)
    async with run(handler, consume=True, retry=RetryPolicy(1)) as (app, _):
        await ended(clock, app.publish(numbers, 7))
        await until(clock, lambda: app.events.counts["message.dead"] == 1)
        is_back(faults)
        await until(clock, lambda: app.events.counts["message.relayed"] == 1)
        (letter,) = await broker.dead_letters(numbers).list()
        assert (letter.reason, letter.message.body) == ("retries_exhausted", b"7")


async def test_delay_and_expiry_hold_in_the_spool(
    run: Run, clock: VirtualClock, faults: Faults
) -> None:
    handled: list[tuple[int, float]] = []
    is_away(faults)

    async def handler(value: int) -> None:
        handled.append((value, clock.monotonic()))

    async with run(handler, consume=True) as (app, _):
        await ended(clock, app.publish(numbers, 3, ttl=0.2))
        began = clock.monotonic()
        await ended(clock, app.publish(numbers, 1, delay=20.0))
        await ended(clock, app.publish(numbers, 2))
        await until(clock, lambda: len(handled) == 2)
        assert [value for value, _ in handled] == [2, 1]
        assert handled[1][1] - began >= 19.9
        assert app.events.counts["message.dead"] == 1


async def test_what_a_worker_holds_from_the_spool_is_not_relayed_meanwhile(
    run: Run, clock: VirtualClock, faults: Faults, broker: Broker
) -> None:
    handled: list[int] = []
    gate = asyncio.Event()

    async def handler(value: int) -> None:
        handled.append(value)
        await gate.wait()

    is_away(faults)
    async with run(handler, consume=True, concurrency=1, prefetch=1) as (app, _):
        for each in (1, 2):
            await ended(clock, app.publish(numbers, each))
        await until(clock, lambda: handled == [1])
        is_back(faults)
        await clock.advance(STEADY + 60.0)
        assert handled == [1]
        gate.set()
        await until(clock, lambda: handled == [1, 2])
        assert app.events.counts["message.relayed"] == 1
        await until(clock, lambda: app.events.counts["message.done"] == 2)


async def test_a_relay_that_is_killed_is_no_crash_of_a_handler(
    run: Run, clock: VirtualClock, faults: Faults, spool: str
) -> None:
    attempts: list[int] = []

    async def handler(_: int, ctx: Context) -> None:
        attempts.append(ctx.attempt)

    lane = lane_name("numbers", is_router=False)
    async with Broker.connect(spool, clock=clock, settings=Settings()) as store:
        connection = session_of(store).connection
        await connection.declare(relay_specs(lane, dead_letter="mq.spooled.dlq"))
        parcel = Parcel(Outgoing("numbers", Message(id="a", body=b"1")), clock.now())
        await connection.publish([enclose(parcel, lane)], 10.0)
        for _ in range(3):
            relay = await connection.subscribe(lane, 10, 30.0)
            assert await relay.receive(10, 1.0)
            await relay.close()  # what it holds counts as taken over, as after a death

        is_away(faults)
        async with run(handler, consume=True, retry=RetryPolicy(max_attempts=1)) as (app, _):
            await until(clock, lambda: attempts == [1])
            assert app.events.counts["message.dead"] == 0


async def test_a_stop_while_a_delayed_message_is_put_back_is_no_crash_of_the_others(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    lane, began, gate = lane_name("numbers", is_router=False), asyncio.Event(), asyncio.Event()

    async def slow(_backend: object, do: Callable[..., Any], batch: Sequence[Any]) -> Any:
        began.set()
        await gate.wait()
        return await do(batch)

    store = session_of(faulty).connection
    await store.declare(relay_specs(lane))
    outs = [
        Outgoing("numbers", Message(id="now", body=b"1")),
        Outgoing("numbers", Message(id="later", body=b"2"), delay=60.0),
    ]
    await store.publish([enclose(Parcel(out, clock.now()), lane) for out in outs], 5.0)
    spool = SpoolBackend(store.backend, lambda: True, clock)
    subscription = await spool.subscribe("numbers", prefetch=10, lease=30.0)
    assert await ended(clock, subscription.receive(10, 5.0)) == []  # it has just begun to be away
    await clock.advance(1.0)

    faults.next("settle", slow)
    receiving = asyncio.create_task(subscription.receive(10, 5.0))
    await began.wait()
    receiving.cancel()
    await asyncio.gather(receiving, return_exceptions=True)
    closing = asyncio.create_task(subscription.close())
    gate.set()
    await closing

    (delivery,) = await (await store.subscribe(lane, 10, 30.0)).receive(10, 0.0)
    assert (delivery.message.correlation_id, delivery.takeovers) == ("now", 0)
    (counts,) = await faulty.counts(lane)
    assert counts.delayed == 1
