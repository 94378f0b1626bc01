"""Rates and slots (T10): how often a task starts, and how many run at once, over all workers."""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable

import pytest

from mqcore import (
    App,
    ConfigurationError,
    Postpone,
    Reject,
    Retry,
    RetryPolicy,
    UnsupportedFeature,
    ValidationError,
    Worker,
)
from mqcore.tasks import Rate, Slots, State, TaskContext, TaskExpired, Tasks, group
from mqcore.testing import VirtualClock, memory_url

from .conftest import Shop

pytestmark = pytest.mark.timeout(120)  # minutes of virtual time, on a busy machine


class Log:
    """When each task started, and how many ran at once."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.began = shop.clock.now()
        self.starts: list[tuple[float, object]] = []
        self.now: dict[object, int] = {}
        self.most: dict[object, int] = {}

    def start(self, what: object) -> None:
        self.starts.append((round(self.shop.clock.now() - self.began, 1), what))

    async def run(self, what: object, key: object, seconds: float) -> None:
        self.start(what)
        self.now[key] = self.now.get(key, 0) + 1
        self.most[key] = max(self.most.get(key, 0), self.now[key])
        try:
            await self.shop.clock.sleep(seconds)
        finally:
            self.now[key] -= 1


# Rates


async def test_a_rate_holds_over_all_workers_and_each_task_waits_once(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(rate=Rate(10, per=60))
    async def mail(number: int) -> None:
        log.start(number)

    async with shop.serve() as one, Worker(shop.app, one.broker, grace=0):
        jobs = [await mail.send(number) for number in range(8)]
        await shop.clock.advance(60)
        assert [await job.state() for job in jobs] == [State.SUCCEEDED] * 8
        assert one.broker.events.counts["message.postponed"] == 7
    times = [time for time, _ in log.starts]
    assert times == [0, 6, 12, 18, 24, 30, 36, 42]
    assert sorted(number for _, number in log.starts) == list(range(8))


async def test_who_waits_for_its_turn_holds_no_message_and_no_attempt(shop: Shop) -> None:
    attempts: list[int] = []

    @shop.tasks.task(rate=Rate(1, per=30), retry=RetryPolicy(2))
    async def slow(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)

    @shop.tasks.task()
    async def quick() -> str:
        return "done"

    async with shop.serve(concurrency=1):
        jobs = [await slow.send() for _ in range(3)]
        await shop.clock.settle()
        assert await (await quick.send()).result() == "done"
        assert await jobs[2].state() is State.QUEUED
        await shop.clock.advance(70)
        assert [await job.state() for job in jobs] == [State.SUCCEEDED] * 3
    assert attempts == [1, 1, 1]


async def test_a_rate_may_be_keyed_shared_and_start_with_a_burst(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(rate=Rate(1, per=10, by=("customer",), burst=2, name="api"))
    async def call(customer: str = "anna") -> None:
        log.start(customer)

    @shop.tasks.task(rate=Rate(1, per=10, by=("customer",), burst=2, name="api"))
    def other(customer: str) -> None:
        log.start(customer)

    async with shop.serve():
        await call.send()
        for customer in ("anna", "anna", "bert"):
            await other.send(customer)
        await shop.clock.settle()
        assert sorted(log.starts) == [(0, "anna"), (0, "anna"), (0, "bert")]
        await shop.clock.advance(10.1)
        assert len(log.starts) == 4


async def test_every_attempt_takes_a_turn(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(rate=Rate(1, per=10), retry=RetryPolicy(3))
    async def call(ctx: TaskContext) -> None:
        log.start(ctx.attempt)
        if ctx.attempt < 3:
            raise Retry(delay=1)

    async with shop.serve():
        job = await call.send()
        await shop.clock.advance(30)
        assert await job.state() is State.SUCCEEDED
    assert log.starts == [(0, 1), (10, 2), (20, 3)]


async def test_a_task_that_expires_before_its_turn_never_starts(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(rate=Rate(1, per=60))
    async def call(number: int) -> None:
        log.start(number)

    async with shop.serve():
        await call.send(1)
        await shop.clock.settle()
        job = await call.using(expires=30).send(2)
        await shop.clock.advance(90)
        with pytest.raises(TaskExpired):
            await job.result()
    assert log.starts == [(0, 1)]


# Slots


async def test_slots_hold_for_each_key_and_start_in_order(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(slots=Slots(2, by=("storage",)), timeout=None)
    async def clone(room: int, storage: str) -> None:
        await log.run(room, storage, 10)

    async with shop.serve(concurrency=20) as one, Worker(shop.app, one.broker, grace=0):
        jobs = [await clone.send(room, "fast" if room % 2 else "slow") for room in range(10)]
        await shop.clock.advance(40)
        assert [await job.state() for job in jobs] == [State.SUCCEEDED] * 10
        assert one.broker.events.counts["message.postponed"] == 0
    assert log.most == {"fast": 2, "slow": 2}
    for storage in (0, 1):
        starts = [(time, room) for time, room in log.starts if int(str(room)) % 2 == storage]
        assert [time for time, _ in starts] == [0, 0, 10, 10, 20]
        assert [room for _, room in sorted(starts)] == sorted(room for _, room in starts)


async def test_slots_hold_for_tasks_in_threads(shop: Shop) -> None:
    started, may_end = queue.SimpleQueue[int](), threading.Semaphore(0)

    @shop.tasks.task(slots=Slots(2), timeout=None)
    def clone(room: int) -> None:
        started.put(room)
        may_end.acquire(timeout=60)

    async with shop.serve(concurrency=5):
        jobs = [await clone.send(room) for room in range(5)]
        first = [await asyncio.to_thread(started.get, timeout=60) for _ in range(2)]
        assert set(first) == {0, 1}
        for room in (2, 3, 4):
            await shop.clock.settle()
            assert started.empty()
            may_end.release()
            assert await asyncio.to_thread(started.get, timeout=60) == room
        for _ in range(2):
            may_end.release()
        for job in jobs:
            await asyncio.wait_for(job.result(), 60)


async def test_a_redriven_task_that_waits_for_a_slot_does_not_expire(shop: Shop) -> None:
    """A redrive clears the expiry (G6), and the dead letter is gone when it waits in the line."""
    runs: list[int] = []

    @shop.tasks.task(slots=Slots(1, name="disk"))
    async def work() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise Reject("not now")
        return 7

    @shop.tasks.task(slots=Slots(1, name="disk"))
    async def other() -> None:
        await shop.clock.sleep(50)

    async with shop.serve() as worker:
        job = await work.using(expires=60).send()
        await shop.clock.advance(100)
        await other.send()
        await shop.clock.settle()
        assert await worker.broker.dead_letters("default").redrive()
        await shop.clock.advance(100)
        assert await job.result() == 7


async def test_who_waits_for_a_slot_holds_no_message(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(slots=Slots(1))
    async def clone(room: int) -> None:
        await log.run(room, "", 100)

    async with shop.serve(concurrency=2) as worker:
        jobs = [await clone.send(room) for room in range(5)]
        await shop.clock.settle()
        (counts,) = await worker.broker.counts("default")
        assert (counts.ready, counts.delayed, counts.leased) == (0, 0, 1)
        assert [await job.state() for job in jobs] == [State.RUNNING] + [State.QUEUED] * 4
        await jobs[1].cancel()
        await shop.clock.advance(350)
        assert [room for _, room in log.starts] == [0, 2, 3, 4]


async def test_a_slot_is_free_while_a_task_waits_for_its_retry(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(slots=Slots(1), retry=RetryPolicy(3))
    async def clone(ctx: TaskContext, room: str) -> None:
        await log.run((room, ctx.attempt), "", 5)
        if ctx.attempt == 1:
            raise Retry(delay=7)

    async with shop.serve(concurrency=5):
        jobs = [await clone.send(room) for room in ("a", "b")]
        await shop.clock.advance(60)
        assert [await job.state() for job in jobs] == [State.SUCCEEDED] * 2
    expected = [(0, ("a", 1)), (5, ("b", 1)), (12, ("a", 2)), (17, ("b", 2))]
    assert log.starts == expected


async def test_a_slot_is_kept_between_attempts_where_that_is_asked_for(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(slots=Slots(1, keep=True))
    async def clone(room: str) -> None:
        log.start(room)
        if len(log.starts) in {1, 3}:
            raise Postpone(20)

    async with shop.serve(concurrency=5):
        for room in ("a", "b"):
            await clone.send(room)
        await shop.clock.advance(60)
    assert log.starts == [(0, "a"), (20, "a"), (20, "b"), (40, "b")]


async def test_a_workflow_of_tasks_with_slots_ends(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(slots=Slots(3), rate=Rate(1, per=1))
    async def clone(room: int) -> int:
        await log.run(room, "", 5)
        return room

    @shop.tasks.task()
    async def total(rooms: list[int]) -> int:
        return sum(rooms)

    async with shop.serve(concurrency=50):
        job = await (group(clone.s(room) for room in range(30)) | total.step()).send()
        await shop.clock.advance(120)
        assert await job.result() == sum(range(30))
    assert log.most == {"": 3}


async def test_a_task_that_expires_in_the_line_never_starts(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(slots=Slots(1))
    async def clone(room: int) -> None:
        await log.run(room, "", 60)

    async with shop.serve():
        jobs = [await clone.send(0)]
        await shop.clock.settle()
        jobs += [await clone.using(expires=seconds).send(seconds) for seconds in (30, 100, 110)]
        await shop.clock.advance(200)
        states = [await job.state() for job in jobs]
    assert states == [State.SUCCEEDED, State.EXPIRED, State.SUCCEEDED, State.EXPIRED]
    assert log.starts == [(0, 0), (60, 100)]


async def test_the_slots_of_a_dead_worker_are_free_after_its_lease(shop: Shop) -> None:
    log = Log(shop)
    hangs = True

    @shop.tasks.task(slots=Slots(1), timeout=None)
    async def clone(room: str) -> None:
        await log.run(room, "", 10_000 if hangs else 10)

    async with shop.serve():
        first = await clone.send("a")
        await shop.clock.settle()
        waiting = await clone.send("b")
        await shop.clock.settle()
        assert await waiting.state() is State.QUEUED
    hangs = False
    async with shop.serve():
        await shop.clock.advance(100)
        assert [await job.state() for job in (first, waiting)] == [State.SUCCEEDED] * 2


# Mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rate(0, per=1), "count=0"),
        (lambda: Rate(1, per=0), "per=0"),
        (lambda: Rate(1, per=1, burst=0), "burst=0"),
        (lambda: Rate(1, per=1, by="room"), r"by=\('room',\)"),  # type: ignore[arg-type]  # the mistake
        (lambda: Slots(-1), "count=-1"),
        (lambda: Slots(1, by=[1]), "tuple of names"),  # type: ignore[arg-type]  # the mistake
        (lambda: Slots(1, keep="no"), "keep='no'"),  # type: ignore[arg-type]  # the mistake
    ],
)
def test_what_is_no_limit_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


async def test_a_limit_that_cannot_be_keyed_is_refused(shop: Shop) -> None:
    async def clone(room: str, storage: str) -> None: ...

    with pytest.raises(ConfigurationError, match="slots= names disk; its parameters are room"):
        shop.tasks.task(slots=Slots(1, by=("disk",)))(clone)
    with pytest.raises(ConfigurationError, match="rate= takes Rate"):
        shop.tasks.task(rate=10)(clone)  # type: ignore[typeddict-item]  # the mistake

    task = shop.tasks.task(slots=Slots(1, by=("room",)))(clone)
    with pytest.raises(ValidationError, match="keyed by room, which a step gets"):
        task.step("fast")
    with pytest.raises(ValidationError, match="cannot be keyed by room"):
        task.starmap([("a", "fast")])


async def test_limits_need_a_store_and_are_left_out_in_eager_mode(clock: VirtualClock) -> None:
    tasks = Tasks("shop")

    @tasks.task(slots=Slots(1), rate=Rate(1, per=3600))
    async def work(depth: int) -> int:
        return depth if not depth else await (await work.send(depth - 1)).result() + 1

    async with App("shop", tasks=[tasks]).connect(memory_url(), clock=clock):
        with pytest.raises(UnsupportedFeature, match="slots= need a store"):
            await work.send(1)
    sent: Awaitable[int]
    async with tasks.eager():
        job = await work.send(2)
        sent = job.result()
        assert await sent == 2
