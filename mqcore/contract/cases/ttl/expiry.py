"""What a backend reports about expiry."""

from __future__ import annotations

from collections import Counter
from math import inf, nan
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.ttl.common import BOTH, EXPIRES_IN, NEEDS, SWEEP, has_expired, time_left
from mqcore.errors import ValidationError
from mqcore.queue import Queue
from mqcore.spi import (
    DONE,
    STORED,
    Capability,
    Move,
    Outgoing,
    Release,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


_CLOCKS = 0.25
"""Seconds by which the clocks of broker and kit may differ over a case."""


_EARLY = 0.05


def _left(
    kit: Kit,
    actual: float | None,
    ttl: float,
    since: float,
    aged: float = 0.0,
    look: str = EXPIRES_IN,
) -> None:
    """Fail unless `actual` is what may be left of a ttl.

    It began after `since`, and at least `aged` seconds before it was read. How long the calls took
    on a busy machine does not matter: it moves both ends.
    """
    least, most = ttl - (kit.now - since) - _CLOCKS, ttl - aged + _CLOCKS
    kit.true(
        actual is not None and least <= actual <= most,
        f"{least:.3f} to {most:.3f} s left of {ttl:g}",
        f"expires_in={actual}",
        look,
    )


@case("G6", ids="T02", needs=NEEDS)
async def a_living_message_says_how_long_it_has(kit: Kit) -> None:
    """`expires_in` counts down from publish; without a ttl it is None."""
    queue, began = await kit.queue(), kit.now
    await kit.put(queue, "mortal", ttl=10.0)
    await kit.put(queue, "immortal")
    await kit.advance(1.0)
    remaining = await time_left(kit, queue, 2)
    kit.same(remaining["immortal"], None, "expires_in without a ttl", EXPIRES_IN)
    _left(kit, remaining["mortal"], 10.0, began, aged=1.0)


@case("G6", "G2", ids="T01", needs=NEEDS)
async def an_expired_message_is_handed_out_as_expired(kit: Kit) -> None:
    """An expired message is still delivered, with `expires_in` at or below 0.

    Core dead-letters it.
    """
    queue = await kit.queue()
    await kit.put(queue, "a", ttl=0.3)
    await kit.advance(2.0)
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    kit.same(delivery.message.body, b"a", "the body as it was", "Subscription.receive")
    kit.true(has_expired(delivery), "expires_in <= 0", delivery.expires_in, EXPIRES_IN)


@case("G6", ids="T03", needs=NEEDS)
async def expired_and_living_messages_do_not_stand_in_each_others_way(kit: Kit) -> None:
    """Expired and living messages of one queue do not block each other."""
    queue = await kit.queue()
    for name, ttl in [("dead-1", 0.3), ("long", 100.0), ("dead-2", 0.6), ("for-ever", None)]:
        await kit.put(queue, name, ttl=ttl)
    await kit.advance(0.8)
    got = {
        delivery.message.id: has_expired(delivery)
        for delivery in await kit.take(await kit.subscribe(queue), 4)
    }
    kit.same(
        got,
        {"dead-1": True, "long": False, "dead-2": True, "for-ever": False},
        "which messages have expired",
        EXPIRES_IN,
    )


@case(
    "G6",
    ids="T04",
    needs=NEEDS,
    each={
        "message": (5.0, 20.0),
        "queue": (20.0, 5.0),
        "queue only": (None, 5.0),
        "message only": (5.0, None),
    },
)
async def the_shorter_ttl_wins(kit: Kit, ttls: tuple[float | None, float | None]) -> None:
    """The shorter ttl applies, of the message and its queue."""
    of_message, of_queue = ttls
    queue, began = await kit.queue(ttl=of_queue), kit.now
    await kit.put(queue, "a", ttl=of_message)
    _left(
        kit,
        (await time_left(kit, queue))["a"],
        5.0,
        began,
        look="Backend.publish: QueueSpec.ttl",
    )


@case("G6", ids="T05", needs=NEEDS, each={"release": False, "crash": True})
async def what_comes_back_has_not_become_younger(kit: Kit, crash: bool) -> None:  # noqa: FBT001 - a variant
    """A release or a takeover does not extend the life of a message."""
    queue, began = await kit.queue(ttl=10.0), kit.now
    await kit.put(queue, "a")
    await kit.advance(0.6)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    if not crash:
        await kit.settle(consumer, Release(delivery.receipt))
    await kit.within(consumer.close())
    _left(
        kit,
        (await time_left(kit, queue))["a"],
        10.0,
        began,
        aged=0.6,
        look="Subscription.settle: Release",
    )


@case("G6", "G10", ids="T06", needs=NEEDS)
async def a_move_copies_the_expiry_and_the_target_adds_none(kit: Kit) -> None:
    """A Move keeps the expiry; the ttl of the target queue does not apply to it."""
    source, target, began = await kit.queue(), await kit.queue(ttl=1.0), kit.now
    await kit.put(source, "a", ttl=10.0)
    await kit.put(source, "for-ever")
    await kit.advance(0.6)
    consumer = await kit.subscribe(source)
    moves = [kit.successor(item, target) for item in await kit.take(consumer, 2)]
    look = "Subscription.settle: Move copies expires_at"
    kit.same(await kit.settle(consumer, *moves), [DONE, DONE], "both moved", look)

    remaining = await time_left(kit, target, 2)
    _left(kit, remaining["a"], 10.0, began, aged=0.6, look=look)
    kit.same(remaining["for-ever"], None, "expires_in after the Move", look)


@case("G6", "G7", "G10", ids="T06 D06", needs=BOTH)
async def the_wait_of_a_retry_does_not_stop_the_clock(kit: Kit) -> None:
    """The delay of a retry does not extend the life of a message."""
    queue, began = await kit.queue(), kit.now
    await kit.put(queue, "a", ttl=10.0)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    await kit.settle(consumer, kit.successor(delivery, queue, 0.6, attempt=2))
    (delivery,) = await kit.take(consumer, 1)
    _left(
        kit,
        delivery.expires_in,
        10.0,
        began,
        aged=0.6,
        look="Subscription.settle: a delayed Move copies expires_at",
    )


@case("G6", ids="T06", needs=NEEDS)
async def a_move_may_give_a_new_ttl(kit: Kit) -> None:
    """The `ttl` of a Move's successor counts from now and replaces the old expiry."""
    queue = await kit.queue()
    await kit.put(queue, "a", ttl=100.0)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    moved, began = kit.successor(delivery, queue), kit.now
    await kit.settle(consumer, Move(moved.receipt, Outgoing(queue, moved.to.message, 0.0, 5.0)))
    await kit.within(consumer.close())
    _left(
        kit,
        (await time_left(kit, queue))["a"],
        5.0,
        began,
        look="Subscription.settle: Outgoing.ttl of a Move",
    )


@case("G6", "G11", ids="T10", needs=NEEDS)
async def a_dead_letter_never_expires_again(kit: Kit) -> None:
    """A dead letter has no expiry."""
    queue = await kit.queue(ttl=0.3)
    await kit.put(queue, "a")
    await kit.advance(0.5)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    await kit.settle(consumer, kit.successor(delivery, f"{queue}.dlq", expires_at=None))
    await kit.advance(1.0)
    kit.same(
        await time_left(kit, f"{queue}.dlq"),
        {"a": None},
        "expires_in of the dead letter",
        "Subscription.settle: Move",
    )


@case("G6", "G7", ids="D06", needs=BOTH)
async def what_expires_inside_its_delay_never_comes_alive(kit: Kit) -> None:
    """A message that expires during its delay is delivered as expired.

    With `sweep` that happens when it expires, else when it is due.
    """
    queue, sweeps = await kit.queue(), kit.limit(Capability.EXPIRY, "sweep")
    consumer, began = await kit.subscribe(queue), kit.now
    waiting = await kit.start(consumer.receive(1, 600.0))
    kit.same(
        await kit.publish(Outgoing(queue, kit.message("a"), 60.0 if sweeps else 1.5, 0.5)),
        [STORED],
        "stored",
    )

    (delivery,) = await kit.within(waiting)
    kit.true(has_expired(delivery), "expires_in <= 0", delivery.expires_in, EXPIRES_IN)
    kit.true(
        kit.now - began >= 0.5 - 0.005,
        "not before it expires",
        f"after {kit.now - began:.3f} s",
        SWEEP,
    )


@case("G6", "G7", ids="D06", needs=BOTH)
async def a_ttl_longer_than_the_delay_counts_from_publish(kit: Kit) -> None:
    """A ttl counts from publish, not from the end of a delay."""
    queue, began = await kit.queue(), kit.now
    consumer = await kit.subscribe(queue)
    await kit.put(queue, "a", delay=0.6, ttl=5.0)
    (delivery,) = await kit.take(consumer, 1)
    kit.true(
        kit.now - began >= 0.6 - 0.005,
        "not before it is due",
        f"after {kit.now - began:.3f} s",
        "the delay",
    )
    _left(kit, delivery.expires_in, 5.0, began, aged=0.6)


@case("G6", ids="T12", needs=NEEDS, each={"ahead": 3600.0, "behind": -3600.0})
async def the_publishers_calendar_decides_nothing(kit: Kit, skew: float) -> None:
    """A ttl counts from now, whatever `published_at` says."""
    queue, began = await kit.queue(), kit.now
    message = kit.message("a", published_at=kit.clock.now() + skew)
    kit.same(
        await kit.publish(Outgoing(queue, message, 0.0, 5.0)), [STORED], "stored", "Backend.publish"
    )
    _left(
        kit,
        (await time_left(kit, queue))["a"],
        5.0,
        began,
        look="Backend.publish: expires_at by the broker's clock",
    )


@case("G6", ids="T13", needs=NEEDS)
async def a_ttl_may_be_very_short_or_very_long(kit: Kit) -> None:
    """A ttl may be as short as 50 ms and as long as a year."""
    queue, year, began = await kit.queue(), 365 * 86_400.0, kit.now
    await kit.put(queue, "long", ttl=year)
    await kit.put(queue, "short", ttl=0.05)
    await kit.advance(0.1)
    remaining = await time_left(kit, queue, 2)
    _left(kit, remaining["long"], year, began, aged=0.1)
    kit.true(
        (remaining["short"] or 1.0) <= 0,
        "the message with the short ttl expired",
        f"expires_in={remaining['short']}",
        EXPIRES_IN,
    )


@case("G6", ids="T07", needs=NEEDS)
async def a_ttl_of_nothing_is_refused(kit: Kit) -> None:
    """A ttl of 0, below 0, infinite or NaN raises ValidationError; nothing is stored."""
    broker, queue = await kit.broker(), Queue(kit.name())
    await kit.within(broker.declare(queue))
    for ttl in (0.0, -1.0, -0.001, inf, nan):
        await kit.raises(
            ValidationError,
            broker.publish(queue, b"", ttl=ttl),
            f"ttl={ttl} refused",
            "Broker.publish",
        )
    kit.same(await kit.contents(queue.name), Counter(), "messages stored", "Broker.publish")


@case("G6", ids="T01", needs=NEEDS, hooks=("mute",))
async def a_late_answer_to_a_claim_makes_no_life_longer(kit: Kit) -> None:
    """`expires_in` does not include the time that the answer to a claim took."""
    queue, backend, ttl = await kit.queue(), await kit.open(), 2.0
    consumer = await kit.subscribe(queue, backend=backend)
    await kit.put(queue, "a", ttl=ttl)
    stored = kit.now

    async with kit.harness.mute(backend):
        waiting = await kit.start(consumer.receive(1, 600.0))
        await kit.advance(0.5)

    (delivery,) = await kit.within(waiting)
    ends = kit.now - stored + (delivery.expires_in or 0.0)
    by = ttl + _EARLY
    kit.true(
        ends <= by,
        f"the end of its life by {by:g} s after it was stored",
        f"{ends:.3f} s",
        EXPIRES_IN,
    )
    await kit.ack(consumer, [delivery])
