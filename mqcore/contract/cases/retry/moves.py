"""Moves at the backend: the successor is stored before the source goes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqcore.contract.case import case
from mqcore.contract.cases.retry.common import MOVE
from mqcore.contract.kit import NotShown
from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Capability,
    ErrorKind,
    Failed,
    Move,
    Outgoing,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G3", ids="R06 R07")
async def a_move_stores_the_successor_and_lets_go_of_the_source(kit: Kit) -> None:
    """A Move stores its successor as a new message without marks and removes its source."""
    source, target = await kit.queue(), await kit.queue()
    await kit.put(source, "a")
    await kit.put(target, "before")
    consumer = await kit.subscribe(source)
    (delivery,) = await kit.take(consumer, 1)
    move = kit.successor(delivery, target, attempt=2, failed_at=1_700_000_000.5)
    kit.same(await kit.settle(consumer, move), [DONE], "the Move", MOVE)

    before, got = await kit.take(await kit.subscribe(target), 2)
    kit.same(kit.ids([before, got]), ["before", "a"], "messages in order", MOVE)
    kit.same(got.message, move.to.message, "the successor as it was given", MOVE)
    kit.same(
        (got.redelivered, got.takeovers),
        (False, 0),
        "redelivered, takeovers of the successor",
        MOVE,
    )
    kit.same(await kit.contents(source), Counter(), "messages left in the source queue", MOVE)


@case("G1", "G3", ids="R06 B03")
async def a_move_keeps_its_id_and_is_not_taken_for_a_duplicate(kit: Kit) -> None:
    """Ten retries of one id inside the dedup window are all stored."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)

    for hop in range(10):
        (delivery,) = await kit.take(consumer, 1)
        actual = (delivery.message.id, delivery.message.hop, delivery.attempt)
        kit.same(
            actual,
            ("a", hop, hop + 1),
            f"the successor of Move {hop}",
            f"{MOVE}, and dedup by Message.copy_name",
        )
        kit.same(
            await kit.settle(consumer, kit.successor(delivery, queue, attempt=hop + 2)),
            [DONE],
            "the Move",
            MOVE,
        )

    await kit.within(consumer.close())  # a driver may have prefetched the last message
    kit.same(await kit.contents(queue), Counter("a"), "copies stored", MOVE)


@case("G1", "G3", "G11", ids="R06 X03 B03")
async def a_message_goes_round_twice_inside_the_dedup_window(kit: Kit) -> None:
    """A message that is retried, dead-lettered and redriven is never its own duplicate."""
    queue = await kit.queue()
    dead, look = f"{queue}.dlq", f"{MOVE}, and dedup by Message.copy_name"
    await kit.put(queue, "a")
    at: dict[str, Any] = {queue: await kit.subscribe(queue), dead: await kit.subscribe(dead)}
    here = queue

    for to in (queue, dead, queue, dead, queue, queue, dead):
        (delivery,) = await kit.take(at[here], 1)
        move = kit.successor(delivery, to)
        kit.same(
            await kit.settle(at[here], move),
            [DONE],
            f"the outcome of hop {move.to.message.hop} to {to}",
            look,
        )
        here = to

    (letter,) = await kit.take(at[dead], 1)
    kit.same(
        (letter.message.id, letter.message.hop), ("a", 7), "the message after seven Moves", look
    )
    kit.same(await kit.contents(queue), Counter(), "messages left in the queue", look)


@case("G3", ids="X06")
async def a_failed_move_leaves_its_source_leased(kit: Kit) -> None:
    """A Move to a missing queue fails alone with NOT_FOUND, and its source stays claimed."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    consumer, other = await kit.subscribe(queue), await kit.subscribe(queue)
    a, b = await kit.take(consumer, 2)
    failed, done = await kit.settle(
        consumer, kit.successor(a, kit.name()), kit.successor(b, f"{queue}.dlq")
    )
    kit.true(
        isinstance(failed, Failed) and failed.kind is ErrorKind.NOT_FOUND,
        "Failed(NOT_FOUND)",
        failed,
        MOVE,
    )
    kit.same(done, DONE, "the outcome of the other item", MOVE)
    kit.same(kit.ids(await kit.receive(other)), [], "messages for another consumer", MOVE)
    kit.same(
        await kit.settle(consumer, kit.successor(a, f"{queue}.dlq")),
        [DONE],
        "another settlement of the source",
        MOVE,
    )
    kit.same(await kit.contents(f"{queue}.dlq"), Counter("ab"), "both moved", MOVE)


@case("G3", "G5", ids="L02", needs=(Capability.ATOMIC_MOVE,))
async def a_stale_move_stores_nothing(kit: Kit) -> None:
    """With ATOMIC_MOVE a stale Move stores nothing."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    await kit.ack(consumer, [delivery])
    forged = kit.successor(replace(delivery, receipt=b"forged"), f"{queue}.dlq")
    actual = await kit.settle(consumer, kit.successor(delivery, f"{queue}.dlq"), forged)
    kit.same(actual, [STALE, STALE], "outcomes of the stale Moves", MOVE)
    kit.same(await kit.contents(f"{queue}.dlq"), Counter(), "messages in the target queue", MOVE)


