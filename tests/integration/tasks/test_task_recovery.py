"""What is left behind by processes that died is found and done: nothing is lost, nothing hangs."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mqcore import RetryPolicy, fixed
from mqcore.tasks import State, TaskContext, TaskFailed, group
from mqcore.tasks.connected import Connected
from mqcore.tasks.model.changes import Add, Begin
from mqcore.tasks.plans import rows_of
from mqcore.tasks.store.memory import MemoryTaskStore
from mqcore.tasks.store.seam import Applied, StoreError
from mqcore.testing import VirtualClock

from .conftest import Shop, broker_away, letters


async def test_a_sender_that_dies_before_it_publishes_is_helped_by_the_relay(shop: Shop) -> None:
    @shop.tasks.task()
    async def work() -> int:
        return 1

    async with shop.open():
        call = work.s()
        await shop.tasks.connected().store.apply([Add(rows_of(call.plan, "a").first)])
    async with shop.serve():
        await shop.clock.advance(1)
        assert await shop.tasks.job("a").state() is State.QUEUED
        await shop.clock.advance(4)
        assert await shop.tasks.job("a").result() == 1


async def test_a_broker_that_refuses_a_message_does_not_lose_the_task(shop: Shop) -> None:
    @shop.tasks.task()
    async def work() -> int:
        return 1

    async with shop.serve() as worker:
        with broker_away(worker.broker):
            job = await work.send()
        assert await job.state() is State.QUEUED
        await shop.clock.advance(5)
        assert await job.result() == 1


async def test_a_message_that_is_lost_is_published_again(shop: Shop) -> None:
    @shop.tasks.task()
    async def work() -> int:
        return 1

    async with shop.open() as broker:
        job = await work.send()
        assert await broker.purge("default") == 1
    async with shop.serve():
        await shop.clock.advance(200)
        assert await job.state() is State.QUEUED
        await shop.clock.advance(200)
        assert await job.result() == 1


async def test_a_task_whose_worker_died_with_its_message_is_run_again(shop: Shop) -> None:
    @shop.tasks.task()
    async def work(ctx: TaskContext) -> int:
        return ctx.attempt

    async with shop.open() as broker:
        job = await work.send()
        store = shop.tasks.connected().store
        await store.apply([Begin(job.id, 0, 1, "token", "a worker that died")])
        await broker.purge("default")
    async with shop.serve():
        await shop.clock.advance(400)
        assert await job.result() == 1


async def test_a_group_whose_sender_died_is_given_up(shop: Shop) -> None:
    @shop.tasks.task()
    async def work(number: int) -> int:
        return number

    call = group(work.s(number) for number in range(1_200))
    async with shop.serve(concurrency=50):
        rows = rows_of(call.plan, "big")
        connected = shop.tasks.connected()
        await connected.add(rows.first)
        await connected.send_batches(rows.batches[:1])
        await shop.clock.advance(100)
        assert await shop.tasks.job("big").state() is State.CANCELLED
        assert await shop.tasks.job("big.7").result() == 7


async def test_a_dead_letter_that_is_redriven_opens_the_next_run(shop: Shop) -> None:
    fails = [True]

    @shop.tasks.task(retry=RetryPolicy(1))
    async def work(ctx: TaskContext, text: str) -> str:
        if fails:
            raise OSError("not now")
        return f"{text}, run {ctx.run}"

    async with shop.serve() as worker:
        job = await work.send("hello")
        with pytest.raises(TaskFailed):
            await job.result()
        fails.clear()
        await shop.clock.advance(1)
        await worker.broker.dead_letters("default").redrive()
        await shop.clock.advance(1)
        assert await job.result() == "hello, run 1"


async def test_a_redriven_task_whose_row_was_removed_is_restored(clock: VirtualClock) -> None:
    fails, shop = [True], Shop(clock, result_ttl="10m")

    @shop.tasks.task(retry=RetryPolicy(1))
    async def work(text: str) -> str:
        if fails:
            raise OSError("not now")
        return text

    async with shop.serve() as worker:
        job = await work.send("hello")
        await shop.clock.advance(1)
        fails.clear()
        await shop.clock.advance(600 + 120)
        assert await shop.tasks.connected().store.nodes([job.id]) == [None]
        await worker.broker.dead_letters("default").redrive()
        await shop.clock.advance(1)
        assert await job.result() == "hello"


class Away:
    """Makes the store fail for a while."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_away = False
        self.asked = 0
        real = MemoryTaskStore.apply

        async def apply(store: MemoryTaskStore, changes: Sequence[Any]) -> Applied:
            if self.is_away:
                self.asked += 1
                raise StoreError("away")
            return await real(store, changes)

        monkeypatch.setattr(MemoryTaskStore, "apply", apply)


