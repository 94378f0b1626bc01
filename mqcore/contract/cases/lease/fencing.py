"""Settling a message after its lease has gone to another consumer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.lease.common import LEASE, LEASES, ONCE
from mqcore.contract.faults import Renewals
from mqcore.errors import LeaseLost
from mqcore.queue import Queue
from mqcore.spi import (
    DONE,
    STALE,
    Ack,
    Capability,
    Release,
    Settlement,
    SupportsRenew,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


_LATE_ONES = {how: how for how in ("ack", "release", "reject")}


async def _empty(kit: Kit, queue: str, look: str) -> None:
    kit.same(list((await kit.contents(queue)).elements()), [], f"messages in {queue}", look)


@case(
    "G5",
    "G3",
    ids="L02 C41",
    needs=LEASES,
    each={"ack": "ack", "release": "release", "move": "move"},
)
async def the_late_settlement_of_an_old_owner_is_stale(kit: Kit, how: str) -> None:
    """A settlement after another consumer took over is answered `Stale` and changes nothing."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    owner, other = await kit.subscribe(queue, lease=LEASE), await kit.subscribe(queue)
    (old,) = await kit.take(owner, 1)
    (new,) = await kit.take(other, 1)
    late: dict[str, Settlement] = {
        "ack": Ack(old.receipt),
        "release": Release(old.receipt),
        "move": kit.successor(old, f"{queue}.dlq"),
    }
    look = "Subscription.settle: fencing"
    kit.same(await kit.settle(owner, late[how]), [STALE], f"the late {how}", look)
    kit.same(
        kit.ids(await kit.receive(owner)), [], "messages received after the late settlement", look
    )
    kit.same(await kit.settle(other, Ack(new.receipt)), [DONE], "the new owner's ack", look)
    await _empty(kit, queue, look)

    if kit.capabilities.has(Capability.ATOMIC_MOVE):
        await _empty(kit, f"{queue}.dlq", look)


@case("G5", ids="C41 L02", each={"ack": Ack, "release": Release})
async def a_receipt_that_was_used_or_made_up_is_stale(
    kit: Kit, settlement: type[Ack | Release]
) -> None:
    """Settling with a used or forged receipt is `Stale` and affects no other item."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue)
    a, b = await kit.take(consumer, 2)
    kit.same(
        await kit.settle(consumer, Ack(a.receipt)), [DONE], "the first ack", "Subscription.settle"
    )

    actual = await kit.settle(
        consumer, settlement(a.receipt), Ack(b.receipt), settlement(b"forged"), settlement(b"")
    )
    kit.same(
        actual,
        [STALE, DONE, STALE, STALE],
        "an answer each",
        "Subscription.settle: a receipt that is not ours",
    )
    await _empty(kit, queue, "Subscription.settle")


@case("G5", ids="L02 C41", needs=LEASES, protocols=(SupportsRenew,), each=_LATE_ONES)
async def settling_what_went_to_another_raises_and_changes_nothing(kit: Kit, how: str) -> None:
    """In the pull API a late settlement raises LeaseLost; the message stays the new owner's."""
    broker = await kit.broker(make_backend=Renewals(kit).make)
    jobs = Queue(kit.name(), str)
    await kit.within(broker.publish(jobs, "x"))
    consumer = broker.consume(jobs, prefetch=1, lease=LEASE, retry=ONCE)
    held = await kit.within(anext(consumer))
    rival = await kit.subscribe(jobs.name)
    (taken,) = await kit.take(rival, 1)
    await kit.raises(
        LeaseLost, getattr(held, how)(), f"LeaseLost for a late {how}", "Subscription.settle: Stale"
    )
    kit.true(held.lease_lost, "lease_lost is True", held.lease_lost)
    kit.same(
        await kit.settle(rival, Ack(taken.receipt)),
        [DONE],
        "the new owner's ack",
        "Subscription.settle: fencing",
    )

    await kit.within(consumer.close())
    await _empty(kit, jobs.name, "Subscription.settle: fencing")
