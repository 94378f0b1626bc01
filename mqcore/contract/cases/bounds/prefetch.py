"""Prefetch: how many messages a consumer holds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.queue import Queue
from mqcore.spi import (
    DONE,
    Ack,
    Release,
    SupportsCount,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.contract.kit import Kit
    from mqcore.spi import Delivery, Settlement


@case("G12", ids="C46", each={"1": 1, "3": 3})
async def prefetch_is_an_exact_ceiling(kit: Kit, prefetch: int) -> None:
    """A consumer never holds more than `prefetch` unsettled messages.

    Each ack, release and Move makes room for one more.
    """
    queue = await kit.queue()
    await kit.put(queue, *(f"{number}" for number in range(10)))
    consumer = await kit.subscribe(queue, prefetch=prefetch)
    held = await kit.take(consumer, prefetch)
    kit.same(
        kit.ids(await kit.drain(consumer)),
        [],
        f"messages beyond the prefetch of {prefetch}",
        "Backend.subscribe: prefetch",
    )

    ways: list[Callable[[Delivery], Settlement]] = [
        lambda delivery: Ack(delivery.receipt),
        lambda delivery: Release(delivery.receipt),
        lambda item: kit.successor(item, f"{queue}.dlq"),
    ]
    one = held[0]

    for settlement in ways:
        kit.same(
            await kit.settle(consumer, settlement(one)),
            [DONE],
            "outcomes of the settlement",
            "Subscription.settle",
        )
        (one,) = await kit.take(consumer, 1)
        kit.same(
            kit.ids(await kit.drain(consumer)),
            [],
            f"messages beyond the prefetch of {prefetch}",
            "Backend.subscribe: prefetch",
        )


@case("G12", ids="C46")
async def each_consumer_has_a_prefetch_of_its_own(kit: Kit) -> None:
    """Each consumer has its own prefetch, and `receive` returns at most `limit` messages."""
    queue = await kit.queue()
    await kit.put(queue, *(f"{number}" for number in range(10)))
    one, two = await kit.subscribe(queue, prefetch=2), await kit.subscribe(queue, prefetch=3)
    kit.same(
        len(await kit.receive(one, 1, wait=1.0)),
        1,
        "number of messages from a receive with limit 1",
        "Subscription.receive: limit",
    )

    held = [
        len(await kit.take(one, 1)) + len(await kit.drain(one)),
        len(await kit.take(two, 3)) + len(await kit.drain(two)),
    ]
    kit.same(held, [1, 3], "number of messages for each consumer", "Backend.subscribe: prefetch")


@case("G12", ids="C46", protocols=(SupportsCount,))
async def a_worker_holds_no_more_than_its_prefetch(kit: Kit) -> None:
    """A worker holds at most its prefetch; the rest of the queue stays ready for other workers."""
    broker, queue = await kit.broker(), Queue(kit.name())
    began: asyncio.Queue[bytes] = asyncio.Queue()
    go = asyncio.Event()

    async def handler(body: bytes) -> None:
        await began.put(body)
        await go.wait()

    await kit.within(broker.publish_many(queue, [b""] * 50))
    await kit.worker(broker, queue, handler, concurrency=2, prefetch=5)
    for _ in range(2):
        await kit.within(began.get())
    await kit.advance(kit.harness.silence)
    (counts,) = await kit.within(broker.counts(queue))
    kit.counted(counts, ready=45, leased=5, look="Backend.subscribe: prefetch")
    kit.same(began.qsize(), 0, "handlers started beyond the concurrency", "Worker")

    go.set()