async def test_a_store_that_is_away_at_the_start_postpones_the_task(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    attempts: list[int] = []

    @shop.tasks.task()
    async def work(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)

    async with shop.open():
        job = await work.send()
    away.is_away = True
    async with shop.serve():
        with pytest.raises(StoreError):
            await work.send()
        await shop.clock.advance(10)
        away.is_away = False
        await shop.clock.advance(10)
        await job.result()
    assert attempts == [1]


async def test_a_store_that_is_away_at_the_end_costs_a_second_run_and_no_attempt(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Away(monkeypatch)
    attempts: list[int] = []

    @shop.tasks.task(retry=RetryPolicy(1))
    async def work(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)
        away.is_away = len(attempts) == 1

    async with shop.serve():
        job = await work.send()
        await shop.clock.advance(1)
        assert away.asked
        away.is_away = False
        await shop.clock.advance(10)
        await job.result()
    assert attempts == [1, 1]


async def test_a_worker_that_stops_gives_its_task_to_the_next_one(shop: Shop) -> None:
    runs: list[int] = []

    @shop.tasks.task()
    async def work(ctx: TaskContext) -> int:
        runs.append(ctx.attempt)
        if len(runs) == 1:
            await asyncio.Event().wait()
        return 1

    async with shop.serve():
        job = await work.send()
        await shop.clock.settle()
    async with shop.serve():
        assert await job.result() == 1
    assert runs == [1, 1]


async def test_an_unknown_name_is_a_failure_with_its_reason(shop: Shop) -> None:
    @shop.tasks.task(name="work")
    async def work() -> None: ...

    async with shop.open():
        job = await work.send()
    shop.tasks._registered.clear()
    async with shop.serve() as worker:
        await shop.clock.advance(1)
        with pytest.raises(TaskFailed, match="no task named 'work' is registered"):
            await job.result()
        assert len(await letters(worker.broker)) == 1


async def test_one_wrong_change_does_not_fail_the_others_of_its_turn(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    @shop.tasks.task()
    async def work() -> int:
        return 1

    real = MemoryTaskStore.apply

    async def apply(store: MemoryTaskStore, changes: Sequence[Any]) -> Applied:
        if any(isinstance(change, Add) and change.rows[0].id == "bad" for change in changes):
            raise ValueError("bad")
        return await real(store, changes)

    monkeypatch.setattr(MemoryTaskStore, "apply", apply)
    async with shop.open():
        connected: Connected = shop.tasks.connected()
        good, bad = await asyncio.gather(
            connected.add(rows_of(work.s().plan, "good").first),
            connected.add(rows_of(work.s().plan, "bad").first),
            return_exceptions=True,
        )
        assert isinstance(bad, ValueError)
        assert not isinstance(good, BaseException)
        assert await shop.tasks.job("good").state() is State.QUEUED


async def test_retries_go_on_in_another_worker(shop: Shop) -> None:
    @shop.tasks.task(retry=RetryPolicy(3, fixed(10)))
    async def work(ctx: TaskContext) -> int:
        if ctx.attempt < 3:
            raise OSError("no")
        return ctx.attempt

    async with shop.serve():
        job = await work.send()
        await shop.clock.advance(1)
    async with shop.serve():
        await shop.clock.advance(25)
        assert await job.result() == 3
