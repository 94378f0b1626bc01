"""Further messages of one task, and ends that are not confirmed: it runs once at a time."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mqcore import RetryPolicy, Worker
from mqcore.consuming.held import HeldDelivery
from mqcore.tasks import State, TaskContext
from mqcore.tasks.model.changes import Begin, End
from mqcore.tasks.store.memory import MemoryTaskStore
from mqcore.tasks.store.seam import Applied, StoreError

from .conftest import Shop, broker_away, letters

pytestmark = pytest.mark.timeout(120)  # hours of virtual time, on a busy machine
LONG = RetryPolicy(1)


class Runs:
    """Counts the runs of each task, and how many of one there are at once."""

    def __init__(self) -> None:
        self.started: dict[object, int] = {}
        self.now: dict[object, int] = {}
        self.most = 0

    async def __call__(self, shop: Shop, key: object, seconds: float) -> None:
        self.started[key] = self.started.get(key, 0) + 1
        self.now[key] = self.now.get(key, 0) + 1
        self.most = max(self.most, self.now[key])
        try:
            await shop.clock.sleep(seconds)
        finally:
            self.now[key] -= 1


async def test_a_backlog_longer_than_the_recovery_waits_runs_each_task_once(shop: Shop) -> None:
    runs = Runs()

    @shop.tasks.task(timeout=None, retry=LONG)
    async def work(number: int) -> int:
        await runs(shop, number, 400)
        return number

    async with shop.serve(concurrency=2):
        jobs = [await work.send(number) for number in range(3)]
        await shop.clock.advance(1_300)
        assert [await job.state() for job in jobs] == [State.SUCCEEDED] * 3
    assert (runs.started, runs.most) == ({0: 1, 1: 1, 2: 1}, 1)


async def test_a_queue_without_a_consumer_does_not_fill_up(shop: Shop) -> None:
    runs = Runs()

    @shop.tasks.task(queue="slow", timeout=None)
    async def work() -> None:
        await runs(shop, 0, 60)

    @shop.tasks.task()
    async def other() -> None: ...

    async with shop.open() as broker, Worker(shop.app, broker, grace=0, queues=["default"]):
        job = await work.send()
        await shop.clock.advance(7_200)
        (counts,) = await broker.counts("slow")
        assert 2 <= counts.ready <= 8
        async with shop.open() as another, Worker(shop.app, another, grace=0, queues=["slow"]):
            await shop.clock.advance(300)
            assert await job.state() is State.SUCCEEDED
            assert await broker.purge("slow") == 0
    assert (runs.started, runs.most) == ({0: 1}, 1)


async def test_a_broker_that_is_away_for_long_gets_one_message(shop: Shop) -> None:
    runs = Runs()

    @shop.tasks.task(timeout=None)
    async def work() -> None:
        await runs(shop, 0, 30)

    async with shop.serve() as worker:
        with broker_away(worker.broker):
            job = await work.send()
            await shop.clock.advance(31 * 60)
            assert len(await shop.tasks.connected().store.outbox()) == 1
        await shop.clock.advance(120)
        assert await job.state() is State.SUCCEEDED
    assert (runs.started, runs.most) == ({0: 1}, 1)


async def test_a_store_that_is_away_at_the_end_of_an_expired_task_leaves_nothing_running(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_away = False
    real = MemoryTaskStore.apply

    async def apply(store: MemoryTaskStore, changes: Sequence[Any]) -> Applied:
        if is_away:
            raise StoreError("away")
        return await real(store, changes)

    monkeypatch.setattr(MemoryTaskStore, "apply", apply)

    @shop.tasks.task(expires=60)
    async def work() -> None:
        nonlocal is_away
        await shop.clock.sleep(70)
        is_away = True

    async with shop.serve() as worker:
        job = await work.send()
        await shop.clock.advance(70.5)
        is_away = False
        await shop.clock.advance(60)
        assert await job.state() is State.EXPIRED
        assert len(await letters(worker.broker)) == 1


async def test_a_step_whose_input_is_gone_fails(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemoryTaskStore.apply

    async def apply(store: MemoryTaskStore, changes: Sequence[Any]) -> Applied:
        applied = await real(store, changes)
        for change in changes:
            if isinstance(change, Begin) and change.task.endswith(".1"):
                store.tables.nodes.pop(change.task.replace(".1", ".0"), None)
        return applied

    monkeypatch.setattr(MemoryTaskStore, "apply", apply)

    @shop.tasks.task(retry=LONG)
    async def one() -> int:
        return 1

    @shop.tasks.task(retry=LONG)
    async def two(number: int) -> int:
        return number

    async with shop.serve() as worker:
        job = await (one.s() | two.step()).send()
        await shop.clock.advance(30)
        assert await job.state() is State.FAILED
        assert len(await letters(worker.broker)) == 1


def held_by(worker: Worker) -> HeldDelivery:
    """Return the only message that a worker is running."""
    (runner,) = worker._runners
    (held,) = [held for batch in runner._running.values() for held in batch]
    return held


async def test_a_lost_lease_leaves_the_task_to_the_next_worker(shop: Shop) -> None:
    starts: list[float] = []

    @shop.tasks.task(expires=60, timeout=None)
    async def work() -> None:
        starts.append(shop.clock.monotonic())
        await shop.clock.sleep(300)

    async with shop.open() as broker, Worker(shop.app, broker, grace=0, concurrency=1) as worker:
        job = await work.send()
        await shop.clock.advance(50)
        held = held_by(worker)
        held.subscription.stop_renewing(held)
        await shop.clock.advance(35)
        held.lose()
        await shop.clock.advance(60)
        assert await job.state() is State.EXPIRED
        assert len(await letters(broker)) == 1
    assert len(starts) == 1


async def test_a_late_beginning_does_not_take_the_task_from_the_next_worker(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[float] = []
    go_on, is_held = asyncio.Event(), False
    real = MemoryTaskStore.apply

    async def apply(store: MemoryTaskStore, changes: Sequence[Any]) -> Applied:
        nonlocal is_held
        if any(isinstance(change, Begin) for change in changes) and not is_held:
            is_held = True
            changes = [
                Begin(each.task, each.run, each.attempt, each.token, each.worker)
                if isinstance(each, Begin)
                else each
                for each in changes
            ]  # as after a release, which the first worker would have to take over
            await go_on.wait()
        return await real(store, changes)

    monkeypatch.setattr(MemoryTaskStore, "apply", apply)

    @shop.tasks.task(timeout=None)
    async def work(ctx: TaskContext) -> int:
        starts.append(shop.clock.monotonic())
        await shop.clock.sleep(20)
        return 1

    async with shop.open() as first, Worker(shop.app, first, grace=0, concurrency=1) as worker:
        await worker.resize("default", 1, prefetch=1)  # it does not claim its own message again
        job = await work.send()
        await shop.clock.advance(1)
        assert is_held
        held = held_by(worker)
        async with shop.open() as second, Worker(shop.app, second, grace=0):
            held.subscription.stop_renewing(held)
            await shop.clock.advance(31)
            await shop.clock.advance(5)
            assert len(starts) == 1
            go_on.set()
            await shop.clock.settle()
            held.lose()
            await shop.clock.advance(100)
            assert await job.state() is State.SUCCEEDED


async def test_a_superseded_attempt_that_fails_leaves_no_dead_letter(shop: Shop) -> None:
    """Its task was taken over, and has succeeded."""
    fails = asyncio.Event()

    @shop.tasks.task(timeout=None, retry=LONG)
    async def work() -> None:
        await fails.wait()
        raise OSError("superseded")

    async with shop.serve() as worker:
        job = await work.send()
        await shop.clock.settle()
        begin = Begin(job.id, 0, 1, "another", "another worker")
        end = End(job.id, 0, "another", State.SUCCEEDED, b"1")
        await shop.tasks.connected().store.apply([begin, end])
        fails.set()
        await shop.clock.advance(40)
        assert await job.state() is State.SUCCEEDED
        assert not await letters(worker.broker)


async def test_a_superseded_attempt_keeps_its_message_until_the_task_has_ended(shop: Shop) -> None:
    """Here what has taken it over dies."""
    starts: list[int] = []
    ends = asyncio.Event()

    @shop.tasks.task(timeout=None, retry=LONG)
    async def work(ctx: TaskContext) -> int:
        starts.append(ctx.attempt)
        await ends.wait()
        return 1

    async with shop.serve():
        job = await work.send()
        await shop.clock.settle()
        begin = Begin(job.id, 0, 1, "another", "another worker")
        await shop.tasks.connected().store.apply([begin])
        ends.set()
        await shop.clock.advance(40)
        assert await job.state() is State.SUCCEEDED
    assert starts == [1, 1]
