"""Times and ends that meet: expiry, replacement, time limits, and a close beside a wait."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from mqcore import ConnectionLost, RetryPolicy
from mqcore.tasks import State, TaskExpired, Unique, UnknownTask, group
from mqcore.tasks.model.changes import End
from mqcore.tasks.model.nodes import Node
from mqcore.tasks.results import Results
from mqcore.tasks.store import values
from mqcore.tasks.store.memory import MemoryTaskStore
from mqcore.tasks.store.seam import Applied, StoreError, TaskStore
from mqcore.tasks.store.values import Value

from .conftest import Shop, broker_away, letters

REPLACE = Unique(by=("key",), policy="replace")


async def test_two_senders_replace_the_same_task(shop: Shop) -> None:
    @shop.tasks.task(unique=REPLACE)
    async def work(key: int, value: int) -> int:
        return value

    async with shop.open():
        await work.send(1, 0)
        sending = [asyncio.create_task(work.send(1, value)) for value in (1, 2)]
        await shop.clock.advance(1)
        states = sorted([await (await each).state() for each in sending])
        assert states == [State.CANCELLED, State.QUEUED]


async def test_a_replacement_that_is_published_slowly_was_sent(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    @shop.tasks.task(unique=REPLACE)
    async def work(key: int, value: int) -> int:
        return value

    async with shop.open() as broker:
        await work.send(1, 0)
        real = broker.publish

        async def slow(*given: Any, **options: Any) -> Any:
            await shop.clock.sleep(40)
            return await real(*given, **options)

        monkeypatch.setattr(broker, "publish", slow)
        sending = asyncio.create_task(work.send(1, 1))
        await shop.clock.advance(50)
        assert await (await sending).state() is State.QUEUED


@pytest.mark.parametrize(("seconds", "runs"), [(250, 0), (30, 1)])
async def test_the_expiry_counts_from_the_send_while_the_broker_is_away(
    shop: Shop, seconds: int, runs: int
) -> None:
    started: list[float] = []

    @shop.tasks.task(expires=60)
    async def work() -> int:
        started.append(shop.clock.monotonic())
        return 1

    async with shop.serve() as worker:
        with broker_away(worker.broker):
            job = await work.send()
            await shop.clock.advance(seconds)
        await shop.clock.advance(20)
        assert len(started) == runs
        if not runs:
            with pytest.raises(TaskExpired):
                await job.result()


async def test_a_lost_task_does_not_start_after_its_expiry(shop: Shop) -> None:
    started: list[float] = []

    @shop.tasks.task(expires=60)
    async def work() -> None:
        started.append(shop.clock.monotonic())

    async with shop.open() as broker:
        job = await work.send()
        await broker.purge("default")
    async with shop.serve():
        await shop.clock.advance(700)
        assert await job.state() is State.EXPIRED
    assert not started


async def test_an_expiry_counts_from_the_send_in_the_queue_too(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    @shop.tasks.task(expires=60)
    async def work() -> int:
        return 1

    async with shop.open() as broker:
        real = broker.publish
        ttls: list[float] = []

        async def publish(*given: Any, **options: Any) -> Any:
            ttls.append(options["ttl"])
            return await real(*given, **options)

        monkeypatch.setattr(broker, "publish", publish)
        with monkeypatch.context() as slow:
            store = shop.tasks.connected().store
            entries = store.entries

            async def late(keys: Sequence[str]) -> Any:
                await shop.clock.sleep(20)
                return await entries(keys)

            slow.setattr(store, "entries", late)
            sending = asyncio.create_task(work.send())
            await shop.clock.advance(30)
            await sending
        assert ttls == [40]


async def test_a_time_limit_does_not_reach_the_end_of_a_run(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store takes three seconds to answer, and the limit ends meanwhile."""
    real = MemoryTaskStore.apply

    async def apply(store: MemoryTaskStore, changes: Sequence[Any]) -> Applied:
        applied = await real(store, changes)
        if any(isinstance(change, End) for change in changes):
            await shop.clock.sleep(3)
        return applied

    monkeypatch.setattr(MemoryTaskStore, "apply", apply)

    @shop.tasks.task(retry=RetryPolicy(1), soft_timeout=5)
    async def work() -> int:
        await shop.clock.sleep(4)
        return 1

    async with shop.serve() as worker:
        job = await work.send()
        await shop.clock.advance(4.5)
        assert not shop.tasks.connected().runs.running
        await shop.clock.advance(30)
        assert await job.result() == 1
        assert not await letters(worker.broker)


async def test_a_close_beside_a_wait_is_an_error_of_ours(shop: Shop) -> None:
    @shop.tasks.task()
    async def work() -> int:
        return 1

    async with shop.open():
        job = await work.send()
        waiting = asyncio.create_task(job.result())
        await shop.clock.settle()
    with pytest.raises(ConnectionLost, match=r"tasks\.job"):
        await waiting


async def test_a_workflow_that_is_removed_while_its_result_is_read_is_unknown(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    @shop.tasks.task()
    async def work() -> int:
        return 1

    async def value_below(store: TaskStore, node: Node) -> Value:
        await store.purge(shop.clock.now() + 1)
        return await values.value_below(store, node)

    monkeypatch.setattr("mqcore.tasks.job.value_below", value_below)
    async with shop.serve():
        job = await group(work.s(), work.s()).send()
        await shop.clock.advance(1)
        assert await job.state() is State.SUCCEEDED
        with pytest.raises(UnknownTask):
            await job.result()


async def test_what_was_committed_is_published_though_it_cannot_be_noticed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    @shop.tasks.task()
    async def work() -> int:
        return 1

    def notice(_results: Results, _changes: object) -> None:
        raise RuntimeError("another loop")

    monkeypatch.setattr(Results, "notice", notice)
    async with shop.open() as broker:
        await work.send()
        (counts,) = await broker.counts("default")
        assert counts.ready == 1


@pytest.mark.parametrize(
    ("announces", "least", "most"), [(True, 20, 50), (False, 100, 150)], ids=["announced", "polled"]
)
async def test_a_wait_asks_the_store_seldom(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, *, announces: bool, least: int, most: int
) -> None:
    asked = 0
    real = MemoryTaskStore.nodes

    async def nodes(store: MemoryTaskStore, ids: Sequence[str]) -> Any:
        nonlocal asked
        asked += 1
        return await real(store, ids)

    monkeypatch.setattr(MemoryTaskStore, "nodes", nodes)
    if not announces:
        monkeypatch.delattr(MemoryTaskStore, "listen")

    @shop.tasks.task()
    async def work() -> int:
        return 1

    async with shop.open():
        job = await work.send()
        waiting = asyncio.create_task(job.result())
        await shop.clock.advance(60)
        waiting.cancel()
    assert least < asked < most


@pytest.mark.parametrize("hanging", ["apply", "close"])
async def test_a_store_that_hangs_holds_up_no_close(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    @shop.tasks.task()
    async def work() -> None: ...

    async def never(*_: object) -> Applied:
        await asyncio.Event().wait()
        return Applied([])

    monkeypatch.setattr("mqcore.tasks.connected.CLOSE", 0.05)
    async with asyncio.timeout(30), shop.serve():
        monkeypatch.setattr(MemoryTaskStore, hanging, never)
        sending = asyncio.create_task(work.send())
        await asyncio.sleep(0)
    if hanging == "apply":
        with pytest.raises(StoreError, match="not known whether the change was made"):
            await sending
    else:
        await sending
