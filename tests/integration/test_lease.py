"""G5: a dead consumer's messages go to another, a living one's do not, however long it takes."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.faulty import Broken, Faults, late_answer, raised
from support.waiting import eventually

from mqcore import (
    App,
    BlockingContext,
    Broker,
    Context,
    LeaseLost,
    Queue,
    Settings,
    SystemClock,
    Worker,
)
from mqcore.consuming.leases import LeaseKeeper
from mqcore.spi import DONE, STALE, Ack, Capabilities
from mqcore.testing import VirtualClock, memory_url
from mqcore_memory import MemoryBackend, MemoryOptions

Client = Callable[[], Awaitable[Broker]]
jobs = Queue("jobs", str)


async def steal(broker: Broker, clock: VirtualClock, queue: str = "jobs") -> None:
    """Let every claim of the queue run out, as on a machine that slept, and take the messages."""
    store = broker._session.connection.backend._store  # type: ignore[attr-defined]  # it is the memory backend
    found = store._queues[queue]
    for copy in list(found.leases.values()):
        found.release(copy, lost=True)
    found.nudge()


async def test_a_handler_of_ten_leases_runs_once(
    broker: Broker, other: Broker, clock: VirtualClock, serve: Any
) -> None:
    starts: list[float] = []

    async def handler(_: str) -> None:
        starts.append(clock.monotonic())
        await clock.sleep(100)

    await broker.publish(jobs, "x")
    async with serve(jobs, handler, lease=10), serve(jobs, handler, lease=10, on=other):
        await clock.advance(200)
    assert starts == [0]
    assert (await broker.counts(jobs))[0].ready == 0


async def test_a_renewal_that_notices_our_own_ack_first_takes_nothing_for_lost(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.publish(jobs, "x")
    async with faulty.consume(jobs, lease=3) as deliveries:
        delivery = await deliveries.get(timeout=1)
        assert delivery is not None
        faults.next("settle", late_answer(5))
        acking = asyncio.create_task(delivery.ack())
        await clock.advance(
            6
        )  # the claim is gone at the broker, which the renewal hears before the ack does
        await acking
    assert not delivery.lease_lost
    assert faulty.events.counts["lease.lost"] == 0


async def test_what_waits_in_the_buffer_is_kept_too(
    broker: Broker, other: Broker, clock: VirtualClock, serve: Any
) -> None:
    starts: list[str] = []

    async def handler(job: str) -> None:
        starts.append(job)
        await clock.sleep(50)

    await broker.publish_many(jobs, ["a", "b", "c"])
    async with serve(jobs, handler, lease=10, concurrency=1, prefetch=3):
        await clock.settle()
        async with other.consume(jobs) as deliveries:
            getting = asyncio.create_task(deliveries.get(timeout=140))
            await clock.advance(200)
            assert await getting is None
    assert starts == ["a", "b", "c"]


async def test_leases_of_different_lengths_are_each_kept(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    starts: list[str] = []
    short = Queue("short", str)

    async def handler(job: str) -> None:
        starts.append(job)
        await clock.sleep(60)

    app = App("two")
    app.consumer(jobs, lease=30)(handler)
    app.consumer(short, lease=3)(handler)
    await broker.publish(jobs, "long")
    async with Worker(app, broker), Worker(app, other):
        await clock.advance(1)
        await broker.publish(short, "short")
        await clock.advance(100)
    assert sorted(starts) == ["long", "short"]


async def test_a_day_in_one_step_does_not_end_a_living_lease(
    broker: Broker, other: Broker, clock: VirtualClock, serve: Any
) -> None:
    await broker.publish(jobs, "x")
    async with broker.consume(jobs) as deliveries:
        held = await anext(deliveries)
        async with other.consume(jobs) as rivals:
            getting = asyncio.create_task(rivals.get(timeout=86_000))
            await clock.advance(86_400)
            assert await getting is None
        await held.ack()
    assert (await broker.counts(jobs))[0].ready == 0


async def test_renewing_goes_on_after_a_failure(
    faulty: Broker, faults: Faults, other: Broker, clock: VirtualClock
) -> None:
    await faulty.publish(jobs, "x")
    async with faulty.consume(jobs, lease=30) as deliveries:
        held = await anext(deliveries)
        faults.next("renew", raised(Broken("for a moment")))
        await clock.advance(300)
        await held.ack()
    assert not held.lease_lost


@pytest.mark.parametrize("how", ["closed", "gone"])
async def test_a_dead_consumers_messages_go_to_another_in_time(
    broker: Broker, client: Client, clock: VirtualClock, how: str
) -> None:
    dying = await client()
    await broker.publish(jobs, "x")
    await dying.declare(jobs)
    subscription = await dying._session.connection.backend.subscribe("jobs", prefetch=1, lease=30)
    assert await subscription.receive(1, 0)
    if how == "closed":
        await dying._session.connection.backend.close()
    began = clock.monotonic()
    async with broker.consume(jobs) as deliveries:
        getting = asyncio.create_task(deliveries.get(timeout=60))
        await clock.advance(0 if how == "closed" else 31)
        assert getting.done()
        await (await getting).ack()
    assert clock.monotonic() - began <= 31


async def test_a_late_settlement_is_refused(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    await broker.publish(jobs, "x")
    async with broker.consume(jobs, prefetch=1) as deliveries:
        held = await anext(deliveries)
        await steal(broker, clock)
        rival = await other._session.connection.backend.subscribe("jobs", prefetch=1, lease=30)
        (taken,) = await rival.receive(1, 0)
        with pytest.raises(LeaseLost, match="jobs"):
            await held.ack()
        assert held.lease_lost
        assert (taken.message.id, taken.takeovers) == (held.id, 1)
        assert await rival.settle([Ack(taken.receipt)], timeout=1) == [DONE], (
            "the late ack took it from its new owner"
        )
    assert broker.events.counts["settle.stale"] == 1


@pytest.mark.parametrize("how", ["release", "retry", "reject"])
async def test_no_late_settlement_makes_a_copy(
    broker: Broker, other: Broker, clock: VirtualClock, how: str
) -> None:
    await broker.publish(jobs, "x")
    async with broker.consume(jobs, prefetch=1) as deliveries:
        held = await anext(deliveries)
        await steal(broker, clock)
        rival = await other._session.connection.backend.subscribe("jobs", prefetch=1, lease=30)
        (taken,) = await rival.receive(1, 0)
        await rival.settle([Ack(taken.receipt)], timeout=1)
        with pytest.raises(LeaseLost):
            await getattr(held, how)()
    (main, dlq) = await broker.counts(jobs, "jobs.dlq")
    assert (main.ready, main.delayed, main.leased, dlq.ready) == (0, 0, 0, 0)


async def test_a_lost_lease_cancels_an_async_handler(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    seen: list[bool] = []

    async def handler(_: str, ctx: Context) -> None:
        if ctx.redelivered:
            return
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(ctx.lease_lost)

    await broker.publish(jobs, "x")
    async with serve(jobs, handler, lease=9):
        await clock.settle()
        await steal(broker, clock)
        await clock.advance(4)
        assert seen == [True]
    assert broker.events.counts["lease.lost"] == 1
    assert (await broker.counts(jobs))[0].ready == 0


async def test_a_lost_lease_is_told_to_a_thread(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    started, told = threading.Event(), threading.Event()

    def handler(_: str, ctx: BlockingContext) -> None:
        if ctx.redelivered:
            return
        started.set()
        for _ in range(2000):
            if ctx.lease_lost:
                told.set()
                return
            time.sleep(0.001)

    clock._patience = 0.01
    await broker.publish(jobs, "x")
    async with serve(jobs, handler, lease=9):
        await clock.settle()
        await eventually(started.is_set)
        await steal(broker, clock)
        await clock.advance(4)
        await eventually(told.is_set)
    assert told.is_set()


async def test_a_loop_blocked_for_three_leases_duplicates_nothing(serve: Any) -> None:
    """In real time: renewal has a thread of its own."""
    starts: list[str] = []
    blocked = threading.Event()

    async def handler(job: str) -> None:
        starts.append(job)
        blocked.set()
        time.sleep(1.8)  # noqa: ASYNC251 - blocking the loop is what is tested

    url = memory_url()
    async with Broker.connect(url, settings=Settings()) as one:
        await one.publish(jobs, "x")
        rival_saw: list[bytes] = []
        over = threading.Event()

        def rival() -> None:
            blocked.wait(5)

            async def consume() -> None:
                async with (
                    Broker.connect(url, settings=Settings()) as two,
                    two.consume(jobs) as deliveries,
                ):
                    while not over.is_set():
                        if (delivery := await deliveries.get(timeout=0.02)) is not None:
                            rival_saw.append(delivery.value)

            asyncio.run(consume())

        async with serve(jobs, handler, on=one, lease=0.6):
            thread = threading.Thread(target=rival)
            thread.start()
            await eventually(lambda: starts)
            await asyncio.sleep(0.02)
            over.set()
            thread.join()
            assert (await one.counts(jobs))[0].leased == 0
    assert starts == ["x"]
    assert not rival_saw


async def test_a_handler_that_swallows_its_cancellation_does_not_hold_up_a_suspect_for_ever(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    log: list[str] = []
    let_go = asyncio.Event()

    async def handler(job: str, ctx: Context) -> None:
        log.append(job)
        if job == "stubborn" and not ctx.redelivered:
            while not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    log.append("swallowed")

    await broker.publish(jobs, "stubborn")
    async with serve(jobs, handler, lease=9, timeout=5, concurrency=2, run={"grace": 0}):
        await clock.advance(30)  # its lease is no longer renewed, and it comes back
        await broker.publish(jobs, "innocent")
        await clock.advance(30)
        assert "innocent" in log, "one handler that cannot be stopped must not stop the worker"
        assert log.count("stubborn") == 2
        let_go.set()
        await clock.settle()
    assert (await broker.counts(jobs))[0].ready == 0


async def test_two_acks_of_one_message_are_one(broker: Broker) -> None:
    await broker.publish(jobs, "x")
    async with broker.consume(jobs) as deliveries:
        held = await anext(deliveries)
        await asyncio.gather(held.ack(), held.ack(), held.reject())
    assert (await broker.counts("jobs.dlq"))[0].ready == 0


async def test_a_receipt_of_another_store_is_stale(broker: Broker, clock: VirtualClock) -> None:
    await broker.publish(jobs, "x")
    async with Broker.connect(memory_url(), clock=clock, settings=Settings()) as elsewhere:
        await elsewhere.publish(jobs, "y")
        async with broker.consume(jobs) as deliveries, elsewhere.consume(jobs) as others:
            held = await anext(deliveries)
            theirs = await anext(others)
            subscription = held.held.subscription
            assert subscription._subscription is not None
            (answer,) = await subscription._subscription.settle(
                [Ack(theirs.held.delivery.receipt)], timeout=1
            )
            assert answer == STALE
            await held.ack()


async def test_a_keeper_that_was_closed_while_it_connects_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    opening, go_on = threading.Event(), threading.Event()

    class Slow:
        """A backend whose server goes away while it connects."""

        async def open(self, lost: Callable[[Exception], None]) -> None:
            opening.set()
            await asyncio.to_thread(go_on.wait, 10)
            raise ConnectionError("the server has gone")

        async def close(self) -> None: ...

    keeper = LeaseKeeper(Slow, Slow(), SystemClock())  # type: ignore[arg-type]  # all of a backend that is used here
    keeper.hold(b"receipt", "jobs", 30.0, lambda: None)
    await asyncio.to_thread(opening.wait, 10)
    thread = keeper._thread  # by name one may find that of another test, which still ends
    assert thread is not None
    await keeper.close()
    go_on.set()
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
    assert [record for record in caplog.records if record.thread == thread.ident] == []


async def test_a_keeper_that_renews_nothing_closes_a_doubtful_connection_until_it_is_needed() -> (
    None
):
    """In real time, as above."""
    made: list[Any] = []

    class Counting(MemoryBackend):
        def __init__(self) -> None:
            super().__init__(url, MemoryOptions())
            self.is_open, self.renewed = threading.Event(), threading.Event()
            self.is_closed = threading.Event()
            made.append(self)

        async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
            capabilities = await super().open(lost)
            self.is_open.set()
            return capabilities

        async def close(self) -> None:
            await super().close()
            if self.is_open.is_set():
                self.is_closed.set()

        async def renew(self, queue: str, receipts: Any, lease: float) -> Any:
            self.renewed.set()
            return [True] * len(receipts)

    url = memory_url()
    keeper = LeaseKeeper(Counting, Counting(), SystemClock())
    keeper.hold(b"a", "jobs", 0.3, lambda: None)
    await eventually(lambda: len(made) == 2, 10)
    assert await asyncio.to_thread(made[1].renewed.wait, 10)
    keeper.connection_lost()  # the next renewal would show it
    made[1].renewed.clear()
    assert await asyncio.to_thread(made[1].renewed.wait, 10)

    keeper.drop(b"a")
    keeper.connection_lost()
    assert await asyncio.to_thread(made[1].is_closed.wait, 10)
    assert len(made) == 2
    keeper.hold(b"b", "jobs", 0.3, lambda: None)
    await eventually(lambda: len(made) == 3, 10)
    assert await asyncio.to_thread(made[2].renewed.wait, 10)
    await keeper.close()


@pytest.mark.parametrize("closes", [True, False], ids=["closes", "fails to close"])
def test_renewal_goes_on_without_hammering_a_server_that_cannot_be_reached(*, closes: bool) -> None:
    """In real time, as above. The lease is short, so the waits are."""
    opened: list[float] = []

    class Away(MemoryBackend):
        async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
            opened.append(time.monotonic())
            raise ConnectionError("nobody is there")

        async def close(self) -> None:
            if not closes:
                raise ConnectionError("the socket has gone")

    def make() -> Away:
        return Away(memory_url(), MemoryOptions())

    async def hold() -> None:
        keeper = LeaseKeeper(make, make(), SystemClock())
        keeper.hold(b"receipt", "jobs", 0.3, lambda: None)
        await asyncio.sleep(1.0)
        await keeper.close()

    asyncio.run(hold())
    assert 4 <= len(opened) < 30
