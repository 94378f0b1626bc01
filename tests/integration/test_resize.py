"""A worker's consumers are resized, added and removed while it runs."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.process_handlers import app as in_processes
from support.process_handlers import jobs as of_processes
from support.process_handlers import work
from support.waiting import eventually

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Middleware,
    Queue,
    RetryPolicy,
    Settings,
    Worker,
)
from mqcore.broker import session_of
from mqcore.consuming.inbox import BackendInbox
from mqcore.spi import Inbox
from mqcore.testing import VirtualClock, memory_url

Suspect = Callable[[Queue[Any], int], Awaitable[None]]
jobs = Queue("jobs", str)
mails = Queue("mails", str)


class Counting:
    """A handler that waits until it may end, and records how many run at once."""

    def __init__(self) -> None:
        self.running = self.most = self.ended = 0
        self.go = asyncio.Semaphore(0)

    async def __call__(self, _: str) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go.acquire()
        finally:
            self.running -= 1
            self.ended += 1

    def end(self, count: int) -> None:
        """Let so many runs end."""
        for _ in range(count):
            self.go.release()


async def held(broker: Broker) -> int:
    """Return how many messages the consumer of `jobs` holds, as the broker sees it."""
    return (await broker.counts(jobs))[0].leased or 0


async def test_a_consumer_grows(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    handler = Counting()
    await broker.publish_many(jobs, ["x"] * 50)
    async with serve(jobs, handler, concurrency=2) as worker:
        await clock.settle()
        assert (handler.running, await held(broker)) == (2, 4)
        await worker.resize("jobs", 10)
        await clock.settle()
        assert (handler.running, await held(broker)) == (10, 20)
        assert worker.queues == {"jobs": 10}
        handler.end(50)
        await clock.settle()
    assert (handler.ended, handler.most) == (50, 10)
    assert (await broker.counts(jobs))[0].ready == 0


async def test_a_consumer_shrinks_and_interrupts_nothing(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    handler = Counting()
    await broker.publish_many(jobs, ["x"] * 50)
    async with serve(jobs, handler, concurrency=10) as worker:
        await clock.settle()
        await worker.resize(jobs, 2)
        await clock.settle()
        assert (handler.running, await held(broker)) == (10, 20)
        for ended in range(1, 17):
            handler.end(1)
            await clock.settle()
            assert handler.running == max(10 - ended, 2)
            assert await held(broker) == max(20 - ended, 4), "what is held counts, old and new"
        handler.end(50)
        await clock.settle()
    assert (handler.ended, handler.most) == (50, 10)


async def test_a_consumer_that_waits_for_messages_shrinks_too(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    handler = Counting()
    async with serve(jobs, handler, concurrency=10) as worker:
        await broker.publish_many(jobs, ["x"] * 5)
        await clock.settle()
        await worker.resize(jobs, 3)
        await broker.publish_many(jobs, ["x"] * 5)
        await clock.settle()
        assert handler.running == 5, "none is started beside five"
        for ended in range(1, 8):
            handler.end(1)
            await clock.settle()
            assert handler.running == (max(5 - ended, 3))
        handler.end(10)
        await clock.settle()
    assert handler.ended == 10


async def test_the_prefetch_is_resized_alone_and_again_at_once(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    handler = Counting()
    await broker.publish_many(jobs, ["x"] * 100)
    async with serve(jobs, handler, concurrency=1) as worker:
        await clock.settle()
        for prefetch in (10, 30, 5, 20):
            await worker.resize(jobs, 1, prefetch=prefetch)
        await clock.settle()
        assert await held(broker) <= 30
        handler.end(30)
        await clock.settle()
        assert (await held(broker), handler.ended) == (20, 30)
        handler.end(100)
        await clock.settle()
    assert (handler.ended, handler.most) == (100, 1)
    assert await held(broker) == 0


async def test_order_and_attempts_are_those_of_one_consumer(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    seen: list[tuple[str, int]] = []

    async def handler(job: str, ctx: Any) -> None:
        seen.append((job, ctx.attempt))
        await clock.sleep(1)

    await broker.publish_many(jobs, [str(number) for number in range(30)])
    async with serve(jobs, handler, concurrency=1, prefetch=2) as worker:
        for prefetch in (5, 9, 3, 7):
            await clock.advance(3)
            await worker.resize(jobs, 1, prefetch=prefetch)
        await clock.advance(40)
    assert seen == [(str(number), 1) for number in range(30)]


async def test_threads_grow_and_shrink(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    running = most = 0
    go = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handler(_: str) -> None:
        asyncio.run_coroutine_threadsafe(run(), loop).result()

    async def run() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1

    await broker.publish_many(jobs, ["x"] * 12)
    async with serve(jobs, handler, concurrency=2) as worker:
        await eventually(lambda: running == 2)
        await worker.resize(jobs, 6)
        await eventually(lambda: running == 6)
        await worker.resize(jobs, 1)
        most = 0
        go.set()
        await eventually(lambda: broker.events.counts["message.done"] == 12)
    assert most <= 6


async def test_processes_grow_and_shrink() -> None:
    async with (
        Broker.connect(memory_url(), settings=Settings()) as broker,
        Worker(in_processes, broker, queues=["jobs"], grace=0) as worker,
    ):
        executor: Any = worker._runners[0]._courses.executor
        assert await broker.request(of_processes, "echo one", result=str)
        await worker.resize(of_processes, 3)
        asked = [broker.request(of_processes, f"echo {n}", result=str) for n in range(6)]
        assert len(await asyncio.gather(*asked)) == 6
        assert len(executor._slots) == 3
        pids = {slot.pid for slot in executor._slots} - {None}
        await worker.resize(of_processes, 1)
        await eventually(lambda: len(executor._slots) == 1 and not executor._ending, 10)
        assert (await broker.request(of_processes, "echo last", result=str)).startswith("last")
        assert {executor._slots[0].pid} <= pids, "a process that is up is kept"


async def test_a_shrink_leaves_a_process_to_each_message_on_its_way() -> None:
    waiting, go = 0, asyncio.Event()

    class Gate(Middleware):
        async def handle(self, ctx: Any, call_next: Any) -> Any:
            nonlocal waiting
            waiting += 1
            await go.wait()
            return await call_next(ctx)

    app = App("shop", middleware=[Gate()])
    app.register(of_processes, work, {"process": True, "concurrency": 3, "retry": RetryPolicy(1)})
    async with (
        app.connect(memory_url(), settings=Settings()) as broker,
        Worker(app, broker, grace=0) as worker,
    ):
        executor: Any = worker._runners[0]._courses.executor
        asked = [broker.request(of_processes, f"echo {n}", result=str) for n in range(3)]
        answers = asyncio.gather(*asked)
        await eventually(lambda: waiting == 3, 30)
        await worker.resize(of_processes, 1)
        go.set()
        assert all("attempt 1" in answer for answer in await answers)
        await eventually(lambda: len(executor._slots) == 1 and not executor._ending, 10)


async def test_consumers_are_added_and_removed(broker: Broker, clock: VirtualClock) -> None:
    seen: list[str] = []
    app = App("shop")

    async def handler(job: str) -> None:
        seen.append(job)

    app.register(jobs, handler, {})
    app.register(mails, handler, {})
    await broker.declare(jobs, mails)
    async with Worker(app, broker, queues=["jobs"]) as worker:
        await broker.publish(mails, "first")
        await clock.settle()
        assert seen == []
        await worker.add(mails)
        await worker.add("mails")
        await clock.settle()
        assert (seen, list(worker.queues)) == (["first"], ["jobs", "mails"])
        assert worker.health().consuming == {"jobs": True, "mails": True}

        await worker.remove(jobs)
        await worker.remove("jobs")
        await broker.publish(jobs, "left alone")
        await broker.publish(mails, "second")
        await clock.settle()
        assert (seen, worker.health().consuming) == (["first", "second"], {"mails": True})

        await worker.remove(mails)
        await worker.add(jobs)
        await clock.settle()
        assert seen == ["first", "second", "left alone"]
    assert (await broker.counts(jobs))[0].leased == 0


async def test_a_removed_consumer_is_drained_and_others_go_on(
    broker: Broker, clock: VirtualClock
) -> None:
    slow, quick = Counting(), Counting()
    quick.end(100)
    app = App("shop")
    app.register(jobs, slow, {"concurrency": 1})
    app.register(mails, quick, {})
    await broker.declare(jobs, mails)
    await broker.publish_many(jobs, ["running", "held"])
    async with Worker(app, broker) as worker:
        await clock.settle()
        removing = asyncio.create_task(worker.remove(jobs, grace=60))
        await clock.settle()
        (counts,) = await broker.counts(jobs)
        assert (counts.leased, counts.ready, removing.done()) == (1, 1, False)
        await broker.publish(mails, "x")
        await clock.settle()
        assert quick.ended == 1
        slow.end(1)
        await removing
    (counts,) = await broker.counts(jobs)
    assert (slow.ended, counts.ready, counts.leased) == (1, 1, 0)


async def test_a_worker_has_one_inbox_however_often_its_consumers_change(
    broker: Broker, clock: VirtualClock
) -> None:
    opened: list[Inbox] = []

    class Counted(BackendInbox):
        async def open(self, clock: Any, backend: Any) -> Inbox:
            opened.append(self)
            return await super().open(clock, backend)

    handler = Counting()
    app = App("shop", inbox=Counted(session_of(broker).connection, is_own=False))
    app.register(jobs, handler, {"once": "24h"})
    app.register(mails, handler, {"once": "24h"})
    async with Worker(app, broker, queues=["jobs"]) as worker:
        for _ in range(3):
            await worker.add(mails)
            await worker.remove(jobs)
            await worker.add(jobs)
            await worker.remove(mails)
        assert len(opened) == 1
        handler.end(2)
        for _ in range(2):
            await broker.publish(jobs, "x", id="same")
            await clock.advance(700)
        assert handler.ended == 1


async def test_a_removal_whose_caller_is_cancelled_goes_on(
    broker: Broker, clock: VirtualClock
) -> None:
    handler = Counting()
    app = App("shop")
    app.register(jobs, handler, {})
    await broker.publish(jobs, "running")
    async with Worker(app, broker) as worker:
        await clock.settle()
        removing = asyncio.create_task(worker.remove(jobs, grace=60))
        await clock.settle()
        removing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removing
        adding = asyncio.create_task(worker.add(jobs))
        await clock.settle()
        assert not adding.done(), "the removal is first"
        handler.end(2)
        await adding
        await broker.publish(jobs, "x")
        await clock.settle()
        assert (handler.ended, worker.health().consuming) == (2, {"jobs": True})
        await worker.remove(jobs)
        assert (worker.queues, worker.health().consuming) == ({}, {})


async def test_after_another_consumer_has_failed_an_added_one_still_handles_once(
    broker: Broker, clock: VirtualClock
) -> None:
    seen: list[str] = []
    app = App("shop")

    async def handler(job: str) -> None:
        seen.append(job)

    app.register(jobs, handler, {})
    app.register(mails, handler, {"once": "24h"})
    worker = Worker(app, broker, queues=["jobs"])
    await worker.start()
    worker._runners[0].receiver._fail(ValueError("the queue is gone"))
    await clock.settle()
    await worker.add(mails)
    for _ in range(2):
        await broker.publish(mails, "x", id="same")
        await clock.advance(700)
    await worker.drain(0)
    assert seen == ["x"]


async def test_max_messages_counts_what_a_removed_consumer_has_handled(
    broker: Broker, clock: VirtualClock
) -> None:
    async def handler(_: str) -> None: ...

    app = App("shop")
    app.register(jobs, handler, {})
    app.register(mails, handler, {})
    worker = Worker(app, broker, max_messages=5)
    running = asyncio.create_task(worker.run())
    await clock.settle()
    await broker.publish_many(jobs, ["x"] * 3)
    await clock.settle()
    await worker.remove(jobs)
    await broker.publish(mails, "x")
    await clock.settle()
    assert not running.done()
    await broker.publish(mails, "x")
    await clock.settle()
    await running
    assert worker.recycle


async def test_a_drain_ends_what_is_being_resized(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    handler = Counting()
    await broker.publish_many(jobs, ["x"] * 50)
    async with serve(jobs, handler, concurrency=5) as worker:
        await clock.settle()
        await worker.resize(jobs, 10)
        await worker.resize(jobs, 2)
        await clock.settle()
        await worker.drain(0)
    (counts,) = await broker.counts(jobs)
    assert (counts.ready, counts.leased) == (50, 0)


async def test_a_drain_beside_a_resize_leaves_no_subscription(
    broker: Broker, clock: VirtualClock, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = session_of(broker).connection
    subscribe, go = connection.subscribe, asyncio.Event()

    async def slow(*given: Any) -> Any:
        await go.wait()
        return await subscribe(*given)

    async with serve(jobs, Counting()) as worker:
        monkeypatch.setattr(connection, "subscribe", slow)
        resizing = asyncio.create_task(worker.resize(jobs, 5))
        await clock.settle()
        await worker.drain(0)
        go.set()
        await resizing
        await broker.publish_many(jobs, ["x"] * 3)
        await clock.settle()
        (counts,) = await broker.counts(jobs)
        assert (counts.ready, counts.leased) == (3, 0)


async def test_what_cannot_be_done_is_refused(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    handler = Counting()
    async with serve(jobs, handler) as worker:
        for wrong in (0, -1, "x", None):
            with pytest.raises(ConfigurationError, match="concurrency"):
                await worker.resize(jobs, wrong)
            with pytest.raises(ConfigurationError, match="prefetch"):
                await worker.resize(jobs, 1, prefetch=wrong or 0)
        with pytest.raises(ConfigurationError, match=r"does not consume it\. It consumes jobs"):
            await worker.resize(mails, 1)
        with pytest.raises(ConfigurationError, match="does not consume mails"):
            await worker.add("mails")
        with pytest.raises(ConfigurationError, match="grace"):
            await worker.remove(jobs, grace=-1)
    for call in (worker.resize(jobs, 1), worker.add(jobs), worker.remove(jobs)):
        with pytest.raises(ConfigurationError, match="not running"):
            await call


async def test_a_suspect_waits_for_the_runs_that_are_too_many(
    broker: Broker, clock: VirtualClock, serve: Any, suspect: Suspect
) -> None:
    handler = Counting()
    await broker.publish(jobs, "suspect")
    await suspect(jobs, 1)
    async with serve(jobs, handler, concurrency=5) as worker:
        await clock.settle()
        handler.end(1)
        await broker.publish_many(jobs, ["x"] * 3)
        await clock.settle()
        await worker.resize(jobs, 1)
        handler.end(3)
        await clock.advance(10)
    assert handler.ended == 4
