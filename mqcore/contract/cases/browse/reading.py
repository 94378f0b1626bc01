"""Reading the messages of a queue without consuming them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.browse import leaves_marks, shows_delayed
from mqcore.contract.cases.browse.common import (
    BROWSE,
    DELETE,
    LOOKS,
    PURGE,
    TAKE,
    browse_page,
    counts_of,
    is_not_found,
    keys_by_id,
)
from mqcore.queue import Queue
from mqcore.spi import (
    DONE,
    Ack,
    Capability,
    Failed,
    Outgoing,
    SupportsBrowse,
    SupportsCount,
    SupportsDelete,
    SupportsPurge,
    SupportsTake,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G11", needs=(*LOOKS, Capability.PRIORITY, Capability.DELAY), protocols=(SupportsBrowse,))
async def browsing_shows_the_order_of_delivery(kit: Kit) -> None:
    """Browsing lists ready messages in delivery order, then delayed ones by due time."""
    queue, began = await kit.queue(), kit.now
    await kit.put(queue, "late", delay=90.0, priority=10)
    await kit.put(queue, "soon", delay=30.0)
    await kit.put(queue, "low", priority=0)
    await kit.put(queue, "a", "b")
    await kit.put(queue, "high", priority=10)
    entries = await browse_page(kit, queue)
    expected = [
        ("high", "ready"),
        ("a", "ready"),
        ("b", "ready"),
        ("low", "ready"),
        ("soon", "delayed"),
        ("late", "delayed"),
    ][: None if shows_delayed(kit) else 4]
    kit.same(
        [(entry.message.id, entry.state) for entry in entries],
        expected,
        "the order of delivery",
        BROWSE,
    )

    passed = kit.now - began
    dues = [0, 0, 0, 0, 30.0, 90.0][: len(expected)]
    kit.true(
        all(
            max(due - passed, 0.0) - 1.0 < entry.due_in < due + 1.0
            for entry, due in zip(entries, dues, strict=True)
        ),
        "due_in 0, and about 30 and 90 s",
        [entry.due_in for entry in entries],
        BROWSE,
    )
    kit.same(entries[1].message.body, b"a", "the whole message", BROWSE)

    got = kit.ids(await kit.take(await kit.subscribe(queue), 4))
    kit.same(got, ["high", "a", "b", "low"], "messages received, in the order shown", BROWSE)


@case("G11", ids="X08", needs=LOOKS, protocols=(SupportsBrowse,))
async def browsing_changes_nothing(kit: Kit) -> None:
    """Browsing changes no order, count, lease or delivery mark."""
    queue = await kit.queue()
    await kit.put(queue, *"abcd")
    consumer = await kit.subscribe(queue, prefetch=1)
    (held,) = await kit.take(consumer, 1)

    for _ in range(3):
        shown = [
            entry.message.id for entry in await browse_page(kit, queue) if entry.state != "leased"
        ]
        kit.same(shown, ["b", "c", "d"], "ready messages shown, each time", BROWSE)

    if isinstance(kit.backend, SupportsCount):
        (counts,) = await counts_of(kit, queue)
        kit.counted(counts, ready=3, leased=1)
    kit.same(
        await kit.settle(consumer, Ack(held.receipt)),
        [DONE],
        "the ack of a message that was held meanwhile",
        BROWSE,
    )

    got = await kit.take(await kit.subscribe(queue), 2) + await kit.take(consumer, 1)
    marked = leaves_marks(kit)
    marks = sorted(
        (
            delivery.message.id,
            delivery.redelivered and not marked,
            0 if marked else delivery.takeovers,
            delivery.attempt,
        )
        for delivery in got
    )
    kit.same(
        marks,
        [(name, False, 0, 1) for name in "bcd"],
        "id, redelivered, takeovers, attempt",
        BROWSE,
    )


@case("G11", ids="X08", needs=LOOKS, protocols=(SupportsBrowse,))
async def peeking_at_a_queue_and_its_dead_letters_changes_nothing(kit: Kit) -> None:
    """`Broker.peek` and `dead_letters().list()` return the same each time and remove nothing."""
    broker, queue = await kit.broker(), Queue(kit.name())
    in_place = kit.limit(Capability.ORDER, "release_in_place")
    published = [b"a", b"b", b"c", b"d"] if in_place else [b"a", b"b"]
    for body in published:
        await kit.within(broker.publish(queue, body))

    async with broker.consume(queue, prefetch=1) as deliveries:
        for _ in range(2):
            await kit.within((await kit.within(anext(deliveries))).reject("no"))

    # Published now, since the consumer might have prefetched one and returned it out of order.
    for body in (b"c", b"d") if not in_place else ():
        await kit.within(broker.publish(queue, body))

    await kit.advance(kit.harness.silence)
    letters = broker.dead_letters(queue)
    for _ in range(3):
        shown = [delivery.message.body for delivery in await kit.within(broker.peek(queue))]
        listed = [letter.body for letter in await kit.within(letters.list())]
        kit.same((shown, listed), ([b"c", b"d"], [b"a", b"b"]), "ready and dead, in order", BROWSE)

    totals = [(await kit.contents(name)).total() for name in (queue.name, f"{queue.name}.dlq")]
    kit.same(totals, [2, 2], "messages in the queue and in its dead-letter queue", BROWSE)


@case(
    "G11",
    ids="C91",
    needs=(*LOOKS, Capability.DELAY),
    protocols=(SupportsBrowse,),
    each={"1": 1, "3": 3, "8": 8},
)
async def pages_join_to_the_whole(kit: Kit, size: int) -> None:
    """Pages of any size join to the whole list, also when the last entry of a page has gone."""
    queue = await kit.queue()
    await kit.put(queue, *(f"{number}" for number in range(6)))
    later = ["d1", "d2"] * shows_delayed(kit)
    await kit.put(queue, *later, delay=50.0)
    whole = list(await keys_by_id(kit, queue))
    kit.same(sorted(whole), ["0", "1", "2", "3", "4", "5", *later], "all messages", BROWSE)

    paged: list[str] = []
    after = None
    while page := await browse_page(kit, queue, size, after):
        kit.true(
            len(page) <= size and len(paged) <= len(whole),
            f"pages of at most {size}, and an end",
            paged,
            BROWSE,
        )
        paged += [entry.message.id for entry in page]
        after = page[-1].key

    kit.same(paged, whole, "the pages joined", BROWSE)
    page = await browse_page(kit, queue, 2)
    consumer = await kit.subscribe(queue, prefetch=2)
    await kit.ack(consumer, await kit.take(consumer, 2))
    await kit.within(consumer.close())
    rest = [delivery.message.id for delivery in await browse_page(kit, queue, 100, page[-1].key)]
    # A driver may have prefetched some.
    rest = rest if kit.limit(Capability.ORDER, "release_in_place") else sorted(rest)
    kit.same(rest, whole[2:], "entries after a page that has gone", BROWSE)


@case("G1", "G11", ids="C05")
async def a_look_at_a_missing_queue_says_that_it_is_missing(kit: Kit) -> None:
    """Browse, take, purge and delete of a missing queue raise NOT_FOUND and create nothing."""
    nowhere, backend = kit.name(), kit.backend
    if isinstance(backend, SupportsBrowse):
        await is_not_found(kit, backend.browse(nowhere, 10), BROWSE)
    if isinstance(backend, SupportsTake):
        await is_not_found(kit, backend.take(nowhere, ["key"], 30.0), TAKE)
    if isinstance(backend, SupportsPurge):
        await is_not_found(kit, backend.purge(nowhere), PURGE)
    if isinstance(backend, SupportsDelete):
        await is_not_found(kit, backend.delete(nowhere), DELETE)
    (outcome,) = await kit.publish(Outgoing(nowhere, kit.message()))
    kit.true(
        isinstance(outcome, Failed),
        "a publish to the missing queue that still fails",
        outcome,
        "Backend.publish",
    )
