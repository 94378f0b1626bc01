"""Purging and deleting queues."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.browse import shows_delayed
from mqcore.contract.cases.browse.common import (
    DELETE,
    PURGE,
    delete_queue,
    is_not_found,
)
from mqcore.queue import Queue
from mqcore.spi import (
    DONE,
    STALE,
    Ack,
    ErrorKind,
    Failed,
    Outgoing,
    QueueSpec,
    Release,
    SupportsDelete,
    SupportsPurge,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


async def _answers(kit: Kit, queue: str, answer: str, why: str, **options: bool) -> None:
    """Fail unless `delete` returns `answer` ("True" or "False"); `why` explains the expectation."""
    asked = ", ".join(f"{name}=True" for name in options)
    kit.true(
        str(await delete_queue(kit, queue, **options)) == answer,
        f"{answer} from delete({asked}): {why}",
        look=DELETE,
    )


@case("G11", ids="X05", protocols=(SupportsPurge,))
async def a_purge_empties_the_queue_and_its_quarantine(kit: Kit) -> None:
    """A purge removes ready and delayed messages, with the quarantine, and returns their number.

    Leased messages stay with their owner, and dead letters stay.
    """
    queue, delays = await kit.queue(), shows_delayed(kit)
    purge = cast("SupportsPurge", kit.backend).purge
    await kit.put(queue, "held")
    consumer = await kit.subscribe(queue, prefetch=1)
    (held,) = await kit.take(consumer, 1)
    await kit.put(queue, *"abc")
    await kit.put(queue, *["later"] * delays, delay=0.8)
    await kit.put(f"{queue}.quarantine", "suspect")
    await kit.put(f"{queue}.dlq", "dead")
    kit.same(await kit.within(purge(queue)), 4 + delays, "number of purged messages", PURGE)

    await kit.advance(1.0)
    kit.same(
        await kit.settle(consumer, Ack(held.receipt)),
        [DONE],
        "the ack of the held message",
        PURGE,
    )
    kit.same(
        kit.ids(await kit.drain(consumer)),
        [],
        "messages received after the purge",
        PURGE,
    )
    kit.same(
        await kit.contents(f"{queue}.quarantine"), Counter(), "messages in the quarantine", PURGE
    )
    kit.same(
        await kit.contents(f"{queue}.dlq"),
        Counter(["dead"]),
        "messages in the dead-letter queue",
        PURGE,
    )
    kit.same(
        await kit.within(purge(queue)), 0, "number of messages purged by a second purge", PURGE
    )


@case("G11", "G2", ids="X05", protocols=(SupportsPurge,))
async def a_purged_queue_goes_on(kit: Kit) -> None:
    """Messages that are published after a purge arrive in order."""
    queue = await kit.queue()
    await kit.put(queue, *"abc")
    await kit.within(cast("SupportsPurge", kit.backend).purge(queue))
    await kit.put(queue, *"def")
    kit.same(
        kit.ids(await kit.take(await kit.subscribe(queue), 3)),
        ["d", "e", "f"],
        "messages received after the purge",
        PURGE,
    )


@case("G1", ids="C12", protocols=(SupportsDelete,))
async def a_deleted_queue_is_gone(kit: Kit) -> None:
    """Deleting a queue removes it with its quarantine; its dead letters stay.

    A publish to it fails with NOT_FOUND, late settlements are stale, and a second delete raises
    NOT_FOUND.
    """
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    await kit.put(f"{queue}.dlq", "dead")
    consumer = await kit.subscribe(queue, prefetch=1)
    (held,) = await kit.take(consumer, 1)
    await _answers(kit, queue, "True", "the queue goes")

    for name in (queue, f"{queue}.quarantine"):
        (outcome,) = await kit.publish(Outgoing(name, kit.message()))
        missing = isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
        kit.true(missing, f"NOT_FOUND for {name}", outcome, DELETE)

    kit.same(
        await kit.settle(consumer, Ack(held.receipt)),
        [STALE],
        "a late settlement",
        "Subscription.settle",
    )
    kit.same(
        await kit.contents(f"{queue}.dlq"),
        Counter(["dead"]),
        "messages in the dead-letter queue",
        DELETE,
    )
    await is_not_found(kit, cast("SupportsDelete", kit.backend).delete(queue), DELETE)
    await is_not_found(
        kit, kit.backend.subscribe(queue, prefetch=1, lease=30.0), "Backend.subscribe"
    )


@case("G14", ids="C06", protocols=(SupportsDelete,))
async def the_consumers_of_a_deleted_queue_learn_it(kit: Kit) -> None:
    """`receive` raises NOT_FOUND when its queue is deleted, while it waits or is called later."""
    queue = await kit.queue()
    waits, comes_later = await kit.subscribe(queue), await kit.subscribe(queue)
    waiting = await kit.start(waits.receive(1, 600.0))
    await delete_queue(kit, queue)
    await is_not_found(kit, waiting, "Subscription.receive: while it waits")
    await is_not_found(kit, comes_later.receive(1, 0.5), "Subscription.receive")


@case("G1", "G14", protocols=(SupportsDelete,))
async def who_only_publishes_goes_on_after_another_has_deleted_the_queue(kit: Kit) -> None:
    """A publisher declares its queue again after another process deleted it, each time."""
    broker, queue = await kit.broker(), Queue(kit.name())
    other, look = await kit.open(), "Backend.declare: of what this instance has declared before"
    for turn in range(3):
        await kit.within(broker.publish(queue, b"before"))
        await kit.within(cast("SupportsDelete", other).delete(queue.name))
        endings = await kit.within(broker.publish_many(queue, [b"a", b"b"]))
        actual = [type(ending).__name__ for ending in endings]
        kit.same(
            actual,
            ["Receipt", "Receipt"],
            f"turn {turn}: both stored in the queue that was declared again",
            look,
        )
        kit.same(
            sum((await kit.contents(queue.name)).values()),
            2,
            "number of messages in the queue",
            look,
        )


@case("G1", protocols=(SupportsDelete,))
async def a_queue_declared_anew_is_empty(kit: Kit) -> None:
    """A queue that is declared again after a delete has no old message, lease or remembered id."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    old = await kit.subscribe(queue, prefetch=1)
    (held,) = await kit.take(old, 1)
    await delete_queue(kit, queue)
    await kit.within(kit.backend.declare([QueueSpec(name=queue)]))
    await kit.put(queue, "a")
    settled = await kit.settle(old, Ack(held.receipt), Release(held.receipt))
    kit.same(
        settled, [STALE, STALE], "settlements with receipts of the old queue", "Subscription.settle"
    )
    kit.same(await kit.contents(queue), Counter("a"), "messages in the new queue", DELETE)


@case("G2", protocols=(SupportsDelete,), each={"queue": "", "quarantine": ".quarantine"})
async def a_queue_that_holds_messages_is_not_deleted_if_empty_was_asked(
    kit: Kit, where: str
) -> None:
    """`delete(if_empty=True)` refuses while queue or quarantine hold a message.

    Leased messages count.
    """
    queue = await kit.queue()
    await kit.put(f"{queue}{where}", "a")
    consumer = await kit.subscribe(f"{queue}{where}")
    held = await kit.take(consumer, 1)
    await _answers(kit, queue, "False", f"{queue}{where} holds a message", if_empty=True)
    await kit.ack(consumer, held)
    await kit.within(consumer.close())
    await _answers(kit, queue, "True", "it is empty", if_empty=True)
