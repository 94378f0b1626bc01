"""Counting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.cases.browse.common import (
    COUNT,
    counts_of,
    delete_queue,
)
from mqcore.errors import QueueNotFound
from mqcore.spi import (
    Capability,
    Failed,
    Outgoing,
    QueueSpec,
    SupportsCount,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G11", ids="D10", protocols=(SupportsCount,))
async def counts_tell_ready_leased_and_delayed_apart(kit: Kit) -> None:
    """The counts of an idle queue are exact: ready, leased, delayed, and its dead-letter queue.

    A count that the broker does not report is None, never 0.
    """
    queue, later = await kit.queue(), int(kit.capabilities.has(Capability.DELAY))
    await kit.put(queue, *"abcde")
    await kit.put(queue, *["later"] * later, delay=500.0)
    consumer = await kit.subscribe(queue, prefetch=2)
    held = await kit.take(consumer, 2)
    (counts,) = await counts_of(kit, queue)
    kit.same(
        (counts.name, counts.role, counts.dead_letter),
        (queue, "work", f"{queue}.dlq"),
        "name, role and dead-letter queue",
        COUNT,
    )
    kit.counted(counts, ready=3, leased=2, delayed=later)

    await kit.ack(consumer, held)
    await kit.within(consumer.close())
    await kit.advance(kit.harness.silence)
    (counts,) = await counts_of(kit, queue)
    kit.counted(counts, ready=3, leased=0, delayed=later)


@case("G16", protocols=(SupportsCount,))
async def counts_tell_what_a_queue_was_declared_with(kit: Kit) -> None:
    """`QueueCounts.spec` is what the queue was declared with, on every instance, or None.

    An application that adopts a queue (`declare=False`) compares its options with it.
    """
    has = kit.capabilities.has
    modes = str(kit.limit(Capability.MAX_LENGTH, "modes") or "reject,dead_letter").split(",")
    settings: dict[str, Any] = {"ttl": 500.0} if has(Capability.EXPIRY) else {}
    settings |= {"max_length": 7, "overflow": modes[-1]} if has(Capability.MAX_LENGTH) else {}
    queue, letters = kit.name(), f"{kit.name()}.letters"
    specs = [
        QueueSpec(name=queue, dead_letter=letters, **settings),
        QueueSpec(name=f"{queue}.quarantine", role="quarantine", dead_letter=letters),
        QueueSpec(name=letters, role="dead_letter", retention=9000.0),
    ]
    await kit.within(kit.backend.declare(specs))
    other = cast("SupportsCount", await kit.open())

    for counts, spec in zip(
        await kit.within(other.count([queue, letters])), (specs[0], specs[2]), strict=True
    ):
        kit.true(counts.spec in (None, spec), f"{spec}, or None", counts.spec, COUNT)

    await delete_queue(kit, letters)


@case("G16", protocols=(SupportsCount,))
async def the_totals_only_grow(kit: Kit) -> None:
    """`published` and `settled` count up, or both are None where the broker does not count them."""
    queue, seen = await kit.queue(), list[Any]()
    for number in range(3):
        await kit.put(queue, f"{number}")
        await kit.contents(queue)
        (counts,) = await counts_of(kit, queue)
        seen.append((counts.published, counts.settled))

    kit.true(
        seen in ([(1, 1), (2, 2), (3, 3)], [(None, None)] * 3),
        "(1, 1), (2, 2), (3, 3) or None",
        seen,
        COUNT,
    )


@case("G4", protocols=(SupportsCount,))
async def a_quarantine_counts_in_its_queue_and_is_not_listed(kit: Kit) -> None:
    """The quarantine is counted with its queue, and is not listed as a queue of its own."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b", "c")
    await kit.put(f"{queue}.quarantine", "d", "e")
    await kit.take(await kit.subscribe(f"{queue}.quarantine", prefetch=1), 1)
    (counts,) = await counts_of(kit, queue)
    kit.counted(counts, ready=4, leased=1)
    names = {counts.name for counts in await counts_of(kit)}
    listed = (queue in names, f"{queue}.dlq" in names, f"{queue}.quarantine" in names)
    kit.same(listed, (True, True, False), "queue, dead-letter queue and quarantine listed", COUNT)


@case("G1", protocols=(SupportsCount,))
async def a_missing_queue_is_left_out_of_the_counts(kit: Kit) -> None:
    """`count` leaves out a missing queue and declares nothing.

    `Broker.counts` of it raises QueueNotFound.
    """
    queue, nowhere = await kit.queue(), kit.name()
    kit.same(
        [counts.name for counts in await counts_of(kit, nowhere, queue)],
        [queue],
        "queues in the counts",
        COUNT,
    )

    (outcome,) = await kit.publish(Outgoing(nowhere, kit.message()))
    kit.true(
        isinstance(outcome, Failed),
        "a publish to the missing queue that still fails",
        outcome,
        COUNT,
    )
    await kit.raises(
        QueueNotFound, (await kit.broker()).counts(nowhere), "QueueNotFound", "Broker.counts"
    )
