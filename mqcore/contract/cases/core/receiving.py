"""Receiving, and consumers that come and go."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.core.common import CLOSE, LONG, WOKEN, loop_turns
from mqcore.spi import (
    STORED,
    Ack,
    Capability,
    Done,
    Outgoing,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G2", ids="C31")
async def a_receive_gives_up_to_its_limit_at_once(kit: Kit) -> None:
    """`receive` returns 1 to `limit` messages as soon as there is one, without waiting for more."""
    queue = await kit.queue()
    await kit.put(queue, *"abcde")
    consumer = await kit.subscribe(queue)
    limit, pages, began = 3, list[list[str]](), kit.now
    while sum(map(len, pages)) < len("abcde") and kit.now - began < kit.harness.patience:
        pages.append(kit.ids(await kit.receive(consumer, limit, wait=kit.harness.patience)))
    kit.same(
        [item for page in pages for item in page],
        list("abcde"),
        "messages received, in order",
        "Subscription.receive",
    )
    kit.same(
        [page for page in pages if len(page) > limit],
        [],
        "pages of more than 3 messages",
        "Subscription.receive: limit",
    )

    took, look = kit.now - began, "Subscription.receive: it waits until the limit is full"
    kit.true(
        took < kit.harness.patience / 2,
        "a receive that does not wait for more messages",
        f"{took:.3f} s",
        look,
    )


@case("G2", ids="C32", each={"at-once": 0.0, "after-a-while": 0.3})
async def a_receive_from_an_empty_queue_ends_with_nothing(kit: Kit, timeout: float) -> None:
    """`receive` on an empty queue returns `[]` when its timeout is over."""
    consumer = await kit.subscribe(await kit.queue())
    began = kit.now
    kit.same(
        await kit.receive(consumer, wait=timeout), [], "messages received", "Subscription.receive"
    )
    took = kit.now - began
    fits = timeout - 0.005 <= took <= timeout + 1.0
    kit.true(fits, f"an end after {timeout:g} s", f"{took:.3f} s", "Subscription.receive: timeout")


@case("G2", ids="C20")
async def a_consumer_that_waits_is_woken_by_a_publish(kit: Kit) -> None:
    """A waiting `receive` gets a new message within 0.5 s, also from another instance."""
    queue = await kit.queue()
    consumer = await kit.subscribe(queue)
    for name, producer in (("a", kit.backend), ("b", await kit.open())):
        waiting = await kit.start(consumer.receive(10, LONG))
        began = kit.now
        outcomes = await kit.publish(Outgoing(queue, kit.message(name)), backend=producer)
        kit.same(outcomes, [STORED], "stored", "Backend.publish")
        kit.same(kit.ids(await kit.within(waiting)), [name], "the message", "Subscription.receive")
        took = kit.now - began
        kit.true(
            took < WOKEN,
            f"woken within {WOKEN} s",
            f"{took:.3f} s",
            "Subscription.receive: polling",
        )


@case("G2", ids="C10")
async def consumers_that_come_and_go_lose_nothing(kit: Kit) -> None:
    """Consumers that start, ack some messages and close while others publish lose nothing."""
    queue = await kit.queue()
    backends = [kit.backend, await kit.open()]
    acked: Counter[str] = Counter()

    async def come_and_go(number: int) -> None:
        for _ in range(3):
            consumer = await backends[number % 2].subscribe(queue, prefetch=3, lease=2.0)
            held = await consumer.receive(3, 0.2)
            for delivery in held[:1]:
                (settled,) = await consumer.settle([Ack(delivery.receipt)], timeout=5.0)
                acked.update([delivery.message.id] if isinstance(settled, Done) else [])
            await consumer.close()

    async def publish() -> None:
        for batch in range(8):
            await kit.backend.publish(
                [Outgoing(queue, kit.message(f"{batch}-{n}")) for n in range(5)], timeout=5.0
            )

    await kit.within(asyncio.gather(publish(), *(come_and_go(number) for number in range(8))), 60.0)
    rest = await kit.take(await kit.subscribe(queue), 40 - len(acked))
    names = Counter(f"{batch}-{n}" for batch in range(8) for n in range(5))
    kit.same(
        acked + Counter(kit.ids(rest)),
        names,
        "messages acked or left in the queue",
        "Subscription.close, Backend.subscribe",
    )
    kit.true(acked, "some messages acked", acked, "Subscription.receive")


@case("G2", ids="C11 C48")
async def consuming_stops_and_starts_again(kit: Kit) -> None:
    """Ten short consumers in a row, each acking what it received, lose nothing.

    They keep the order where ORDER states `release_in_place`. Elsewhere, prefetched messages that a
    consumer never handed out may go behind the others when it closes.
    """
    in_place = kit.limit(Capability.ORDER, "release_in_place")
    queue, names, seen = await kit.queue(), [f"{number:02}" for number in range(30)], list[str]()
    await kit.put(queue, *names)

    for _ in range(10):
        consumer = await kit.subscribe(queue, prefetch=3)
        deliveries = await kit.take(consumer, 3)
        await kit.ack(consumer, deliveries)
        seen += kit.ids(deliveries)
        await kit.within(consumer.close(), CLOSE)

    kit.same(
        seen if in_place else sorted(seen),
        names,
        "all, in order" if in_place else "all of them, once",
        "Subscription.close: what it had fetched and not handed out",
    )


@case("G2", ids="C07 L03")
async def a_cancelled_receive_strands_nothing(kit: Kit) -> None:
    """A cancelled `receive` loses no message: each is handed out once, without marks."""
    queue = await kit.queue()
    consumer = await kit.subscribe(queue, prefetch=10)
    for turn in range(300):
        waiting = asyncio.create_task(consumer.receive(1, LONG))
        await loop_turns(turn % 3)
        if turn % 2:
            waiting.cancel()
        await kit.backend.publish([Outgoing(queue, kit.message(f"{turn}"))], timeout=5.0)
        await loop_turns(turn // 6 % 8)
        waiting.cancel()
        (got,) = await asyncio.gather(waiting, return_exceptions=True)
        deliveries = [] if isinstance(got, BaseException) else list(got)
        deliveries = deliveries or await kit.take(consumer, 1)
        marks = [
            (delivery.message.id, delivery.redelivered, delivery.takeovers)
            for delivery in deliveries
        ]
        kit.same(
            marks,
            [(f"{turn}", False, False)],
            f"turn {turn}: what was just published, unmarked",
            "receive: cancellation",
        )
        await kit.ack(consumer, deliveries)

    kit.same(
        await kit.contents(queue),
        Counter(),
        "messages left in the queue",
        "Subscription.receive: cancellation",
    )


@case("G2", ids="C07 C23")
async def a_message_meant_for_a_cancelled_consumer_goes_to_another(kit: Kit) -> None:
    """When a waiting consumer is cancelled at a publish, another one gets the message."""
    queue = await kit.queue()
    for turn in range(20):
        one, two = await kit.subscribe(queue), await kit.subscribe(queue)
        tasks = [asyncio.create_task(consumer.receive(1, LONG)) for consumer in (one, two)]
        await kit.advance(0.02)
        await kit.backend.publish([Outgoing(queue, kit.message(f"{turn}"))], timeout=5.0)
        await loop_turns(turn % 5)
        tasks[0].cancel()
        (first,) = await asyncio.gather(tasks[0], return_exceptions=True)
        if isinstance(first, BaseException):
            await kit.within(one.close(), CLOSE)
            first = await kit.within(tasks[1], 1.0)
            kit.same(
                kit.ids(first),
                [f"{turn}"],
                "messages of the other waiting consumer",
                "Subscription.receive: cancellation",
            )
            await kit.ack(two, first)
        else:
            await kit.ack(one, first)
        await kit.within(
            asyncio.gather(one.close(), two.close(), *tasks, return_exceptions=True), CLOSE
        )
