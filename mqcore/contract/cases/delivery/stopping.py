"""What a consumer that stops leaves behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.delivery.common import LONG
from mqcore.queue import Queue
from mqcore.spi import STALE, Ack, Capability

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G4", "G5", ids="C45")
async def what_a_consumer_leaves_unsettled_goes_to_one_who_waits(kit: Kit) -> None:
    """What a closed consumer left unsettled goes to a waiting consumer, as taken over.

    It keeps its old place where ORDER states `release_in_place`, and the old receipts are stale.
    """
    queue = await kit.queue()
    await kit.put(queue, *"abc")
    lease = 2.0
    consumer, other = (
        await kit.subscribe(queue, prefetch=3, lease=lease),
        await kit.subscribe(queue, prefetch=3),
    )
    held = await kit.take(consumer, 3)
    waiting = await kit.start(other.receive(3, LONG))
    began, look, limit = (
        kit.now,
        "Subscription.close",
        1.0 + lease * kit.capabilities.has(Capability.LEASE),
    )
    await kit.within(consumer.close())
    got = list(await kit.within(waiting))
    kit.true(
        kit.now - began <= limit, f"takeover within {limit:g} s", f"{kit.now - began:.3f} s", look
    )

    got += await kit.take(other, 3 - len(got))
    kit.same(sorted(kit.ids(got)), list("abc"), "messages taken over", look)

    if kit.limit(Capability.ORDER, "release_in_place"):
        kit.same(kit.ids(got), list("abc"), "messages in their old order", look)
    marks = [(delivery.redelivered, delivery.takeovers, delivery.attempt) for delivery in got]
    kit.same(
        marks, [(True, 1, 1)] * 3, "redelivered, takeovers, attempts (which core counts)", look
    )

    late = await kit.settle(consumer, *[Ack(delivery.receipt) for delivery in held])
    kit.same(late, [STALE] * 3, "outcomes of late acks", "Subscription.settle: fencing")

    await kit.ack(other, got)


@case("G5", ids="C45 C48")
async def closing_one_consumer_leaves_others_alone(kit: Kit) -> None:
    """Closing a consumer gives back its own messages only; what others hold stays theirs."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    closes, works = (
        await kit.subscribe(queue, prefetch=1, lease=2.0),
        await kit.subscribe(queue, prefetch=1),
    )
    await kit.take(closes, 1)
    held = await kit.take(works, 1)
    idle = await kit.subscribe(queue)
    waiting = await kit.start(idle.receive(1, LONG))
    await kit.within(idle.close())
    await kit.within(closes.close())
    kit.same(
        list(await kit.within(waiting)),
        [],
        "messages for the closed consumer",
        "Subscription.close",
    )

    await kit.ack(works, held)
    await kit.put(queue, "c")
    for name in "ac":
        got = await kit.take(works, 1)
        kit.same(
            kit.ids(got),
            [name],
            "messages of the closed consumer, then the next",
            "Subscription.close",
        )
        await kit.ack(works, got)


@case("G13", "G4", ids="C42 C50")
async def a_drain_releases_what_is_unfinished(kit: Kit) -> None:
    """A drain releases unfinished messages within grace + 1 s, without an attempt or a takeover."""
    broker, queue, began = await kit.broker(), Queue(kit.name(), str), asyncio.Event()

    async def handler(_: str) -> None:
        began.set()
        await asyncio.Event().wait()

    await kit.within(broker.publish_many(queue, list("abc")))
    worker = await kit.worker(broker, queue, handler, concurrency=1, prefetch=3)
    await kit.within(began.wait(), what="the first handler started")
    start = kit.now
    await kit.within(worker.drain(0.3))
    kit.true(
        kit.now - start <= 0.3 + 1.0,
        "a drain that ends by grace + 1 s",
        f"{kit.now - start:.3f} s",
        "Subscription.settle",
    )

    got = await kit.take(await kit.subscribe(queue.name), 3)
    marks = sorted(
        (delivery.message.body, delivery.attempt, delivery.takeovers) for delivery in got
    )
    expected = [(name.encode(), 1, 0) for name in "abc"]
    kit.same(marks, expected, "body, attempt, takeovers", "Subscription.settle: Release")


@case("G13", "G2", ids="C50")
async def what_runs_may_end_inside_the_grace(kit: Kit) -> None:
    """During a drain the running handler may finish and is acked; nothing new is started."""
    broker, queue, began, go = (
        await kit.broker(),
        Queue(kit.name(), str),
        asyncio.Event(),
        asyncio.Event(),
    )
    ended: list[str] = []

    async def handler(word: str) -> None:
        began.set()
        await go.wait()
        ended.append(word)

    await kit.within(broker.publish_many(queue, list("ab")))
    worker = await kit.worker(broker, queue, handler, concurrency=1, prefetch=2)
    await kit.within(began.wait(), what="the first handler started")
    draining = await kit.start(worker.drain(kit.harness.patience))
    go.set()
    await kit.within(draining)
    kit.same(ended, ["a"], "messages handled", "Subscription.settle")
    kit.same(
        sum((await kit.contents(queue.name)).values()),
        1,
        "number of messages left in the queue",
        "Subscription.settle: Ack",
    )
