"""G3: a settlement that fails leaves its message ours, and is tried again."""

import asyncio
from typing import Any

import pytest
from support.faulty import (
    Broken,
    Faults,
    dropped_answer,
    failed,
    first_failed,
    hung,
    lost_answer,
    raised,
)

from mqcore import Broker, LeaseLost, Queue, RetryPolicy
from mqcore.spi import DONE, ErrorKind
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


@pytest.mark.parametrize(
    "fault",
    [
        failed(),
        failed(ErrorKind.PERMANENT),
        raised(Broken("busy")),
        dropped_answer(),
        lost_answer(),
    ],
    ids=["failed", "refused", "raised", "dropped", "lost"],
)
async def test_a_settlement_without_a_good_answer_is_repeated(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log, fault: Any
) -> None:
    faults.keeps_claims = True
    await faulty.publish(jobs, "a")
    async with serve(jobs, log, on=faulty):
        faults.next("settle", fault, fault)
        await clock.advance(20)
        assert (await faulty.counts(jobs))[0].leased == 0
    assert log.seen == ["a"]


def answers(*results: Any) -> Any:
    """A driver that settles nothing and breaks the seam's rule: one answer for each settlement."""

    async def fault(*_: Any) -> Any:
        return list(results)

    return fault


@pytest.mark.parametrize(
    "fault",
    [answers(), answers(DONE, DONE), answers(None), answers("done")],
    ids=["too few", "too many", "none", "a text"],
)
async def test_an_answer_that_no_driver_may_give_keeps_no_place(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log, fault: Any
) -> None:
    faults.keeps_claims = True
    await faulty.publish_many(jobs, ["a", "b"])
    faults.next("settle", fault, fault)
    async with serve(jobs, log, on=faulty, concurrency=1, prefetch=1):
        await clock.advance(20)
        assert (await faulty.counts(jobs))[0].total == 0
    assert log.seen == ["a", "b"]
    assert faulty.events.counts["settle.failed"] == 2


async def test_a_move_that_fails_leaves_its_source_and_is_tried_again(
    faulty: Broker, faults: Faults, broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async def fail(_: str) -> None:
        raise ValueError

    await faulty.publish(jobs, "a")
    await broker.delete("jobs.dlq")
    faults.next("declare", *[raised(Broken("not now"))] * 3)
    async with serve(jobs, fail, on=faulty, retry=ONCE):
        await clock.settle()
        assert (await broker.counts(jobs))[0].leased == 1
        await clock.advance(60)
        assert (await broker.counts(jobs))[0].leased == 0
    assert [letter.body for letter in await faulty.dead_letters(jobs).list()] == [b"a"]


async def test_a_batch_of_settlements_is_answered_one_by_one(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log
) -> None:
    await faulty.publish_many(jobs, ["a", "b", "c"])
    async with serve(jobs, log, on=faulty):
        faults.next("settle", first_failed(ErrorKind.TRANSIENT))
        await clock.advance(0)
        assert (await faulty.counts(jobs))[0].leased == 1
        await clock.advance(1)
        assert (await faulty.counts(jobs))[0].leased == 0
    assert sorted(log.seen) == ["a", "b", "c"]


async def test_a_settlement_that_cannot_be_sent_slows_consuming_down(
    faulty: Broker, faults: Faults, clock: VirtualClock, serve: Any, log: Log
) -> None:
    await faulty.publish_many(jobs, [f"{n}" for n in range(20)])
    async with serve(jobs, log, on=faulty, concurrency=1, prefetch=3):
        faults.next("settle", *[failed()] * 200)
        await clock.advance(5)
        assert len(log.seen) == 3, "what is not settled counts against prefetch"


async def test_an_ack_that_nobody_has_answered_at_the_close_is_not_taken_for_done(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.publish(jobs, "a")
    consumer = faulty.consume(jobs)
    delivery = await consumer.get(timeout=1)
    assert delivery is not None
    faults.next("settle", *[hung()] * 3)
    acking = asyncio.create_task(delivery.ack())
    await clock.settle()
    await consumer.close()
    with pytest.raises(LeaseLost):
        await acking


async def test_a_settlement_that_a_driver_ends_by_force_leaves_its_message_to_the_lease(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    """A cancelled future of a driver ends those that await it; then the claim is lost."""
    await faulty.publish(jobs, "a")
    async with faulty.consume(jobs, lease=3) as consumer:
        delivery = await consumer.get(timeout=1)
        assert delivery is not None
        faults.next("settle", raised(asyncio.CancelledError()))
        acking = asyncio.create_task(delivery.ack())
        await clock.advance(1)
        assert not acking.done()
        found = faulty._session.connection.backend._store._queues["jobs"]  # type: ignore[attr-defined]  # it is a memory backend
        for copy in list(found.leases.values()):
            found.release(copy, lost=True)
        await clock.advance(3)
        with pytest.raises(LeaseLost):
            await acking
