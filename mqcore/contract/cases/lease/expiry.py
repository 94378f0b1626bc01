"""When leases end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.cases.lease.common import LEASE, LEASES
from mqcore.contract.kit import NotShown
from mqcore.spi import (
    DONE,
    STALE,
    Ack,
    Capability,
    SupportsCount,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Delivery


LATE = 1.0
"""Seconds after a lease's or a connection's end within which another has the message (G5)."""


EARLY = 0.005


@case("G5", ids="C45 L02", needs=LEASES)
async def a_lease_that_is_not_renewed_ends(kit: Kit) -> None:
    """After its lease, and within 1 s, a message goes to another consumer as taken over."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    owner, other = await kit.subscribe(queue, lease=LEASE), await kit.subscribe(queue, lease=LEASE)
    before, _, after = kit.now, await kit.take(owner, 1), kit.now
    (delivery,), at = await kit.take(other, 1), kit.now
    look = "Subscription.receive: leases that have ended"
    kit.true(
        at - before >= LEASE - EARLY,
        f"{LEASE:g} s for its owner alone",
        f"taken after {at - before:.3f} s",
        look,
    )
    kit.true(
        at - after <= LEASE + LATE,
        f"taken over within {LEASE + LATE:g} s",
        f"after {at - after:.3f} s",
        look,
    )

    kit.measured["takeover after a lease of 1 s"] = at - after
    _is_taken_over(kit, delivery, "a")


@case("G4", "G5", ids="C45 C73", each={"killed": True, "closed": False})
async def what_a_dead_consumer_held_goes_to_another_in_time(kit: Kit, killed: bool) -> None:  # noqa: FBT001 - a variant
    """A dead consumer's messages go to another within 1 s, with leases within lease + 1 s.

    They are taken over once, and the attempt is unchanged.
    """
    victim, queue = await kit.open(), await kit.queue()
    await kit.put(queue, "a")
    await kit.take(await kit.subscribe(queue, lease=LEASE, backend=victim), 1)
    waiting = await kit.start((await kit.subscribe(queue)).receive(1, kit.harness.patience))
    limit = LATE + (LEASE if kit.capabilities.has(Capability.LEASE) else 0.0)
    began = kit.now
    await (kit.kill(victim) if killed else kit.within(victim.close()))
    got = list(await kit.within(waiting, kit.harness.patience + LATE))
    took = kit.now - began
    kit.true(
        got and took <= limit,
        f"the message within {limit:g} s",
        f"{kit.ids(got)} after {took:.3f} s",
        "Backend.close",
    )

    kit.measured[f"takeover after a {'kill' if killed else 'close'}"] = took
    _is_taken_over(kit, got[0], "a")


def _is_taken_over(kit: Kit, delivery: Delivery, name: str) -> None:
    look = "Subscription.receive: the marks of what a dead owner held"
    kit.same(
        (delivery.message.id, delivery.attempt),
        (name, 1),
        "id and attempt",
        look,
    )
    kit.same(
        (delivery.redelivered, delivery.takeovers),
        (True, 1),
        "redelivered, and taken over once",
        look,
    )


@case("G9", ids="L02", needs=(Capability.LEASE, Capability.ORDER))
async def ended_leases_return_to_their_old_places(kit: Kit) -> None:
    """Messages whose lease ended return to their old places where ORDER states it."""
    if not kit.limit(Capability.ORDER, "release_in_place"):
        raise NotShown("declares no release in place")
    queue = await kit.queue()
    await kit.put(queue, *"abcd")
    await kit.take(await kit.subscribe(queue, lease=LEASE), 3)
    await kit.put(queue, "e")
    await kit.advance(LEASE + LATE)
    got = await kit.take(await kit.subscribe(queue), 5)
    kit.same(
        kit.ids(got),
        list("abcde"),
        "messages in their old order",
        "Subscription.receive: leases that have ended",
    )


@case("G12", "G5", ids="L02 C46", needs=LEASES)
async def an_ended_lease_gives_its_owner_room_again(kit: Kit) -> None:
    """A lost lease frees its place in the prefetch: the owner may claim the message again.

    It gets another receipt.
    """
    queue = await kit.queue()
    await kit.put(queue, "a")
    owner = await kit.subscribe(queue, prefetch=1, lease=LEASE)
    (old,) = await kit.take(owner, 1)
    (new,) = await kit.take(owner, 1)
    _is_taken_over(kit, new, "a")
    kit.true(
        new.receipt != old.receipt,
        "a receipt of its own for each claim",
        old.receipt,
        "Delivery.receipt",
    )

    actual = await kit.settle(owner, Ack(old.receipt), Ack(new.receipt))
    kit.same(
        actual,
        [STALE, DONE],
        "settlements with the old and the new receipt",
        "Subscription.settle: fencing",
    )


