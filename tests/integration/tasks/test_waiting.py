"""Waiting for results that other processes make: announced, and looked for where that is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.waiting import eventually

from mqcore.tasks import Job, group
from mqcore.tasks.model.changes import Begin, Change, End, Progress
from mqcore.tasks.model.states import State
from mqcore.tasks.store.memory import MemoryTaskStore
from mqcore.tasks.store.seam import StoreError

if TYPE_CHECKING:
    from .conftest import Shop


class Elsewhere:
    """Another process: it changes the rows, and this one learns it from the store alone."""

    def __init__(self, shop: Shop) -> None:
        self._store = MemoryTaskStore(shop.tasks.store or "", shop.clock)

    async def apply(self, *changes: Change) -> None:
        await self._store.apply(changes)

    async def begin(self, task: str) -> None:
        await self.apply(Begin(task, 0, 1, "token", "worker"))

    async def run(self, task: str, result: bytes = b"1") -> None:
        await self.begin(task)
        await self.apply(End(task, 0, "token", State.SUCCEEDED, result))


def send_one(shop: Shop) -> Any:
    @shop.tasks.task()
    async def work(number: int) -> int:
        return number

    return work


async def waiting_for(job: Job[Any]) -> asyncio.Task[Any]:
    """Return the wait for a job when nothing more happens without an announcement."""
    waiting = asyncio.create_task(job.result())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not waiting.done()
    return waiting


async def test_a_result_of_another_process_is_announced(shop: Shop) -> None:
    work, elsewhere = send_one(shop), Elsewhere(shop)
    async with shop.open():
        job = await work.send(1)
        waiting = await waiting_for(job)
        await elsewhere.run(job.id)
        assert await waiting == 1, "without a moment of the clock"


async def test_the_end_of_a_workflow_is_announced(shop: Shop) -> None:
    work, elsewhere = send_one(shop), Elsewhere(shop)
    async with shop.open():
        job = await group(work.s(number) for number in range(3)).send()
        waiting = await waiting_for(job)
        for place in range(3):
            await elsewhere.run(f"{job.id}.{place}", str(place).encode())
        assert await waiting == [0, 1, 2]


async def test_changes_and_progress_of_another_process_are_announced(shop: Shop) -> None:
    work, elsewhere = send_one(shop), Elsewhere(shop)
    async with shop.open():
        job = await work.send(1)
        changes = job.changes()
        assert (await anext(changes)).state is State.QUEUED
        next_one = asyncio.ensure_future(anext(changes))
        await eventually(lambda: bool(elsewhere._store.tables.listeners))
        await elsewhere.begin(job.id)
        assert (await next_one).state is State.RUNNING

        next_one = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        await elsewhere.apply(Progress(job.id, 0, "token", 1, b'{"done": 3, "total": 4}'))
        assert (await next_one).done == 3
        next_one = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        await elsewhere.apply(End(job.id, 0, "token", State.SUCCEEDED, b"1"))
        assert (await next_one).state is State.SUCCEEDED


async def test_a_lost_announcement_only_costs_time(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, elsewhere = send_one(shop), Elsewhere(shop)
    monkeypatch.setattr(MemoryTaskStore, "announce", lambda *_: None)
    async with shop.open():
        job = await work.send(1)
        waiting = await waiting_for(job)
        await elsewhere.run(job.id)
        await shop.clock.advance(5)
        assert await waiting == 1


async def test_a_subscription_that_is_lost_is_made_again_and_everything_is_looked_at(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, elsewhere = send_one(shop), Elsewhere(shop)
    lost = asyncio.Event()
    begun = 0
    real = MemoryTaskStore.listen

    async def listen(store: MemoryTaskStore, heard: Any) -> None:
        nonlocal begun
        begun += 1
        if begun > 1:
            await real(store, heard)
        heard(None)
        await lost.wait()
        raise StoreError("the connection is lost")

    monkeypatch.setattr(MemoryTaskStore, "listen", listen)
    async with shop.open():
        first, second = await work.send(1), await work.send(2)
        waiting = await waiting_for(first), await waiting_for(second)
        await elsewhere.run(first.id)
        lost.set()
        assert await waiting[0] == 1, "what ended before is looked for at once"

        await shop.clock.advance(2)
        assert begun == 2
        waiting_again = await waiting_for(second)
        await elsewhere.run(second.id)
        assert await waiting[1] == await waiting_again == 1


async def test_a_store_that_is_away_is_listened_to_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, elsewhere = send_one(shop), Elsewhere(shop)

    async def listen(_store: MemoryTaskStore, _heard: Any) -> None:
        raise StoreError("refused")

    with monkeypatch.context() as away:
        away.setattr(MemoryTaskStore, "listen", listen)
        async with shop.open():
            job = await work.send(1)
            waiting = await waiting_for(job)
            await elsewhere.run(job.id)
            await shop.clock.advance(1)
            assert await waiting == 1, "it is polled for meanwhile"


async def test_one_subscription_serves_all_waits_and_ends_after_them(shop: Shop) -> None:
    work, elsewhere = send_one(shop), Elsewhere(shop)
    listeners = elsewhere._store.tables.listeners
    async with shop.open():
        jobs = [await work.send(number) for number in range(500)]
        waiting = [asyncio.create_task(job.result()) for job in jobs]
        await eventually(lambda: bool(listeners))
        for job in jobs:
            await elsewhere.run(job.id)
        assert await asyncio.gather(*waiting) == [1] * 500
        assert len(listeners) == 1

        (results,) = [each.results for each in shop.tasks.connections]
        assert not results._waiting
        assert not results._changed
        await shop.clock.advance(60)
        assert not listeners


async def test_a_defect_of_the_store_is_the_error_of_who_waits(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = send_one(shop)
    async with shop.open():
        job = await work.send(1)
        waiting = await waiting_for(job)

        async def nodes(*_: object) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr(MemoryTaskStore, "nodes", nodes)
        await shop.clock.advance(5)
        with pytest.raises(ZeroDivisionError):
            await waiting


async def test_a_blocking_program_hears_of_a_worker_in_another_thread(shop: Shop) -> None:
    work, elsewhere = send_one(shop), Elsewhere(shop)
    async with shop.open():
        job = await work.send(1)
        waiting = await waiting_for(job)
        await asyncio.to_thread(lambda: asyncio.run(elsewhere.run(job.id)))
        assert await waiting == 1
