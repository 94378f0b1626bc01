"""G14 and G3: a connection that comes and goes costs nothing but time."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.faulty import (
    Broken,
    Faults,
    WrongPassword,
    dropped_answer,
    lost,
    lost_answer,
    plugin_for,
    raised,
    raised_after,
    slow,
    undisturbed,
)
from support.waiting import eventually

from mqcore import (
    BlockingContext,
    Broker,
    BrokerError,
    ConnectionLost,
    LeaseLost,
    PublishFailed,
    Queue,
    QueueNotFound,
    RetryPolicy,
    Router,
    Settings,
    fixed,
)
from mqcore.broker import session_of
from mqcore.config.plugins import Plugins
from mqcore.rules.capabilities import Capability
from mqcore.testing import VirtualClock

jobs = Queue("jobs", str)
ONCE = RetryPolicy(1)


class Log:
    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, job: str) -> None:
        self.seen.append(job)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.mark.parametrize("keeps_claims", [True, False])
async def test_consuming_and_publishing_resume_within_two_seconds(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log, *, keeps_claims: bool
) -> None:
    faults.keeps_claims = keeps_claims
    async with serve(jobs, log, on=faulty):
        for turn in range(10):
            faults.lose()
            await clock.advance(0)
            assert not faulty.health().connected
            publishing = asyncio.create_task(faulty.publish(jobs, f"{turn}"))
            await clock.advance(2)
            assert publishing.done()
            await publishing
            assert log.seen[-1] == f"{turn}"
            assert faulty.health().ok
    assert faulty.events.counts["connection.restored"] == 10


async def test_a_long_outage_ends_within_the_capped_wait(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log
) -> None:
    async with serve(jobs, log, on=faulty):
        faults.next("open", *[raised(Broken("down"))] * 20)
        faults.lose()
        await clock.advance(25)
        tries = faults.calls["open"]
        assert 10 < tries < 100, "capped, and not hammering"
        await clock.advance(60)
        await faulty.publish(jobs, "a")
        await clock.advance(2)
        assert log.seen == ["a"]


async def test_the_topology_is_declared_again(
    faulty: Broker, faults: Faults, broker: Broker, clock: VirtualClock
) -> None:
    router = Router("r", str).bind(jobs, "k")
    await faulty.declare(jobs, router)
    await broker.delete(jobs)
    await broker.delete("jobs.dlq")
    faults.lose()
    await clock.advance(2)
    assert {counts.name for counts in await broker.counts()} == {"jobs", "jobs.dlq"}
    await faulty.publish(router, "a", key="k")
    assert (await broker.counts(jobs))[0].ready == 1


async def test_what_was_deleted_on_purpose_stays_away(
    faulty: Broker, faults: Faults, broker: Broker, clock: VirtualClock
) -> None:
    await faulty.declare(jobs)
    await faulty.delete(jobs)
    faults.lose()
    await clock.advance(2)
    with pytest.raises(QueueNotFound):
        await broker.counts(jobs)


async def test_a_loss_while_coming_back_is_a_loss(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    """The driver reports it while core declares the topology, and declaring does not fail."""
    await faulty.declare(jobs)

    async def declared_and_lost(backend: Any, do: Any, batch: Any) -> None:
        await do(batch)
        backend.lose()

    faults.next("declare", declared_and_lost)
    faults.lose()
    publishing = asyncio.create_task(faulty.publish(jobs, "a"))
    await clock.advance(5)
    assert publishing.done()
    await publishing
    assert faults.calls["open"] == 3


@pytest.mark.parametrize(
    "point", ["open", "declare", "subscribe", "receive", "sweep", "settle", "renew", "publish"]
)
@pytest.mark.parametrize("keeps_claims", [True, False])
async def test_a_loss_at_any_point_is_mended(
    faulty: Broker,
    faults: Faults,
    clock: VirtualClock,
    serve: Any,
    log: Log,
    point: str,
    *,
    keeps_claims: bool,
) -> None:
    faults.keeps_claims = keeps_claims
    async with serve(jobs, log, on=faulty, lease=6):
        faults.next(point, lost())
        faults.lose()
        for turn in range(5):
            publishing = asyncio.create_task(faulty.publish(jobs, f"{turn}", timeout=60))
            await clock.advance(20)
            await publishing
        await clock.advance(60)
        assert set(log.seen) == {"0", "1", "2", "3", "4"}
        assert faulty.health().ok
        counts = (await faulty.counts(jobs))[0]
        assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 0)


@pytest.mark.parametrize("point", ["subscribe", "receive", "sweep", "settle", "renew"])
async def test_an_error_without_a_loss_is_mended_too(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log, point: str
) -> None:
    async with serve(jobs, log, on=faulty, lease=6):
        faults.next(point, raised(ValueError("a driver's bug")), raised(ValueError("once more")))
        for turn in range(5):
            await faulty.publish(jobs, f"{turn}", timeout=60)
            await clock.advance(20)
        assert set(log.seen) == {"0", "1", "2", "3", "4"}
        assert faulty.health().ok


@pytest.mark.parametrize("prefetch", [1, 20])
async def test_handlers_run_on_where_claims_outlive_the_connection(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, held: Any, prefetch: int
) -> None:
    faults.keeps_claims = True
    await faulty.publish(jobs, "a")
    async with serve(jobs, held, on=faulty, concurrency=1, prefetch=prefetch):
        await clock.settle()
        faults.lose()
        await clock.advance(60)
        held.go.set()
        await clock.settle()
    assert (held.began, held.ended, held.cancelled) == (["a"], ["a"], [])
    assert faulty.events.counts["settle.stale"] == 0
    assert (await faulty.counts(jobs))[0].ready == 0


@pytest.fixture
async def leaseless(faults: Faults, clock: VirtualClock, url: str) -> AsyncIterator[Broker]:
    """A broker on the same memory where the connection itself is the lease, as with AMQP."""
    faults.without = {Capability.LEASE}
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    where = url.replace("memory", "faulty")
    async with Broker.connect(where, clock=clock, settings=Settings(), plugins=plugins) as broker:
        yield broker


async def random_losses(broker: Broker, faults: Faults, clock: VirtualClock, serve: Any) -> None:
    """Lose connections at random for a long time: nothing is lost, no message is blamed (G4)."""
    seen: Counter[str] = Counter()

    async def handler(job: str) -> None:
        await clock.sleep(0.2)
        seen[job] += 1

    async with serve(jobs, handler, on=broker):
        sent = []
        for turn in range(60):
            sent.append(asyncio.create_task(broker.publish(jobs, f"{turn}", timeout=60)))
            if random.random() < 0.3:
                faults.lose()
            if random.random() < 0.3:
                faults.next(
                    random.choice(["settle", "publish"]),
                    random.choice([lost(), lost_answer(), dropped_answer()]),
                )
            await clock.advance(0.5)
        await clock.advance(200)
        stored = {f"{n}" for n, task in enumerate(sent) if task.exception() is None}
        assert stored <= set(seen)
        counts = (await broker.counts(jobs))[0]
        assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 0)
    assert await broker.dead_letters(jobs).list() == []


async def test_a_worker_with_leases_never_needs_a_restart(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any
) -> None:
    """Claims outlive the connection, as on Redis."""
    faults.keeps_claims = True
    await random_losses(faulty, faults, clock, serve)


async def test_a_worker_without_leases_never_needs_a_restart(
    leaseless: Broker, faults: Faults, clock: VirtualClock, serve: Any
) -> None:
    """The connection is the lease, as on RabbitMQ."""
    await random_losses(leaseless, faults, clock, serve)


async def test_without_leases_a_lost_connection_ends_what_ran_and_starts_nothing_that_was_buffered(
    leaseless: Broker, faults: Faults, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await leaseless.publish_many(jobs, ["a", "b"])
    async with serve(jobs, held, on=leaseless, concurrency=1):
        await clock.settle()
        faults.lose()
        await clock.settle()
        assert (held.began, held.cancelled) == (["a"], ["a"])
        held.go.set()
        await clock.advance(5)
        assert sorted(held.began) == ["a", "a", "b"]
        assert sorted(held.ended) == ["a", "b"]
        assert (await leaseless.counts(jobs))[0].leased == 0


async def test_without_leases_a_thread_is_told_that_the_connection_was_lost(
    leaseless: Broker, faults: Faults, clock: VirtualClock, serve: Any
) -> None:
    go, began = threading.Event(), threading.Event()
    seen: list[bool] = []

    def handler(_: str, ctx: BlockingContext) -> None:
        began.set()
        go.wait(10)
        seen.append(ctx.lease_lost)

    await leaseless.publish(jobs, "a")
    async with serve(jobs, handler, on=leaseless, concurrency=1):
        await eventually(began.is_set)
        faults.lose()
        await clock.settle()
        go.set()
        await eventually(lambda: seen)
    assert seen[0]


async def test_without_leases_a_full_consumer_hears_at_once_that_its_subscription_was_ended(
    leaseless: Broker, faults: Faults, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await leaseless.publish_many(jobs, ["a", "b"])
    closed = ValueError("the broker closed the channel: a message was held for too long")
    faults.next(
        "receive", undisturbed(), undisturbed(), raised_after(1.0, closed)
    )  # the queue, its quarantine, the queue
    async with serve(jobs, held, on=leaseless, concurrency=1, prefetch=2):
        await clock.settle()
        assert (held.began, held.cancelled) == (["a"], [])
        await clock.advance(1.0)
        assert (held.began, held.cancelled) == (
            ["a"],
            ["a"],
        )  # and what was only buffered is not begun


@pytest.mark.parametrize("how", ["before", "after"])
async def test_without_leases_an_ack_that_the_loss_outran_is_not_taken_for_done(
    leaseless: Broker, faults: Faults, clock: VirtualClock, how: str
) -> None:
    await leaseless.publish(jobs, "a")
    async with leaseless.consume(jobs) as deliveries:
        delivery = await deliveries.get(timeout=1)
        assert delivery is not None
        if how == "after":
            faults.next("settle", lost())
        else:
            faults.lose()
        acking = asyncio.create_task(delivery.ack())
        await clock.advance(5)
        with pytest.raises(LeaseLost):
            await acking
        again = await deliveries.get(timeout=1)
        assert again is not None
        await again.ack()


@pytest.mark.parametrize("error", [WrongPassword("no"), Broken("down"), ValueError("a bug")])
async def test_the_first_connect_tells_at_once(
    faults: Faults, clock: VirtualClock, url: str, error: Exception
) -> None:
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    faults.next("open", raised(error))
    where = url.replace("memory", "faulty")
    with pytest.raises(BrokerError) as caught:
        async with Broker.connect(where, clock=clock, settings=Settings(), plugins=plugins):
            pass
    assert caught.value.__cause__ is error
    assert isinstance(caught.value, ConnectionLost) is isinstance(error, Broken)
    assert faults.calls["open"] == 1
    assert faults.calls["close"] >= 1


async def test_a_password_that_changed_is_not_tried_often(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    faults.next("open", *[raised(WrongPassword("no"))] * 1000)
    faults.lose()
    await clock.advance(600)
    assert faults.calls["open"] < 200
    assert "WrongPassword" in faulty.health().error or "no" in faulty.health().error


async def test_connected_and_consuming_are_two_things(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log
) -> None:
    async with serve(jobs, log, on=faulty):
        assert faulty.health().consuming == {"jobs": True}
        faults.next("receive", raised(ValueError("stuck")))
        faults.next("subscribe", *[raised(ValueError("still stuck"))] * 30)
        await faulty.publish(jobs, "a")
        await clock.advance(1)
        health = faulty.health()
        assert (health.connected, health.consuming, health.ok) == (True, {"jobs": False}, False)
        await clock.advance(600)
        assert faulty.health().ok
    assert faulty.health().consuming == {}


async def test_a_queue_that_was_deleted_under_its_consumer_comes_back(
    broker: Broker, other: Broker, clock: VirtualClock, serve: Any, log: Log
) -> None:
    async with serve(jobs, log):
        await clock.settle()
        await other.delete("jobs")
        await clock.advance(5)
        await other.publish("jobs", "a")
        await clock.settle()
    assert log.seen == ["a"]


async def test_an_adopted_queue_that_was_deleted_ends_its_consumer(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    await other.declare(jobs)
    async with broker.consume(Queue("jobs", str, declare=False)) as deliveries:
        await other.delete("jobs")
        getting = asyncio.create_task(deliveries.get(timeout=60))
        await clock.advance(60)
        with pytest.raises(QueueNotFound):
            await getting


async def test_a_slow_driver_is_waited_for(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log
) -> None:
    async with serve(jobs, log, on=faulty):
        faults.next("publish", slow(3))
        faults.next("settle", slow(3))
        publishing = asyncio.create_task(faulty.publish(jobs, "a"))
        await clock.advance(7)
        await publishing
        assert (await faulty.counts(jobs))[0].leased == 0
    assert log.seen == ["a"]


async def test_a_thousand_cancelled_calls_while_it_comes_and_goes(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(jobs)
    for turn in range(300):
        if turn % 10 == 0:
            faults.lose()
        work = [
            asyncio.create_task(faulty.publish(jobs, "x")),
            asyncio.create_task(faulty.counts(jobs)),
            asyncio.create_task(faulty.consume(jobs).get(timeout=0.1)),
        ]
        for _ in range(turn % 7):
            await asyncio.sleep(0)
        for task in work:
            task.cancel()
        if turn % 3 == 0:
            await clock.advance(0.2)
        await asyncio.gather(*work, return_exceptions=True)
    await clock.advance(5)
    assert (await faulty.publish(jobs, "last")).queues == ("jobs",)
    assert faulty.health().connected


async def test_replies_survive_a_reconnect(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any
) -> None:
    async def double(word: str) -> str:
        return word * 2

    async with serve(jobs, double, on=faulty):
        assert await faulty.request(jobs, "a", result=str) == "aa"
        faults.lose()
        asking = asyncio.create_task(faulty.request(jobs, "b", result=str))
        await clock.advance(5)
        assert await asking == "bb"


async def test_backoff_of_retries_goes_on_through_an_outage(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any
) -> None:
    times: list[float] = []

    async def handler(_: str) -> None:
        times.append(clock.monotonic())
        raise ValueError

    await faulty.publish(jobs, "a")
    async with serve(jobs, handler, on=faulty, retry=RetryPolicy(3, fixed(30))):
        await clock.advance(10)
        faults.next("open", *[raised(Broken("down"))] * 3)
        faults.lose()
        await clock.advance(100)
    assert times == [0, 30, 60]


async def test_who_ends_during_an_outage_lets_go_of_its_claims(
    faulty: Broker, faults: Faults, broker: Broker, clock: VirtualClock, serve: Any, held: Any
) -> None:
    faults.keeps_claims = True
    await faulty.publish(jobs, "a")
    async with serve(jobs, held, on=faulty, run={"grace": 0}):
        await clock.settle()
        faults.next("open", *[raised(Broken("down"))] * 5)
        faults.lose()
    await clock.advance(120)  # back again, and nobody renews what nobody holds
    assert faulty.health().connected
    counts = (await broker.counts(jobs))[0]
    assert (counts.ready, counts.leased) == (1, 0)


async def test_one_lane_that_meets_the_loss_tells_the_others(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log
) -> None:
    """One call fails; the receive of the other subscription on that connection never returns."""
    faults.keeps_claims = True
    other = Queue("other", str)
    async with serve(jobs, log, on=faulty), serve(other, log, on=faulty):
        await clock.settle()
        faults.next("sweep", raised(Broken("gone without a word")))
        await clock.advance(6)
        await faulty.publish(other, "wakes it, to sweep first")
        await clock.advance(6)
        await faulty.publish_many(jobs, ["a", "b"])
        await faulty.publish_many(other, ["c", "d"])
        await clock.advance(10)
        assert faulty.events.counts["connection.restored"] == 1
        assert set(log.seen) >= {"a", "b", "c", "d"}
        assert faulty.health().ok
        for queue in (jobs, other):
            assert (await faulty.counts(queue))[0].leased == 0


async def test_a_server_that_accepts_and_then_fails_every_publish_is_not_hammered(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    """A full disk is like that.

    Each reconnect succeeds, and says nothing of whether the next request will.
    """
    await faulty.declare(jobs)
    faults.next("publish", *[raised(Broken("disk full"))] * 5000)
    publishing = asyncio.create_task(faulty.publish(jobs, "a", timeout=13))
    await clock.advance(14)
    with pytest.raises(PublishFailed):
        await publishing

    assert 10 < faulty.events.counts["connection.restored"] < 60


async def test_nor_one_that_fails_every_subscription(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log
) -> None:
    async with serve(jobs, log, on=faulty):
        faults.next("subscribe", *[raised(Broken("disk full"))] * 5000)
        faults.lose()
        await clock.advance(13)
        assert 10 < faults.calls["open"] < 80

        faults.forget("subscribe")
        await clock.advance(2)
        await faulty.publish(jobs, "a")
        await clock.settle()
        assert log.seen == ["a"], "and it resumes within 2 s (G14)"


@pytest.mark.parametrize("error", [Broken("disk full"), ValueError("a driver's bug")])
async def test_nor_one_that_fails_every_receive(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log, error: Exception
) -> None:
    async with serve(jobs, log, on=faulty):
        faults.next("receive", *[raised(error)] * 5000)
        faults.lose()
        await clock.advance(13)
        assert 10 < faults.calls["subscribe"] < 120, (
            "two subscriptions: of the queue and of its quarantine"
        )


async def test_after_a_time_of_real_use_the_waits_begin_anew(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(jobs)
    faults.next("publish", *[raised(Broken("disk full"))] * 5000)
    publishing = asyncio.create_task(faulty.publish(jobs, "a", timeout=13))
    await clock.advance(14)
    assert isinstance((await asyncio.gather(publishing, return_exceptions=True))[0], PublishFailed)

    faults.forget("publish")
    await clock.advance(10)
    faults.lose()
    await clock.advance(0.06)
    assert faulty.health().connected


async def test_an_error_of_a_listener_does_not_prevent_the_reconnect(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    def fails() -> None:
        raise RuntimeError("a future that refuses to be cancelled")

    connection = session_of(faulty).connection
    connection.on_lost.add(fails)

    with pytest.raises(RuntimeError, match="refuses"):
        connection.report(ConnectionError("reset"), connection.generation)
    await clock.advance(5)

    assert faulty.health().ok
    assert (await faulty.publish(jobs, "a")).queues == ("jobs",)
