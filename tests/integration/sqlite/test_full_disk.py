"""A disk that is really full: ext4 of a few megabytes. Skipped without a loop device."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.loop_disk import DiskUnavailable, LoopDisk
from support.sqlite_file import plugins
from support.waiting import eventually

from mqcore import App, Broker, Queue, Settings, Worker
from mqcore.errors import QueueFull
from mqcore.messages.message import Message
from mqcore.spi import DONE, STORED, Ack, ErrorKind, Failed, Outgoing, QueueSpec
from mqcore_sql import SqliteBackend, SqliteOptions

pytestmark = pytest.mark.timeout(120)
RESERVE = 4 * 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    try:
        with LoopDisk(tmp_path, 16) as disk:
            yield disk
    except DiskUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
async def backend(disk: LoopDisk) -> AsyncIterator[SqliteBackend]:
    options = SqliteOptions(reserve=RESERVE)
    backend = SqliteBackend(f"sqlite:///{disk.folder}/queue.db", options)
    await backend.open(lambda _: None)
    await backend.declare([QueueSpec(name="jobs")])
    yield backend
    await backend.close()


def batch(first: int, number: int = 20) -> list[Outgoing]:
    names = [f"{index}" for index in range(first, first + number)]
    return [Outgoing("jobs", Message(id=name, body=b"x" * 10_000)) for name in names]


async def fill(backend: Any) -> int:
    """Publish until the disk is full; return how many messages were confirmed."""
    for first in range(0, 10_000, 20):
        outcomes = await backend.publish(batch(first), timeout=30)
        if outcomes != [STORED] * 20:
            for outcome in outcomes:
                assert isinstance(outcome, Failed)
                assert (outcome.kind, "reserve" in outcome.text) == (ErrorKind.FULL, True)
            return first
    pytest.fail("the disk was never full")


async def settle_all(backend: Any, number: int) -> None:
    consumer = await backend.subscribe("jobs", prefetch=50, lease=30)
    settled = 0
    while settled < number:
        deliveries = await consumer.receive(50, 5)
        acks = [Ack(delivery.receipt) for delivery in deliveries]
        assert await consumer.settle(acks, timeout=30) == [DONE] * len(deliveries) != []
        settled += len(deliveries)


async def test_publishes_end_at_the_reserve_and_what_is_stored_can_be_consumed(
    backend: Any, disk: LoopDisk
) -> None:
    number = await fill(backend)
    assert number > 0
    assert "reserve" in (await backend.diagnose())[0]
    await settle_all(backend, number)
    assert (await backend.count(["jobs"]))[0].total == 0


async def test_a_disk_that_another_program_fills_loses_nothing_and_goes_on_with_space(
    backend: Any, disk: LoopDisk
) -> None:
    assert await backend.publish(batch(0), timeout=5) == [STORED] * 20
    consumer = await backend.subscribe("jobs", prefetch=20, lease=30)
    deliveries = await consumer.receive(20, 5)
    filler = disk.fill()
    (refused,) = await backend.publish(batch(20, 1), timeout=5)
    assert isinstance(refused, Failed)
    assert refused.kind is ErrorKind.FULL

    # the log has no page left for the first of them, or a few: none may be confirmed and undone
    acks = [Ack(delivery.receipt) for delivery in deliveries]
    done = 0
    for ack in acks:
        (outcome,) = await consumer.settle([ack], timeout=10)
        assert outcome == DONE or (isinstance(outcome, Failed) and outcome.kind is ErrorKind.FULL)
        done += outcome == DONE
    assert (await backend.count(["jobs"]))[0].total == 20 - done

    filler.unlink()
    outcomes = await consumer.settle(acks, timeout=10)
    assert sum(outcome == DONE for outcome in outcomes) == 20 - done
    assert await backend.publish(batch(20), timeout=5) == [STORED] * 20
    await settle_all(backend, 20)


async def test_an_application_goes_on_when_the_disk_has_space_again(disk: LoopDisk) -> None:
    url = f"sqlite:///{disk.folder}/queue.db?reserve={RESERVE}"
    app, queue, handled = App("shop"), Queue("jobs", int), Counter[int]()
    go = asyncio.Event()

    @app.consumer(queue, concurrency=5)
    async def handle(payload: int) -> None:
        await go.wait()
        handled[payload] += 1

    async with (
        Broker.connect(url, plugins=plugins(), settings=Settings()) as broker,
        Worker(app, broker),
    ):
        for number in range(5):
            await broker.publish(queue, number)
        filler = disk.fill()
        with pytest.raises(QueueFull, match="reserve"):
            await broker.publish(queue, 5)
        go.set()  # they are handled while their settlements find no space
        await eventually(lambda: handled.total() == 5, 20)
        filler.unlink()
        await broker.publish(queue, 6)
        await eventually(lambda: set(handled) == {0, 1, 2, 3, 4, 6}, 20)

        async def is_empty() -> bool:
            (count, *_) = [count for count in await broker.counts() if count.name == "jobs"]
            return count.total == 0

        await eventually(is_empty, 20)
    assert handled.total() == 6


async def test_a_file_on_a_full_disk_cannot_be_made_and_says_why(disk: LoopDisk) -> None:
    disk.fill()
    backend = SqliteBackend(f"sqlite:///{disk.folder}/queue.db", SqliteOptions())
    with pytest.raises(Exception, match=r"full|reserve|No space") as caught:
        await backend.open(lambda _: None)
    assert backend.classify(caught.value) is ErrorKind.FULL
    await backend.close()