@case("G5", ids="L01", needs=LEASES)
async def each_consumer_has_its_own_lease(kit: Kit) -> None:
    """Each consumer has its own lease, also on the same queue."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    short, long = await kit.subscribe(queue, lease=LEASE), await kit.subscribe(queue, lease=30.0)
    (lost,), (kept,) = await kit.take(short, 1), await kit.take(long, 1)
    await kit.advance(LEASE + LATE)
    look = "Backend.subscribe: lease"
    kit.same(
        kit.ids(await kit.take(short, 1)), kit.ids([lost]), "the message of the short lease", look
    )
    kit.same(
        await kit.settle(long, Ack(kept.receipt)),
        [DONE],
        "the ack of the message with the long lease",
        look,
    )


@case("G5", ids="L02", needs=LEASES, protocols=(SupportsCount,))
async def leases_show_in_the_counts_and_end_there(kit: Kit) -> None:
    """A dead consumer's messages count as leased until the lease ends, then as ready."""
    backend, queue = cast("SupportsCount", kit.backend), await kit.queue()
    await kit.put(queue, *"abc")
    await kit.take(await kit.subscribe(queue, lease=LEASE), 2)
    (counts,) = await kit.within(backend.count([queue]))
    kit.counted(counts, ready=1, leased=2)

    await kit.advance(LEASE + LATE)
    (counts,) = await kit.within(backend.count([queue]))
    kit.counted(counts, ready=3, leased=0)


@case("G2", "G3", "G5", ids="L03", each={"receive": "receive", "move": "move"})
async def a_consumer_killed_in_the_middle_of_a_call_loses_nothing(kit: Kit, call: str) -> None:
    """A consumer killed during receive or Move loses no message.

    With ATOMIC_MOVE a moved message is in exactly one of both queues.
    """
    queue = await kit.queue()
    names = [f"{n:02}" for n in range(12)]
    await kit.put(queue, *names)

    for steps in (0, 1, 2, 3, 5, 9):
        victim = await kit.open()
        consumer = await kit.subscribe(queue, prefetch=2, lease=LEASE, backend=victim)
        if call == "receive":
            dying: asyncio.Future[Any] = asyncio.gather(
                consumer.receive(2, 1.0), return_exceptions=True
            )
        else:
            moves = [kit.successor(item, f"{queue}.dlq") for item in await kit.take(consumer, 2)]
            dying = asyncio.gather(consumer.settle(moves, timeout=1.0), return_exceptions=True)
        for _ in range(steps):
            await asyncio.sleep(0)
        await kit.kill(victim)
        await kit.within(dying)

    await kit.advance(LATE + (LEASE if kit.capabilities.has(Capability.LEASE) else 0.0))
    here, moved = await kit.contents(queue), await kit.contents(f"{queue}.dlq")
    kit.same(
        sorted(set(here + moved)),
        names,
        "messages in one of both queues",
        "Subscription.receive, Subscription.settle",
    )
    kit.true(
        max(here.values(), default=1) == 1, "no message twice in its queue", here, "Backend.close"
    )

    if kit.capabilities.has(Capability.ATOMIC_MOVE):
        kit.same(
            sum((here + moved).values()),
            len(names),
            "number of copies",
            "Subscription.settle: Move",
        )


@case("G5", ids="L05 C11")
async def an_instance_that_is_opened_again_owns_nothing_of_before(kit: Kit) -> None:
    """Receipts from before a close are stale after the instance is opened again."""
    backend, queue = await kit.open(), await kit.queue()
    await kit.put(queue, "a")
    (old,) = await kit.take(await kit.subscribe(queue, lease=LEASE, backend=backend), 1)
    await kit.within(backend.close())
    await kit.within(backend.open(kit.lost.append))
    consumer = await kit.subscribe(queue, backend=backend)
    (new,) = await kit.take(consumer, 1)
    _is_taken_over(kit, new, "a")
    kit.same(
        await kit.settle(consumer, Ack(old.receipt)),
        [STALE],
        "the settlement with the old receipt",
        "Backend.open: generations",
    )
    kit.same(
        await kit.settle(consumer, Ack(new.receipt)),
        [DONE],
        "the settlement with the new receipt",
        "Backend.open: generations",
    )
