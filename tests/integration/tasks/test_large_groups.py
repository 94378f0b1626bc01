"""Groups whose members are sent in batches."""

import asyncio
from typing import Any

import pytest

from mqcore.errors import MqcoreError
from mqcore.tasks import State, TaskCancelled, group
from mqcore.tasks.model.changes import More
from mqcore.tasks.store.memory import MemoryTaskStore

from .conftest import Shop

pytestmark = pytest.mark.timeout(120)


async def test_a_large_group_in_a_large_group_ends(shop: Shop) -> None:
    @shop.tasks.task()
    async def work(number: int) -> int:
        return number

    inner = group(work.s(number) for number in range(1_001))
    async with shop.serve(concurrency=100):
        job = await group([*(work.s(number) for number in range(1_000)), inner]).send()
        await shop.clock.advance(30)
        assert await job.state() is State.SUCCEEDED
        assert len((await job.result())[-1]) == 1_001


async def test_each_member_is_checked_before_anything_is_stored(shop: Shop) -> None:
    @shop.tasks.task()
    async def work(text: str) -> int:
        return len(text)

    async with shop.open() as broker:
        too_large = "x" * (broker.capabilities.max_payload or 20_000_000)
        call = group([*(work.s("a") for _ in range(1_000)), work.s(too_large)])
        with pytest.raises(MqcoreError):
            await call.send()
        store = shop.tasks.connected().store
        assert isinstance(store, MemoryTaskStore)
        assert not store.tables.nodes


async def test_a_slow_broker_does_not_make_a_sender_look_dead(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    @shop.tasks.task()
    async def work(number: int) -> int:
        return number

    async with shop.serve(concurrency=100) as worker:
        real = worker.broker.publish

        async def slow(*given: Any, **options: Any) -> Any:
            if shop.clock.monotonic() < 1:
                await shop.clock.sleep(80)
            return await real(*given, **options)

        monkeypatch.setattr(worker.broker, "publish", slow)
        sending = asyncio.create_task(group(work.s(number) for number in range(2_500)).send())
        await shop.clock.advance(150)
        assert await (await sending).state() is State.SUCCEEDED


async def test_a_sender_hears_that_its_group_was_given_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    @shop.tasks.task()
    async def work(number: int) -> int:
        return number

    real = MemoryTaskStore.apply

    async def apply(store: MemoryTaskStore, changes: Any) -> Any:
        if any(isinstance(change, More) for change in changes):
            await shop.clock.sleep(100)
        return await real(store, changes)

    monkeypatch.setattr(MemoryTaskStore, "apply", apply)
    async with shop.serve(concurrency=100):
        sending = asyncio.create_task(group(work.s(number) for number in range(1_500)).send())
        await shop.clock.advance(250)
        with pytest.raises(TaskCancelled, match="abandoned"):
            await sending
