"""Finding expired messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.ttl.common import BOTH, NEEDS, SWEEP, has_expired
from mqcore.spi import (
    DONE,
    Release,
    SupportsCount,
    SupportsSweep,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G6", ids="T03", needs=NEEDS, protocols=(SupportsSweep,))
async def a_sweep_finds_the_expired_wherever_they_stand(kit: Kit) -> None:
    """A sweep claims expired messages anywhere in the queue, up to its limit, and no others."""
    queue, backend = await kit.queue(), cast("SupportsSweep", kit.backend)
    await kit.put(queue, *(f"living-{n}" for n in range(20)))
    await kit.put(queue, *(f"dead-{n}" for n in range(5)), ttl=0.5)
    await kit.put(queue, "not-yet", ttl=100.0)
    kit.same(
        list(await kit.within(backend.sweep(queue, 10, 30.0))),
        [],
        "messages swept before they expire",
        SWEEP,
    )

    await kit.advance(0.8)
    first = list(await kit.within(backend.sweep(queue, 3, 30.0)))
    rest = list(await kit.within(backend.sweep(queue, 10, 30.0)))
    kit.same(
        sorted(kit.ids(first + rest)),
        [f"dead-{n}" for n in range(5)],
        "messages swept",
        SWEEP,
    )
    kit.same(
        (len(first), [has_expired(item) for item in first + rest]),
        (3, [True] * 5),
        "number swept by the first call, and whether each has expired",
        SWEEP,
    )

    consumer = await kit.subscribe(queue)
    await kit.ack(consumer, first)
    kit.same(
        await kit.settle(consumer, *[Release(delivery.receipt) for delivery in rest]),
        [DONE] * 2,
        "releases of the swept messages",
        SWEEP,
    )

    await kit.take(consumer, 20 + 1 + 2)
    kit.same(
        list(await kit.within(backend.sweep(queue, 10, 30.0))),
        [],
        "messages swept while a consumer holds them",
        SWEEP,
    )


@case("G6", "G5", needs=NEEDS, protocols=(SupportsSweep,))
async def a_swept_message_that_came_back_is_swept_again(kit: Kit) -> None:
    """A swept message that was released, or whose lease ended, is swept again."""
    queue, backend = await kit.queue(), cast("SupportsSweep", kit.backend)
    await kit.put(queue, "a", ttl=0.3)
    await kit.advance(0.5)

    for _ in range(2):
        (delivery,) = await kit.within(backend.sweep(queue, 10, 30.0))
        consumer = await kit.subscribe(queue)
        await kit.settle(consumer, Release(delivery.receipt))
        await kit.within(consumer.close())

    kit.same(
        len(await kit.within(backend.sweep(queue, 10, 1.0))), 1, "number of messages swept", SWEEP
    )

    await kit.advance(2.1)
    kit.same(
        kit.ids(await kit.within(backend.sweep(queue, 10, 1.0))),
        ["a"],
        "messages swept after the lease has ended",
        SWEEP,
    )


@case("G6", "G7", ids="D06", needs=BOTH, protocols=(SupportsSweep,))
async def a_sweep_finds_what_expired_inside_its_delay(kit: Kit) -> None:
    """A sweep finds delayed messages that expired too."""
    queue, backend = await kit.queue(), cast("SupportsSweep", kit.backend)
    await kit.put(queue, "a", delay=60.0, ttl=0.3)
    await kit.put(queue, "b", delay=60.0)
    await kit.advance(0.5)
    kit.same(
        kit.ids(await kit.within(backend.sweep(queue, 10, 30.0))), ["a"], "messages swept", SWEEP
    )


@case("G6", "G2", ids="T11", needs=NEEDS, protocols=(SupportsCount,))
async def an_expired_message_is_counted_until_it_is_buried(kit: Kit) -> None:
    """An expired message is counted in its queue until it is dead-lettered, then in that queue."""
    queue, backend = await kit.queue(), cast("SupportsCount", kit.backend)
    names = [queue, f"{queue}.dlq"]
    await kit.put(queue, "a", ttl=0.3)
    await kit.advance(0.8)
    counts = [queue_counts.ready for queue_counts in await kit.within(backend.count(names))]
    kit.same(
        counts, [1, 0], "ready in the queue and in its dead-letter queue", "SupportsCount.count"
    )

    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    await kit.settle(consumer, kit.successor(delivery, f"{queue}.dlq", expires_at=None))
    counts = [it.total for it in await kit.within(backend.count(names))]
    kit.same(counts, [0, 1], "in the dead-letter queue only", "SupportsCount.count")
