"""Order."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.spi import Ack, Capability, Release

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G9", "G2", ids="C60")
async def messages_keep_their_order(kit: Kit) -> None:
    """First deliveries come in publish order, inside a batch and from batch to batch."""
    queue = await kit.queue()
    names = [f"{number:03}" for number in range(250)]
    for start in range(0, 250, 50):
        await kit.put(queue, *names[start : start + 50])
    got = await kit.take(await kit.subscribe(queue, prefetch=300), 250)
    kit.same(
        kit.ids(got), names, "messages in publish order", "Backend.publish, Subscription.receive"
    )


@case("G9", ids="C61 C47")
async def what_comes_out_of_order_says_so(kit: Kit) -> None:
    """First deliveries stay in order between releases; what is out of order is `redelivered`."""
    queue = await kit.queue()
    names = [f"{number:02}" for number in range(20)]
    await kit.put(queue, *names)
    consumer = await kit.subscribe(queue, prefetch=1)
    first: list[str] = []
    handled: Counter[str] = Counter()

    while handled.total() < len(names):
        (delivery,) = await kit.take(consumer, 1)
        name = delivery.message.id
        kit.same(
            delivery.redelivered, name in first, f"`redelivered` of {name}", "Subscription.receive"
        )
        if name not in first:
            first.append(name)
        if int(name) % 3 == 0 and not delivery.redelivered:
            await kit.settle(consumer, Release(delivery.receipt))
        else:
            await kit.ack(consumer, [delivery])
            handled[name] += 1

    kit.same(first, names, "first deliveries in publish order", "Subscription.receive")
    kit.same(handled, Counter(names), "each handled once", "Subscription.settle: Release")


@case("G9", needs=(Capability.ORDER,))
async def released_messages_return_to_their_old_places(kit: Kit) -> None:
    """Released messages return to their old places where ORDER states `release_in_place`."""
    queue = await kit.queue()
    await kit.put(queue, *"abcdef")
    consumer = await kit.subscribe(queue)
    a, b, c, d = await kit.take(consumer, 4)
    await kit.settle(
        consumer, Release(c.receipt), Release(a.receipt), Ack(b.receipt), Release(d.receipt)
    )
    actual = kit.ids(await kit.take(consumer, 5))
    in_place = kit.limit(Capability.ORDER, "release_in_place")
    kit.same(
        actual if in_place else sorted(actual),
        list("acdef"),
        "messages in their old order",
        "Subscription.settle: Release",
    )
