"""Deduplication."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.uniformity.common import DEDUP, WINDOWS
from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Capability,
    Failed,
    Message,
    Outgoing,
    Release,
    Stored,
    SupportsCount,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Settlement


DUPLICATE = Stored(duplicate=True)


@case(
    "G1",
    ids="B03 C85",
    needs=WINDOWS,
    each={how: how for how in ("ready", "leased", "acked", "released", "moved")},
)
async def a_message_published_twice_is_stored_once(kit: Kit, became: str) -> None:
    """Publishing an id again is `duplicate`, whatever happened to the first copy, which stays."""
    queue = await kit.queue()
    consumer = await kit.subscribe(queue)
    await kit.put(queue, "a")
    if became != "ready":
        (delivery,) = await kit.take(consumer, 1)
        steps: dict[str, Settlement] = {
            "acked": Ack(delivery.receipt),
            "released": Release(delivery.receipt),
            "moved": kit.successor(delivery, f"{queue}.dlq"),
        }
        if became in steps:
            kit.same(
                await kit.settle(consumer, steps[became]), [DONE], became, "Subscription.settle"
            )

    again = [Outgoing(queue, kit.message("a", body=b"again"))] * 2
    kit.same(
        await kit.publish(*again),
        [DUPLICATE] * 2,
        f"outcomes of publishing again what is {became}",
        DEDUP,
    )

    bodies = [delivery.message.body for delivery in await kit.receive(consumer)]
    kit.same(
        bodies,
        [b"a"] if became in {"ready", "released"} else [],
        "bodies of the messages received",
        DEDUP,
    )


@case("G1", "G15", ids="B03", needs=WINDOWS)
async def id_hop_lineage_and_queue_make_the_name(kit: Kit) -> None:
    """Copies that differ in id, hop, lineage or queue are different messages."""
    queue, other = await kit.queue(), await kit.queue()
    names = [
        ("a", 11, ""),
        ("a1", 1, ""),
        ("a", 1, ""),
        ("A", 1, ""),
        ("a:1", 0, ""),
        ("a:1:0", 0, ""),
        ("a", 0, ""),
    ]
    names += [
        ("a", 1, "0badcafe"),
        ("a", 0, "0badcafe"),
        ("a-1", 0, ""),
        ("a/1", 1, ""),
        ("a", 10, ""),
    ]
    batch = [
        Outgoing(to, Message(id=id_, body=b"", hop=hop, lineage=line))
        for to in (queue, other)
        for id_, hop, line in names
    ]
    kit.same(await kit.publish(*batch), [STORED] * len(batch), "outcomes of publishing", DEDUP)
    kit.same(
        await kit.publish(*batch), [DUPLICATE] * len(batch), "outcomes of publishing again", DEDUP
    )


@case("G1", "G14", ids="B03", needs=WINDOWS)
async def every_instance_sees_the_same_window(kit: Kit) -> None:
    """Deduplication works across instances."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    again = Outgoing(queue, kit.message("a"))
    kit.same(
        await kit.publish(again, backend=await kit.open()),
        [DUPLICATE],
        "the outcome of publishing the id again",
        DEDUP,
    )
    kit.same(await kit.contents(queue), Counter("a"), "copies stored", DEDUP)


@case("G1", "G12", ids="B03", needs=(Capability.DEDUP, Capability.MAX_LENGTH))
async def a_full_queue_remembers_what_it_holds_and_not_what_it_refused(kit: Kit) -> None:
    """A full queue answers `duplicate` for what it holds, and may accept later what it refused."""
    queue = await kit.queue(max_length=1)
    await kit.put(queue, "a")
    duplicate, refused = await kit.publish(
        Outgoing(queue, kit.message("a")), Outgoing(queue, kit.message("b"))
    )
    kit.same(duplicate, DUPLICATE, "the outcome for a stored id", DEDUP)
    kit.true(
        isinstance(refused, Failed),
        "Failed for a new message",
        refused,
        "Backend.publish: max_length",
    )
    kit.same(await kit.contents(queue), Counter("a"), "messages in the queue", DEDUP)

    await kit.put(queue, "b")


@case("G1", ids="B03", needs=WINDOWS, protocols=(SupportsCount,))
async def a_duplicate_changes_no_count(kit: Kit) -> None:
    """A duplicate changes no count."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    kit.same(
        await kit.publish(Outgoing(queue, kit.message("a"))),
        [DUPLICATE],
        "the outcome of publishing the id again",
        DEDUP,
    )

    (counts,) = await kit.within(cast("SupportsCount", kit.backend).count([queue]))
    kit.true(
        (counts.ready, counts.published) in {(1, 1), (1, None)},
        "one ready, one published",
        counts,
        DEDUP,
    )
