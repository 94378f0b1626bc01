"""Settling: acknowledge, release, move."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from mqcore.contract.case import case
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import DONE, STALE, Ack, Capability, Done, Failed, Outgoing, Release, Stale

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G2", ids="C40")
async def what_is_acked_is_gone(kit: Kit) -> None:
    """An acked message is gone, also when consumer and instance close right after the ack."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    backend = await kit.open()
    consumer = await kit.subscribe(queue, backend=backend)
    await kit.ack(consumer, await kit.take(consumer, 2))
    await kit.within(consumer.close())
    await kit.within(backend.close())
    kit.same(
        await kit.contents(queue),
        Counter(),
        "messages left in the queue",
        "Subscription.settle: Ack",
    )


@case("G2", "G3", ids="C31 C43")
async def an_outcome_comes_for_each_settlement_in_its_order(kit: Kit) -> None:
    """`settle` returns an outcome for each item in order; a bad item does not affect the others.

    A Move to a missing target fails alone, and a forged receipt is stale.
    """
    queue, missing = await kit.queue(), kit.name()
    await kit.put(queue, *"abcd")
    consumer = await kit.subscribe(queue)
    a, b, c, d = await kit.take(consumer, 4)
    rejected = kit.successor(d, f"{queue}.dlq")
    settled = await kit.settle(
        consumer,
        Ack(a.receipt),
        kit.successor(b, missing),
        Ack(b"no receipt of ours"),
        Release(c.receipt),
        rejected,
    )
    kit.same(
        [type(item) for item in settled],
        [Done, Failed, Stale, Done, Done],
        "types of the outcomes",
        "Subscription.settle",
    )
    kit.same(await kit.settle(consumer), [], "outcomes of an empty batch", "Subscription.settle")

    (again,) = await kit.take(consumer, 1)
    kit.same(
        again.message.id, "c", "the id of the released message", "Subscription.settle: Release"
    )
    kit.same(
        await kit.receive(consumer),
        [],
        "further messages",
        "settle: Move",
    )
    kit.same(
        await kit.contents(f"{queue}.dlq"),
        Counter("d"),
        "messages in the dead-letter queue",
        "Subscription.settle: Move",
    )
    kit.same(
        await kit.settle(consumer, Ack(b.receipt)),
        [DONE],
        "the ack of the source",
        "Subscription.settle: Move",
    )


@case("G5", ids="C41")
async def a_second_settlement_is_stale_and_changes_nothing(kit: Kit) -> None:
    """Settling a message a second time is answered `Stale` and changes nothing."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue)
    a, b = await kit.take(consumer, 2)
    look = "Subscription.settle: fencing"
    first, *late = await kit.settle(consumer, Ack(a.receipt), Ack(a.receipt), Release(a.receipt))
    kit.same((first, late), (DONE, [STALE, STALE]), "outcomes: the first settlement counts", look)
    kit.same(
        await kit.settle(consumer, Ack(a.receipt)),
        [STALE],
        "the outcome of a later settlement",
        look,
    )
    kit.same(
        await kit.settle(consumer, Release(b.receipt), Ack(b.receipt)),
        [DONE, STALE],
        "outcomes: the first settlement counts",
        look,
    )

    (again,) = await kit.take(consumer, 1)
    kit.same(
        again.message.id, "b", "the id of the released message, whose late ack had no effect", look
    )
    kit.same(
        await kit.settle(consumer, Ack(b.receipt), Release(b.receipt)),
        [STALE] * 2,
        "settlements with an old receipt",
        look,
    )

    await kit.ack(consumer, [again])
    kit.same(await kit.contents(queue), Counter(), "messages left in the queue", look)


@case("G4", "G13", ids="C42 C44")
async def a_released_message_comes_again_as_it_was(kit: Kit) -> None:
    """A released message comes again unchanged, `redelivered`, with a new receipt.

    A release is neither an attempt nor a takeover.
    """
    queue = await kit.queue()
    await kit.publish(Outgoing(queue, kit.message("a", body=b"\x00\xff", headers={"h": "v"})))
    consumer = await kit.subscribe(queue)
    (first,) = await kit.take(consumer, 1)
    kit.same(
        await kit.settle(consumer, Release(first.receipt)),
        [DONE],
        "released",
        "Subscription.settle: Release",
    )

    (second,) = await kit.take(consumer, 1)
    kit.same(second.message, first.message, "the same message", "Subscription.settle: Release")

    marks = (second.attempt, second.redelivered, second.takeovers)
    kit.same(marks, (1, True, 0), "attempt, redelivered, takeovers", "Subscription.settle: Release")
    kit.true(
        second.receipt != first.receipt,
        "a receipt for each claim",
        second.receipt,
        "Subscription.receive",
    )


@case("G4", ids="C47")
async def a_message_survives_any_number_of_releases(kit: Kit) -> None:
    """A message may be released any number of times without being dropped or dead-lettered."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)

    for turn in range(50):
        (delivery,) = await kit.take(consumer, 1)
        kit.same(
            (delivery.attempt, delivery.takeovers),
            (1, 0),
            f"attempt and takeovers after {turn} releases",
            "settle: Release",
        )
        await kit.settle(consumer, Release(delivery.receipt))

    await kit.ack(consumer, await kit.take(consumer, 1))
    kit.same(
        await kit.contents(queue),
        Counter(),
        "messages left in the queue",
        "Subscription.settle: Ack",
    )
    kit.same(
        await kit.contents(f"{queue}.dlq"),
        Counter(),
        "messages in the dead-letter queue",
        "Backend.declare: delivery limits",
    )


@case("G4", "G10", ids="C42 C44", needs=(Capability.DELAY,))
async def a_failed_attempt_is_counted(kit: Kit) -> None:
    """In the pull API `retry` counts an attempt and `release` does not."""
    broker, queue = await kit.broker(), Queue(kit.name(), str)
    await kit.within(broker.publish(queue, "payload"))
    facts: list[Any] = []

    async with broker.consume(queue, retry=RetryPolicy(5, fixed(0.3))) as deliveries:
        for retry in (True, False, True):
            received = await kit.within(anext(deliveries))
            facts.append((received.value, received.attempt))
            await kit.within(received.retry() if retry else received.release())
        last = await kit.within(anext(deliveries))
        facts.append((last.value, last.attempt))
        kit.true(last.redelivered, "redelivered", last, "Subscription.settle: Move")
        await kit.within(last.ack())

    kit.same(
        facts,
        [("payload", 1), ("payload", 2), ("payload", 2), ("payload", 3)],
        "attempts",
        "Subscription.settle",
    )


@case("G4", "G13", ids="C45", each={"taken-over": True, "not-taken-over": False})
async def a_release_leaves_takeovers_as_they_were(kit: Kit, taken: bool) -> None:  # noqa: FBT001 - a variant
    """A release neither adds a takeover nor removes one."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    dies = await kit.subscribe(queue, lease=2.0)
    (held,) = await kit.take(dies, 1)
    await kit.settle(dies, *[Release(held.receipt)][taken:])
    await kit.within(dies.close())
    marks = []

    # Each time another consumer: the mark belongs to the message.
    for _ in range(3):
        consumer = await kit.subscribe(queue)
        (delivery,) = await kit.take(consumer, 1)
        marks.append((delivery.redelivered, delivery.takeovers))
        await kit.settle(consumer, Release(delivery.receipt))
        await kit.within(consumer.close())

    kit.same(
        marks, [(True, int(taken))] * 3, "redelivered, takeovers", "Subscription.settle: Release"
    )
