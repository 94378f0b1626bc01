"""G1: a queue that another process deleted is declared again by the next publish."""

import asyncio
from typing import Any

import pytest
from support.faulty import Faults, answered

from mqcore import App, Broker, Context, Queue, QueueNotFound, Router, Unroutable, Worker
from mqcore.spi import ErrorKind, Failed
from mqcore.testing import VirtualClock

jobs, mails = Queue("jobs", str), Queue("mails", str)


async def ready(broker: Broker, queue: str = "jobs") -> int:
    return (await broker.counts(queue))[0].ready


async def test_publishing_goes_on(broker: Broker, other: Broker) -> None:
    await broker.publish(jobs, "before")
    await other.delete("jobs")
    await other.delete("jobs.dlq")

    receipt = await broker.publish(jobs, "after")

    assert receipt.queues == ("jobs",)
    assert await ready(other) == 1
    assert {counts.name for counts in await other.counts()} == {"jobs", "jobs.dlq"}


async def test_a_batch_is_sent_once_more_and_no_message_twice(
    broker: Broker, other: Broker
) -> None:
    await broker.declare(jobs)
    await other.delete("jobs")

    endings = await broker.publish_many(jobs, ["a", "b", "c"])

    assert [ending.queues for ending in endings] == [("jobs",)] * 3  # type: ignore[union-attr]  # receipts all
    assert await ready(other) == 3


async def test_a_producer_and_a_delay_too(broker: Broker, other: Broker) -> None:
    producer = broker.producer(jobs, delay=5)
    await producer.publish("a")
    await other.delete("jobs")

    await producer.publish("b")

    assert (await other.counts("jobs"))[0].delayed == 1


async def test_by_its_name_when_this_process_has_declared_it(broker: Broker, other: Broker) -> None:
    await broker.declare(Queue("raw"))
    await other.delete("raw")

    await broker.publish("raw", b"x")

    assert await ready(other, "raw") == 1


async def test_what_this_process_deleted_or_only_adopted_stays_away(
    broker: Broker, other: Broker
) -> None:
    await broker.declare(jobs)
    await broker.delete(jobs)
    with pytest.raises(QueueNotFound):
        await broker.publish("jobs", b"x")

    await other.declare(mails)
    adopted = Queue("mails", str, declare=False)
    await broker.publish(adopted, "x")
    await other.delete("mails")
    with pytest.raises(QueueNotFound, match="declare=False"):
        await broker.publish(adopted, "x")


async def test_the_context_of_a_handler(
    broker: Broker, other: Broker, clock: VirtualClock, serve: Any
) -> None:
    receipts: list[object] = []

    async def handler(job: str, ctx: Context) -> None:
        receipts.append(await ctx.publish(mails, job))

    async with serve(jobs, handler):
        await other.publish("jobs", "a")
        await clock.settle()
        await other.delete("mails")
        await other.publish("jobs", "b")
        await clock.settle()

    assert len(receipts) == 2
    assert await ready(other, "mails") == 1


async def test_a_request_whose_queue_and_reply_queue_are_gone(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    app = App("answers")

    @app.consumer(jobs)
    async def handle(job: str) -> str:
        return job.upper()

    async def ask() -> Any:
        return await broker.request(jobs, "a", result=str, timeout=30)

    async with Worker(app, other):
        asking = asyncio.create_task(ask())
        await clock.advance(1)
        assert await asking == "A"

    await other.delete("jobs")
    await other.delete(broker._session.requests._queue)
    asking = asyncio.create_task(ask())
    await clock.advance(1)

    again = App("answers")
    again.consumer(jobs)(handle)
    async with Worker(again, other):
        await clock.advance(2)
        assert await asking == "A"


async def test_a_router_whose_queue_was_deleted(broker: Broker, other: Broker) -> None:
    router = Router("events", str).bind(jobs, "job.*").bind(mails, "mail.*")
    await broker.publish(router, "a", key="job.new")
    await other.delete("jobs")

    await broker.publish(router, "b", key="job.new")
    endings = await broker.publish_many(router, ["c", "d"], key="job.new")

    assert await ready(other) == 1 + len(endings)
    assert len(await other.bindings("events")) == 2


async def test_what_no_binding_of_ours_takes_is_unroutable_at_once(
    faulty: Broker, faults: Faults
) -> None:
    router = Router("events", str).bind(jobs, "job.*")
    await faulty.declare(router)
    calls = faults.calls["declare"]

    with pytest.raises(Unroutable):
        await faulty.publish(router, "a", key="mail.new")

    assert faults.calls["declare"] == calls
    assert faulty.events.counts["publish.failed"] == 1


async def test_it_is_tried_once_more_and_not_for_ever(faulty: Broker, faults: Faults) -> None:
    await faulty.declare(jobs)
    gone = answered(Failed(ErrorKind.NOT_FOUND, "no queue 'jobs'"))
    faults.next("publish", gone, gone)

    with pytest.raises(QueueNotFound):
        await faulty.publish(jobs, "a")

    assert faults.calls["publish"] == 2
    assert faulty.events.counts["publish.failed"] == 1, "told once"


async def test_what_prevents_declaring_again_is_said(broker: Broker, other: Broker) -> None:
    await broker.declare(jobs)
    await other.delete("jobs")
    await other.delete("jobs.dlq")
    await other.declare(Queue("something", str, dead_letter="jobs.dlq", retention=60))

    with pytest.raises(QueueNotFound, match="retention") as caught:
        await broker.publish(jobs, "a")

    assert "declared again" in str(caught.value)


async def test_of_a_routed_message_only_the_missing_copies_are_sent_again(
    faulty: Broker, faults: Faults
) -> None:
    """A plain client deletes one of two queues, and the bindings do not notice."""
    router = Router("events", str, kind="fanout").bind(jobs).bind(mails)
    await faulty.declare(router)

    async def one_is_gone(_backend: object, do: Any, batch: Any) -> Any:
        kept = [out for out in batch if out.to == "mails"]
        stored = dict(zip([out.to for out in kept], await do(kept), strict=True))
        return [
            stored.get(out.to, Failed(ErrorKind.NOT_FOUND, f"no queue {out.to!r}")) for out in batch
        ]

    faults.next("publish", one_is_gone)
    receipt = await faulty.publish(router, "a")

    assert set(receipt.queues) == {"jobs", "mails"}
    assert [counts.ready for counts in await faulty.counts("jobs", "mails")] == [1, 1]
