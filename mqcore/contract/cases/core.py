"""Profile *core*: opening, publishing, receiving, settling. Every backend passes all of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.spi import STORED, ErrorKind, Failed, Outgoing

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G1", "G2", ids="C20")
async def a_confirmed_message_is_there_to_be_received(kit: Kit) -> None:
    """`Stored` means that a consumer who comes later gets it, as a first delivery without marks."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    kit.same((delivery.message.id, delivery.attempt), ("a", 1), "the message at its first attempt", "Backend.publish")
    kit.same((delivery.redelivered, delivery.doubtful), (False, False), "no marks", "Subscription.receive")


@case("G1", ids="C05 C30")
async def an_outcome_comes_for_each_item_in_its_order(kit: Kit) -> None:
    """A queue that is missing fails its own items, with NOT_FOUND, and no others."""
    queue, missing = await kit.queue(), kit.name()
    batch = [Outgoing(to, kit.message(name)) for to, name in [(queue, "a"), (missing, "b"), (queue, "c")]]
    outcomes = await kit.publish(*batch)
    kit.same(
        [type(outcome) for outcome in outcomes],
        [type(STORED), Failed, type(STORED)],
        "an outcome each, in order",
        "Backend.publish",
    )
    failed = outcomes[1]
    kit.true(
        isinstance(failed, Failed) and failed.kind is ErrorKind.NOT_FOUND,
        "NOT_FOUND for the missing queue",
        failed,
        "Backend.publish",
    )
    kit.same(await kit.contents(queue), Counter("ac"), "the others stored", "Backend.publish")
