"""How consumers share a queue."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.delivery.common import LONG
from mqcore.queue import Queue
from mqcore.spi import Ack, Done, Release

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Subscription


@case("G2", ids="C23")
async def competing_consumers_share_a_queue(kit: Kit) -> None:
    """Four waiting consumers of four instances get one of four messages each."""
    queue = await kit.queue()
    consumers = [await kit.subscribe(queue, prefetch=1, backend=await kit.open()) for _ in range(4)]
    waiting = [await kit.start(consumer.receive(1, LONG)) for consumer in consumers]
    await kit.put(queue, *"abcd")
    got = await kit.within(asyncio.gather(*waiting))
    kit.same(
        [len(deliveries) for deliveries in got],
        [1] * 4,
        "number of messages for each consumer",
        "Subscription.receive",
    )
    kit.same(
        Counter(name for page in got for name in kit.ids(page)),
        Counter("abcd"),
        "messages received",
        "Subscription.receive",
    )


@case("G2", ids="C23 C40")
async def many_messages_are_handled_once_each(kit: Kit) -> None:
    """Five consumers of three instances handle 200 messages exactly once each."""
    queue, instances = await kit.queue(), [kit.backend, await kit.open(), await kit.open()]
    consumers = [await kit.subscribe(queue, prefetch=7, backend=instances[n % 3]) for n in range(5)]
    seen: Counter[str] = Counter()
    deadline = kit.now + kit.harness.patience

    async def work(consumer: Subscription) -> None:
        while seen.total() < len(names) and kit.now < deadline:
            held = await consumer.receive(7, 0.1)
            settled = await consumer.settle(
                [Ack(delivery.receipt) for delivery in held], timeout=5.0
            )
            seen.update(
                delivery.message.id
                for delivery, end in zip(held, settled, strict=True)
                if isinstance(end, Done)
            )

    names = [f"{number}" for number in range(200)]
    working = [await kit.start(work(consumer)) for consumer in consumers]
    for start in range(0, 200, 20):
        await kit.put(queue, *names[start : start + 20])
    await kit.within(asyncio.gather(*working), kit.harness.patience + 1.0)
    expected = Counter(names)
    kit.same(
        (seen - expected, expected - seen),
        (Counter(), Counter()),
        "doubled and missing messages",
        "Subscription.receive",
    )
    kit.same(
        await kit.contents(queue),
        Counter(),
        "messages left in the queue",
        "Subscription.settle: Ack",
    )


@case("G2", ids="C23")
async def nothing_is_handed_out_while_it_is_held(kit: Kit) -> None:
    """A claimed message is handed to no consumer, including the one that holds it."""
    queue = await kit.queue()
    await kit.put(queue, *"abc")
    one = await kit.subscribe(queue, prefetch=2)
    kit.same(kit.ids(await kit.take(one, 2)), ["a", "b"], "the first two", "Subscription.receive")

    two = await kit.subscribe(queue)
    kit.same(
        kit.ids(await kit.take(two, 1)), ["c"], "the message that is left", "Subscription.receive"
    )
    kit.same(
        await kit.receive(two),
        [],
        "further messages for the second consumer",
        "Subscription.receive: the claim",
    )
    kit.same(
        await kit.receive(one),
        [],
        "further messages for the first consumer",
        "Subscription.receive: the claim",
    )


@case("G12", ids="C46", each={"one": 1, "three": 3})
async def prefetch_is_an_exact_ceiling(kit: Kit, prefetch: int) -> None:
    """A consumer holds exactly `prefetch` messages when there are more; others get the rest."""
    queue = await kit.queue()
    await kit.put(queue, *(f"{n}" for n in range(10)))
    consumer = await kit.subscribe(queue, prefetch=prefetch)
    held = await kit.take(consumer, prefetch)
    kit.same(
        kit.ids(await kit.receive(consumer)),
        [],
        f"messages beyond the prefetch of {prefetch}",
        "Subscription.receive: prefetch",
    )

    await kit.ack(consumer, held[:1])
    held = held[1:] + await kit.take(consumer, 1)
    kit.same(
        kit.ids(await kit.receive(consumer)),
        [],
        "further messages after one was acked and one received",
        "Subscription.settle: prefetch",
    )

    await kit.settle(consumer, *[Release(delivery.receipt) for delivery in held])
    await kit.within(consumer.close())
    other = await kit.subscribe(queue)
    kit.same(
        len(await kit.take(other, 9)),
        9,
        "number of messages for another consumer",
        "Subscription.close",
    )


@case("G12", ids="C46")
async def a_settlement_makes_room_for_a_receive_that_waits(kit: Kit) -> None:
    """A settlement makes room for a `receive` that waits on a full prefetch."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue, prefetch=1)
    first = await kit.take(consumer, 1)
    waiting = await kit.start(consumer.receive(10, LONG))
    kit.true(
        not waiting.done(),
        "a receive that waits while the prefetch is used up",
        waiting,
        "Subscription.receive: prefetch",
    )

    await kit.ack(consumer, first)
    kit.same(
        kit.ids(list(await kit.within(waiting))), ["b"], "the next message", "Subscription.settle"
    )


@case("G12", ids="C46 C62", each={"one": 1, "three": 3})
async def a_worker_keeps_to_its_concurrency(kit: Kit, concurrency: int) -> None:
    """A worker runs exactly `concurrency` handlers at once when there is enough work."""
    broker, queue = await kit.broker(), Queue(kit.name(), int)
    running: list[int] = []
    most, go, ended = 0, asyncio.Event(), asyncio.Event()

    async def handler(number: int) -> None:
        nonlocal most
        running.append(number)
        most = max(most, len(running))
        if most == concurrency:
            go.set()
        await go.wait()
        await asyncio.sleep(0)
        running.remove(number)
        if number == 9:  # noqa: PLR2004 - the last one published
            ended.set()

    await kit.within(broker.publish_many(queue, range(10)))
    await kit.worker(broker, queue, handler, concurrency=concurrency)
    await kit.within(go.wait(), what="as many handlers at once as `concurrency` says")
    await kit.within(ended.wait(), what="the last message handled")
    kit.same(most, concurrency, "handlers at once", "Backend.subscribe: prefetch")