@case(
    "G1",
    "G3",
    ids="R08",
    needs=(Capability.DEDUP,),
    each={"published": "published", "moved": "moved"},
)
async def a_successor_that_is_stored_twice_is_one_copy(kit: Kit, before: str) -> None:
    """Storing the same successor twice stores one copy.

    A crash between storing and removing, or a retry after an unknown outcome, does that.
    """
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    move = kit.successor(delivery, f"{queue}.dlq")

    if before == "published":
        kit.same(
            await kit.publish(move.to),
            [STORED],
            "the outcome of publishing the successor",
            "Backend.publish",
        )
        kit.same(
            await kit.settle(consumer, move),
            [DONE],
            "the outcome of the Move after it",
            f"{MOVE}, a duplicate successor",
        )
    else:
        kit.same(
            await kit.settle(consumer, move, move),
            [DONE, STALE],
            "the Move, and the Move again",
            MOVE,
        )

    kit.same(await kit.contents(f"{queue}.dlq"), Counter("a"), "copies stored", MOVE)
    kit.same(await kit.contents(queue), Counter(), "messages left in the source queue", MOVE)


@case("G1", "G3", "G11", ids="B03 X03", each={"published-twice": True, "from-two-queues": False})
async def two_copies_of_one_id_in_one_queue_are_both_moved(kit: Kit, published: bool) -> None:  # noqa: FBT001 - a variant
    """Two copies with the same id in one queue are both retried and both dead-lettered."""
    queue, window = await kit.queue(), float(kit.limit(Capability.DEDUP, "window") or 0.0)
    if published and window > kit.harness.patience and kit.clock.real:
        raise NotShown(
            f"the DEDUP window of {window:g} s is too long to wait for: it takes a virtual clock"
        )

    for origin in (queue, queue) if published else (await kit.queue(), await kit.queue()):
        await kit.put(origin, "a")
        if not published:
            moving = await kit.subscribe(origin)
            (delivery,) = await kit.take(moving, 1)
            move = Move(delivery.receipt, Outgoing(queue, delivery.message.moved(origin)))
            kit.same(await kit.settle(moving, move), [DONE], "the Move into the shared queue", MOVE)
        await kit.advance(window * published + 0.001)

    consumer, look = (
        await kit.subscribe(queue),
        f"{MOVE}: its successor is not a duplicate of another copy's",
    )

    for to in (queue, f"{queue}.dlq"):
        for delivery in await kit.take(consumer, 2):  # each in its own batch
            kit.same(
                await kit.settle(consumer, kit.successor(delivery, to)),
                [DONE],
                f"the Move to {to}",
                look,
            )

    kit.same(
        await kit.contents(f"{queue}.dlq"), Counter("aa"), "both copies, after two Moves each", look
    )


@case("G9", ids="C60")
async def moves_of_one_batch_keep_their_order(kit: Kit) -> None:
    """Moves of one batch are stored in their order."""
    queue = await kit.queue()
    names = [f"{n:02}" for n in range(20)]
    await kit.put(queue, *names)
    consumer = await kit.subscribe(queue)
    got = sorted(
        await kit.take(consumer, 20), key=lambda delivery: delivery.message.id, reverse=True
    )
    await kit.settle(consumer, *[kit.successor(delivery, f"{queue}.dlq") for delivery in got])
    kit.same(
        kit.ids(await kit.take(await kit.subscribe(f"{queue}.dlq"), 20)),
        names[::-1],
        "messages in the order of the Moves",
        MOVE,
    )


@case("G4", "G10", ids="R01 C44")
async def the_attempt_survives_a_crash(kit: Kit) -> None:
    """The death of a consumer does not change a message's attempt."""
    queue, victim = await kit.queue(), await kit.open()
    await kit.publish(Outgoing(queue, kit.message("a", attempt=3)))
    await kit.take(await kit.subscribe(queue, lease=1.0, backend=victim), 1)
    await kit.kill(victim)
    (again,) = await kit.take(await kit.subscribe(queue), 1)
    kit.same(
        (again.attempt, again.takeovers),
        (3, 1),
        "the attempt as it was, taken over once",
        "Subscription.receive",
    )
