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
    """The successor is there as a new message, with all that it says and no marks; the source is gone."""
    source, target = await kit.queue(), await kit.queue()
    await kit.put(source, "a")
    await kit.put(target, "before")
    consumer = await kit.subscribe(source)
    (delivery,) = await kit.take(consumer, 1)
    move = kit.successor(delivery, target, attempt=2, failed_at=1_700_000_000.5)
    kit.same(await kit.settle(consumer, move), [DONE], "the Move", MOVE)
    before, got = await kit.take(await kit.subscribe(target), 2)
    kit.same(kit.ids([before, got]), ["before", "a"], "a place at the end", MOVE)
    kit.same(got.message, move.to.message, "the successor as it was given", MOVE)
    kit.same(
        (got.redelivered, got.takeovers), (False, 0), "no marks: it was never handed out", MOVE
    )
    kit.same(await kit.contents(source), Counter(), "the source gone", MOVE)


@case("G1", "G3", ids="R06 B03")
async def a_move_keeps_its_id_and_is_not_taken_for_a_duplicate(kit: Kit) -> None:
    """Ten retries of one id into its own queue, each inside the dedup window of all before: none is lost."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)
    for hop in range(10):
        (delivery,) = await kit.take(consumer, 1)
        came = (delivery.message.id, delivery.message.hop, delivery.attempt)
        kit.same(
            came,
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
    await kit.within(consumer.close())  # a driver may have fetched the last one for it already
    kit.same(await kit.contents(queue), Counter("a"), "one copy", MOVE)


@case("G1", "G3", "G11", ids="R06 X03 B03")
async def a_message_goes_round_twice_inside_the_dedup_window(kit: Kit) -> None:
    """Publish, retry, dead-letter, redrive, dead-letter again: the same id each time, and never a duplicate of itself."""
    queue = await kit.queue()
    dead, look = f"{queue}.dlq", f"{MOVE}, and dedup by Message.copy_name"
    await kit.put(queue, "a")
    at: dict[str, Any] = {queue: await kit.subscribe(queue), dead: await kit.subscribe(dead)}
    here = queue
    for to in (queue, dead, queue, dead, queue, queue, dead):
        (delivery,) = await kit.take(at[here], 1)
        move = kit.successor(delivery, to)
        kit.same(
            await kit.settle(at[here], move), [DONE], f"hop {move.to.message.hop} to {to}", look
        )
        here = to
    (letter,) = await kit.take(at[dead], 1)
    kit.same(
        (letter.message.id, letter.message.hop), ("a", 7), "the message after seven Moves", look
    )
    kit.same(await kit.contents(queue), Counter(), "no other copy", look)


@case("G3", ids="X06")
async def a_failed_move_leaves_its_source_leased(kit: Kit) -> None:
    """A missing target is NOT_FOUND for that item alone; its source is still ours, and can be settled otherwise."""
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
    kit.same(done, DONE, "the other item", MOVE)
    kit.same(kit.ids(await kit.receive(other)), [], "the source still leased", MOVE)
    kit.same(
        await kit.settle(consumer, kit.successor(a, f"{queue}.dlq")),
        [DONE],
        "settled otherwise",
        MOVE,
    )
    kit.same(await kit.contents(f"{queue}.dlq"), Counter("ab"), "both moved", MOVE)


@case("G3", "G5", ids="L02", needs=(Capability.ATOMIC_MOVE,))
async def a_stale_move_stores_nothing(kit: Kit) -> None:
    """With ATOMIC_MOVE, moving what was settled already, or what was never ours, leaves no copy anywhere."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    await kit.ack(consumer, [delivery])
    forged = kit.successor(replace(delivery, receipt=b"forged"), f"{queue}.dlq")
    came = await kit.settle(consumer, kit.successor(delivery, f"{queue}.dlq"), forged)
    kit.same(came, [STALE, STALE], "both stale", MOVE)
    kit.same(await kit.contents(f"{queue}.dlq"), Counter(), "no copy", MOVE)


@case(
    "G1",
    "G3",
    ids="R08",
    needs=(Capability.DEDUP,),
    each={"published": "published", "moved": "moved"},
)
async def a_successor_that_is_stored_twice_is_one_copy(kit: Kit, before: str) -> None:
    """A crash between storing and letting go, or an unknown outcome and a second try: the same name, one copy, no loss."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    move = kit.successor(delivery, f"{queue}.dlq")
    if before == "published":
        kit.same(await kit.publish(move.to), [STORED], "the successor alone", "Backend.publish")
        kit.same(
            await kit.settle(consumer, move),
            [DONE],
            "the Move after it",
            f"{MOVE}, a duplicate successor",
        )
    else:
        kit.same(
            await kit.settle(consumer, move, move),
            [DONE, STALE],
            "the Move, and the Move again",
            MOVE,
        )
    kit.same(await kit.contents(f"{queue}.dlq"), Counter("a"), "one copy", MOVE)
    kit.same(await kit.contents(queue), Counter(), "the source gone", MOVE)


@case("G1", "G3", "G11", ids="B03 X03", each={"published-twice": True, "from-two-queues": False})
async def two_copies_of_one_id_in_one_queue_are_both_moved(kit: Kit, published: bool) -> None:  # noqa: FBT001 - a variant
    """Published again where that is no duplicate, or moved there from two queues: both are retried, and both dead-lettered."""
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
        f"{MOVE}: its successor is no duplicate of another copy's",
    )
    for to in (queue, f"{queue}.dlq"):
        for delivery in await kit.take(consumer, 2):  # each in a batch of its own
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
    """A batch of Moves is stored in its order."""
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
        "the Moves' order",
        MOVE,
    )


@case("G4", "G10", ids="R01 C44")
async def the_attempt_survives_a_crash(kit: Kit) -> None:
    """It is the message's own: a consumer's death neither loses nor raises it."""
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
