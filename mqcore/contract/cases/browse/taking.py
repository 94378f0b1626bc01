"""Taking chosen messages out of a queue."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.browse import leaves_marks, shows_delayed
from mqcore.contract.cases.browse.common import (
    LOOKS,
    TAKE,
    TAKES,
    keys_by_id,
)
from mqcore.spi import (
    DONE,
    STALE,
    Ack,
    Capability,
    Release,
    SupportsTake,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Delivery


async def _taken(kit: Kit, queue: str, keys: list[str], lease: float = 30.0) -> dict[str, Delivery]:
    got = await kit.within(cast("SupportsTake", kit.backend).take(queue, keys, lease))
    kit.same(
        len({delivery.message.id for delivery in got}), len(got), "messages taken, each once", TAKE
    )
    return {delivery.message.id: delivery for delivery in got}


@case("G11", ids="X03", needs=LOOKS, protocols=TAKES)
async def taking_leases_the_chosen_and_leaves_the_rest(kit: Kit) -> None:
    """`take` claims the chosen messages, ready or delayed, as first deliveries; the rest stays.

    They can be settled through any consumer of the queue.
    """
    queue, later = await kit.queue(), ["later"] * shows_delayed(kit)
    await kit.put(queue, *"abcde")
    await kit.put(queue, *later, delay=500.0)
    keys = await keys_by_id(kit, queue)
    taken = await _taken(kit, queue, [keys[name] for name in ["d", "b", *later]])
    kit.same(sorted(taken), ["b", "d", *later], "the taken messages", TAKE)
    kit.true(
        leaves_marks(kit) or not any(delivery.redelivered for delivery in taken.values()),
        "taken messages that are not redelivered",
        look=TAKE,
    )

    consumer = await kit.subscribe(queue)
    kit.same(
        kit.ids(await kit.take(consumer, 3)), ["a", "c", "e"], "messages left for consumers", TAKE
    )
    kit.same(kit.ids(await kit.drain(consumer)), [], "further messages", TAKE)

    acks = [Ack(taken[name].receipt) for name in ["d", *later]]
    settled = await kit.settle(consumer, kit.successor(taken["b"], f"{queue}.dlq"), *acks)
    kit.same(settled, [DONE] * len(taken), "settlements of the taken messages", TAKE)
    kit.same(
        await kit.contents(f"{queue}.dlq"), Counter("b"), "messages in the dead-letter queue", TAKE
    )


@case("G9", "G11", needs=(*LOOKS, Capability.DELAY), protocols=TAKES)
async def what_was_taken_can_be_given_back(kit: Kit) -> None:
    """A taken message that is released returns to where it was.

    A ready one to its old place where ORDER states `release_in_place`, a delayed one to the rest of
    its delay.
    """
    queue, began = await kit.queue(), kit.now
    await kit.put(queue, *"abc")
    await kit.put(queue, "later", delay=1.5)
    keys = await keys_by_id(kit, queue)
    taken = await _taken(kit, queue, list(keys.values())[1:], 60.0)
    consumer = await kit.subscribe(queue, prefetch=3)
    await kit.settle(
        consumer, *[Release(delivery.receipt) for delivery in reversed(taken.values())]
    )
    got = await kit.take(consumer, 3)
    kit.same(
        sorted(kit.ids(got)), ["a", "b", "c"], "messages received before the delay is over", TAKE
    )

    if kit.limit(Capability.ORDER, "release_in_place"):
        kit.same(
            kit.ids(got), ["a", "b", "c"], "messages in their old order", "ORDER: release_in_place"
        )

    await kit.ack(consumer, got)
    kit.same(
        kit.ids(await kit.take(consumer, 1)),
        ["later"],
        "messages received when the delay is over",
        TAKE,
    )
    kit.true(
        kit.now - began >= 1.5 - 0.005,
        "not before its delay is over",
        f"after {kit.now - began:.3f} s",
        TAKE,
    )


@case("G11", ids="X03", needs=LOOKS, protocols=TAKES)
async def what_is_gone_or_held_is_not_taken(kit: Kit) -> None:
    """`take` returns only messages that are free, and none twice."""
    queue = await kit.queue()
    await kit.put(queue, *"abcd")
    keys = list((await keys_by_id(kit, queue)).values())
    consumer = await kit.subscribe(queue, prefetch=2)
    a, _b = await kit.take(consumer, 2)
    await kit.ack(consumer, [a])
    free = await _taken(kit, queue, [*keys, keys[2]])
    kit.true(set(free) <= {"c", "d"}, "only free messages, c and d", sorted(free), TAKE)
    kit.same(sorted(await _taken(kit, queue, keys)), [], "messages taken by a second call", TAKE)
    kit.same(
        sorted({*free, *kit.ids(await kit.drain(consumer))}),
        ["c", "d"],
        "messages taken or received",
        TAKE,
    )


@case("G5", "G11", needs=(*LOOKS, Capability.LEASE), protocols=TAKES)
async def the_lease_of_what_was_taken_ends(kit: Kit) -> None:
    """When the lease of a taken message ends, it returns to the queue and its receipt is stale."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    taken = await _taken(kit, queue, list((await keys_by_id(kit, queue)).values()), 1.0)
    await kit.advance(1.0)
    consumer = await kit.subscribe(queue)
    kit.same(
        kit.ids(await kit.take(consumer, 1)),
        ["a"],
        "messages received after the lease has ended",
        TAKE,
    )
    kit.same(
        await kit.settle(consumer, Ack(taken["a"].receipt)),
        [STALE],
        "the settlement with the old receipt",
        "Subscription.settle",
    )
