"""A delayed message whose queue is missing or full blocks no other message."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.delay.common import (
    EARLY,
    HELD,
    NEEDS,
    STUCK,
    arrival_times,
    tolerance,
)
from mqcore.spi import (
    Capability,
    Outgoing,
    Stored,
    SupportsDelete,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


async def _on_time(kit: Kit, queue: str, delay: float, look: str = HELD) -> None:
    """Publish one delayed message and check that it arrives on time."""
    consumer, message, began = await kit.subscribe(queue), kit.message(), kit.now
    (outcome,) = await kit.publish(Outgoing(queue, message, delay))
    kit.true(
        isinstance(outcome, Stored),
        "a delayed message to another queue stored",
        outcome,
        "Backend.publish",
    )

    stored = kit.now
    actual = (await arrival_times(kit, consumer, 1))[message.id]
    await kit.within(consumer.close())
    kit.true(
        actual >= began + delay - EARLY,
        f"not before {delay} s",
        f"after {actual - began:.4f} s",
        look,
    )
    kit.true(
        actual <= stored + delay + tolerance(kit),
        f"at most {tolerance(kit)} s late",
        f"{actual - stored - delay:.4f} s late",
        look,
    )


@case("G7", "G1", needs=NEEDS)
async def a_missing_destination_holds_up_nobody(kit: Kit) -> None:
    """A hundred delayed messages to a missing queue do not hold up other delays."""
    queue, nowhere = await kit.queue(), kit.name()
    await kit.publish(*[Outgoing(nowhere, kit.message(), 0.3) for _ in range(STUCK)])
    await _on_time(kit, queue, 0.5)
    await _on_time(kit, queue, 0.5)


@case("G7", "G1", needs=NEEDS, protocols=(SupportsDelete,))
async def a_deleted_destination_holds_up_nobody(kit: Kit) -> None:
    """A hundred delayed messages whose queue was deleted do not hold up other delays."""
    queue, doomed = await kit.queue(), await kit.queue()
    await kit.put(doomed, *(f"{number}" for number in range(STUCK)), delay=0.5)
    kit.true(await kit.within(cast("SupportsDelete", kit.backend).delete(doomed)), "deleted")
    await _on_time(kit, queue, 0.8)
    await _on_time(kit, queue, 0.3)


@case("G7", "G12", needs=(*NEEDS, Capability.MAX_LENGTH))
async def a_full_destination_holds_up_nobody(kit: Kit) -> None:
    """A hundred messages that fall due in a full queue are stored and hold up no other delay."""
    queue, full = await kit.queue(), await kit.queue(max_length=1)
    await kit.put(full, "first")
    await kit.put(full, *(f"{number}" for number in range(STUCK)), delay=0.5)
    await _on_time(kit, queue, 0.8)
    await _on_time(kit, queue, 0.3)

    expected = Counter(["first", *(f"{number}" for number in range(STUCK))])
    kit.same(
        await kit.contents(full),
        expected,
        "messages in the full queue",
        "max_length bounds publishes only",
    )


@case(
    "G7",
    "G8",
    ids="D07",
    needs=(*NEEDS, Capability.PRIORITY),
    each={"low behind high": (0, 10), "high behind low": (10, 0)},
)
async def no_priority_holds_up_a_delay(kit: Kit, levels: tuple[int, int]) -> None:
    """A due message arrives on time, whatever the priority of one with a longer delay."""
    soon, late = levels
    queue = await kit.queue()
    consumer, began = await kit.subscribe(queue), kit.now
    await kit.put(queue, "soon", delay=0.6, priority=soon)
    await kit.put(queue, "late", delay=2.0, priority=late)
    stored, actual = kit.now, await arrival_times(kit, consumer, 2)
    kit.true(
        actual["soon"] <= stored + 0.6 + tolerance(kit),
        "the message that is due first on time",
        f"after {actual['soon'] - began:.3f} s",
        HELD,
    )
    kit.true(
        actual["late"] >= began + 2.0 - EARLY,
        "not early",
        f"after {actual['late'] - began:.3f} s",
        HELD,
    )
