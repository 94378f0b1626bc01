"""Profile *lease*: claims that end by themselves, owners that die or come too late, and a worker that goes in good order."""

from __future__ import annotations

import asyncio
import time
from threading import Event
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.faults import Renewals
from mqcore.contract.kit import NotShown
from mqcore.errors import LeaseLost
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy
from mqcore.spi import (
    DONE,
    STALE,
    Ack,
    Capability,
    Release,
    Settlement,
    SupportsCount,
    SupportsRenew,
)

if TYPE_CHECKING:
    from mqcore.consuming.context import Context
    from mqcore.contract.kit import Kit
    from mqcore.spi import Delivery

LEASE = 1.0
LATE = 1.0
"""Seconds after a lease's end, or after a connection's, within which another has the message (G5).
"""
EARLY = 0.005
SEVERAL = 2.5
"""Leases that a long handler outlives."""
ONCE = RetryPolicy(1)
_LEASES = (Capability.LEASE,)
_LATE_ONES = {how: how for how in ("ack", "release", "reject")}


async def _empty(kit: Kit, queue: str, look: str) -> None:
    kit.same(list((await kit.contents(queue)).elements()), [], f"nothing in {queue}", look)


# Claims at the seam


@case("G5", ids="C45 L02", needs=_LEASES)
async def a_lease_that_is_not_renewed_ends(kit: Kit) -> None:
    """Not before the lease is over and within 1 s after, another consumer that waits gets the message, as taken over."""
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
    """Within 1 s of the connection's end, on lease-keeping backends within lease + 1 s, taken over once and no attempt more."""
    victim, queue = await kit.open(), await kit.queue()
    await kit.put(queue, "a")
    await kit.take(await kit.subscribe(queue, lease=LEASE, backend=victim), 1)
    waiting = await kit.start((await kit.subscribe(queue)).receive(1, kit.harness.patience))
    limit = LATE + (LEASE if killed and kit.capabilities.has(Capability.LEASE) else 0.0)
    began = kit.now
    await (kit.kill(victim) if killed else kit.within(victim.close()))
    got = list(await kit.within(waiting, kit.harness.patience + LATE))
    took = kit.now - began
    kit.true(
        got and took <= limit,
        f"it within {limit:g} s",
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
        "the message, whose attempts only core counts",
        look,
    )
    kit.same(
        (delivery.redelivered, delivery.takeovers),
        (True, 1),
        "redelivered, and taken over once",
        look,
    )


@case(
    "G5",
    "G3",
    ids="L02 C41",
    needs=_LEASES,
    each={"ack": "ack", "release": "release", "move": "move"},
)
async def the_late_settlement_of_an_old_owner_is_stale(kit: Kit, how: str) -> None:
    """It is answered `Stale` and changes nothing, while the new owner's is done."""
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
    kit.same(kit.ids(await kit.receive(owner)), [], "nothing given out again by it", look)
    kit.same(await kit.settle(other, Ack(new.receipt)), [DONE], "the new owner's ack", look)
    await _empty(kit, queue, look)
    if kit.capabilities.has(Capability.ATOMIC_MOVE):
        await _empty(kit, f"{queue}.dlq", look)


@case("G5", ids="C41 L02", each={"ack": Ack, "release": Release})
async def a_receipt_that_was_used_or_made_up_is_stale(
    kit: Kit, settlement: type[Ack | Release]
) -> None:
    """Settling twice, or with bytes that nobody gave out, changes nothing, and no other item of the batch."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue)
    a, b = await kit.take(consumer, 2)
    kit.same(
        await kit.settle(consumer, Ack(a.receipt)), [DONE], "the first ack", "Subscription.settle"
    )
    came = await kit.settle(
        consumer, settlement(a.receipt), Ack(b.receipt), settlement(b"forged"), settlement(b"")
    )
    kit.same(
        came,
        [STALE, DONE, STALE, STALE],
        "an answer each",
        "Subscription.settle: a receipt that is not ours",
    )
    await _empty(kit, queue, "Subscription.settle")


@case("G5", ids="L01", needs=_LEASES, protocols=(SupportsRenew,))
async def a_renewed_lease_holds(kit: Kit) -> None:
    """What is renewed stays with its owner; what is not is lost, and renewing that answers False."""
    backend, queue = cast("SupportsRenew", kit.backend), await kit.queue()
    await kit.put(queue, "a", "b")
    owner, other = await kit.subscribe(queue, lease=LEASE), await kit.subscribe(queue)
    a, b = sorted(await kit.take(owner, 2), key=lambda delivery: delivery.message.id)
    look = "SupportsRenew.renew"
    for _ in range(5):
        await kit.advance(LEASE / 2)
        kit.same(
            list(await kit.within(backend.renew(queue, [a.receipt], LEASE))),
            [True],
            "a claim kept",
            look,
        )
    kit.same(
        kit.ids(await kit.receive(other, wait=0.05)),
        ["b"],
        "only what was not renewed, with another",
        look,
    )
    asked = [a.receipt, b.receipt, b"nobody's"]
    came = list(await kit.within(backend.renew(queue, asked, 30.0)))
    kit.same(came, [True, False, False], "kept, lost, unknown", look)
    kit.same(
        await kit.settle(owner, Ack(a.receipt), Ack(b.receipt)),
        [DONE, STALE],
        "settled accordingly",
        look,
    )


@case("G5", ids="L01", needs=_LEASES, protocols=(SupportsRenew,))
async def any_open_instance_may_renew_and_settle(kit: Kit) -> None:
    """Receipts are small plain bytes, good on every instance: the renewing thread has one of its own."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    owner = await kit.subscribe(queue, lease=LEASE)
    (delivery,) = await kit.take(owner, 1)
    kit.true(
        type(delivery.receipt) is bytes and not delivery.receipt[64:],
        "64 bytes at most",
        delivery.receipt,
        "Delivery.receipt",
    )
    other = await kit.open()
    renewed = await kit.within(cast("SupportsRenew", other).renew(queue, [delivery.receipt], 60.0))
    kit.same(list(renewed), [True], "renewed by another instance", "SupportsRenew.renew")
    await kit.advance(2 * LEASE)
    second = await kit.subscribe(queue, lease=LEASE, backend=other)
    kit.same(
        kit.ids(await kit.receive(second)),
        [],
        "nothing come back",
        "SupportsRenew.renew: the new lease",
    )
    kit.same(
        await kit.settle(second, Ack(delivery.receipt)),
        [DONE],
        "settled by another",
        "Subscription.settle",
    )
    kit.same(
        await kit.settle(owner, Ack(delivery.receipt)),
        [STALE],
        "gone for its owner",
        "Subscription.settle",
    )


@case("G5", ids="L02", needs=_LEASES, protocols=(SupportsRenew,))
async def what_was_settled_cannot_be_renewed(kit: Kit) -> None:
    """After an ack or a release, or in a queue that is not there, a renewal answers False and brings nothing back."""
    backend, queue = cast("SupportsRenew", kit.backend), await kit.queue()
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue)
    a, b = await kit.take(consumer, 2)
    await kit.settle(consumer, Ack(a.receipt), Release(b.receipt))
    look = "SupportsRenew.renew"
    came = await kit.within(backend.renew(queue, [a.receipt, b.receipt], 30.0))
    kit.same(list(came), [False, False], "settled claims", look)
    kit.same(
        list(await kit.within(backend.renew(kit.name(), [a.receipt], 30.0))),
        [False],
        "a missing queue",
        look,
    )
    kit.same(
        list((await kit.contents(queue)).elements()), [b.message.id], "what was released", look
    )


@case("G9", ids="L02", needs=(Capability.LEASE, Capability.ORDER))
async def ended_leases_return_to_their_old_places(kit: Kit) -> None:
    """Where ORDER says `release_in_place`, a crash does not send messages to the end of the queue."""
    if not kit.limit(Capability.ORDER, "release_in_place"):
        raise NotShown("declares no release in place")
    queue = await kit.queue()
    await kit.put(queue, *"abcd")
    await kit.take(await kit.subscribe(queue, lease=LEASE), 3)
    await kit.put(queue, "e")
    await kit.advance(LEASE + LATE)
    got = await kit.take(await kit.subscribe(queue), 5)
    kit.same(
        kit.ids(got), list("abcde"), "the old order", "Subscription.receive: leases that have ended"
    )


@case("G12", "G5", ids="L02 C46", needs=_LEASES)
async def an_ended_lease_gives_its_owner_room_again(kit: Kit) -> None:
    """Prefetch counts what is held, and what was lost is not held: the owner may claim it anew, under another receipt."""
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
    came = await kit.settle(owner, Ack(old.receipt), Ack(new.receipt))
    kit.same(came, [STALE, DONE], "only the new receipt good", "Subscription.settle: fencing")


@case("G5", ids="L01", needs=_LEASES)
async def each_consumer_has_its_own_lease(kit: Kit) -> None:
    """The lease belongs to the subscription, not to the queue."""
    queue = await kit.queue()
    await kit.put(queue, "a", "b")
    short, long = await kit.subscribe(queue, lease=LEASE), await kit.subscribe(queue, lease=30.0)
    (lost,), (kept,) = await kit.take(short, 1), await kit.take(long, 1)
    await kit.advance(LEASE + LATE)
    look = "Backend.subscribe: lease"
    kit.same(kit.ids(await kit.take(short, 1)), kit.ids([lost]), "the short one's, come back", look)
    kit.same(await kit.settle(long, Ack(kept.receipt)), [DONE], "the long one's, still held", look)


@case("G5", ids="L02", needs=_LEASES, protocols=(SupportsCount,))
async def leases_show_in_the_counts_and_end_there(kit: Kit) -> None:
    """What a dead consumer holds counts as leased until its lease ends, then as ready, though nobody receives."""
    backend, queue = cast("SupportsCount", kit.backend), await kit.queue()
    await kit.put(queue, *"abc")
    await kit.take(await kit.subscribe(queue, lease=LEASE), 2)
    (counts,) = await kit.within(backend.count([queue]))
    kit.same((counts.ready, counts.leased), (1, 2), "ready and leased", "SupportsCount.count")
    await kit.advance(LEASE + LATE)
    (counts,) = await kit.within(backend.count([queue]))
    kit.same(
        (counts.ready, counts.leased),
        (3, 0),
        "ready and leased after the lease",
        "SupportsCount.count",
    )


@case("G2", "G3", "G5", ids="L03", each={"receive": "receive", "move": "move"})
async def a_consumer_killed_in_the_middle_of_a_call_loses_nothing(kit: Kit, call: str) -> None:
    """At whatever step it dies: each message is in its queue or, moved, in the other; in both only without ATOMIC_MOVE."""
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
            moves = [kit.successor(it, f"{queue}.dlq") for it in await kit.take(consumer, 2)]
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
        "every message still there",
        "Subscription.receive, Subscription.settle",
    )
    kit.true(
        max(here.values(), default=1) == 1, "none of them twice in its queue", here, "Backend.close"
    )
    if kit.capabilities.has(Capability.ATOMIC_MOVE):
        kit.same(
            sum((here + moved).values()),
            len(names),
            "one copy of each",
            "Subscription.settle: Move",
        )


@case("G5", ids="L05 C11")
async def an_instance_that_is_opened_again_owns_nothing_of_before(kit: Kit) -> None:
    """A receipt of the closed generation is stale in the next, also when that has claimed the same message anew."""
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
        "the old receipt",
        "Backend.open: generations",
    )
    kit.same(
        await kit.settle(consumer, Ack(new.receipt)),
        [DONE],
        "the new receipt",
        "Backend.open: generations",
    )


# Through Broker and Worker


@case("G5", ids="L02 C41", needs=_LEASES, protocols=(SupportsRenew,), each=_LATE_ONES)
async def settling_what_went_to_another_raises_and_changes_nothing(kit: Kit, how: str) -> None:
    """In the pull API a late settlement is `LeaseLost`; the message stays the new owner's."""
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
    kit.true(held.lease_lost, "lease_lost set", held.lease_lost)
    kit.same(
        await kit.settle(rival, Ack(taken.receipt)),
        [DONE],
        "the new owner's ack",
        "Subscription.settle: fencing",
    )
    await kit.within(consumer.close())
    await _empty(kit, jobs.name, "Subscription.settle: fencing")


@case("G5", ids="L02", needs=_LEASES, protocols=(SupportsRenew,))
async def a_lost_lease_cancels_the_handler_and_shows_in_its_context(kit: Kit) -> None:
    """The next renewal answers False: an async handler is cancelled, `ctx.lease_lost` is set, and nothing of it is settled."""
    renewals, jobs = Renewals(kit), Queue(kit.name(), str)
    broker = await kit.broker(make_backend=renewals.make)
    began, told, seen = asyncio.Event(), asyncio.Event(), []

    async def handler(_: str, ctx: Context) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(ctx.lease_lost)
            told.set()

    await kit.within(broker.publish(jobs, "x"))
    await kit.worker(broker, jobs, handler, lease=LEASE, retry=ONCE, prefetch=1, concurrency=1)
    await kit.within(began.wait(), what="the handler begun")
    rival = await kit.subscribe(jobs.name)
    (taken,) = await kit.take(rival, 1)
    renewals.through = True
    await kit.within(told.wait(), what="the handler cancelled by its lost lease")
    kit.same(
        seen,
        [True],
        "lease_lost in the handler's context",
        "SupportsRenew.renew: False for a lost claim",
    )
    kit.same(
        await kit.settle(rival, Ack(taken.receipt)),
        [DONE],
        "the new owner's ack",
        "Subscription.settle: fencing",
    )


@case("G5", "G4", ids="L01 C73")
async def a_handler_longer_than_its_lease_runs_once(kit: Kit) -> None:
    """While it runs, neither its message nor those that wait behind it in the same worker go to another."""
    jobs, ended, starts = Queue(kit.name(), str), asyncio.Event(), list[str]()

    async def handler(payload: str) -> None:
        starts.append(payload)
        await kit.clock.sleep(SEVERAL * LEASE)
        ended.set()

    broker = await kit.broker()
    await kit.within(broker.publish_many(jobs, ["a", "b", "c"]))
    await kit.worker(broker, jobs, handler, lease=LEASE, concurrency=1, prefetch=3, retry=ONCE)
    await kit.advance(LEASE / 2)
    rival = await kit.subscribe(jobs.name, lease=LEASE)
    came = await kit.receive(rival, wait=SEVERAL * LEASE)
    kit.same(kit.ids(came), [], "nothing for the rival", "SupportsRenew.renew")
    kit.true(ended.is_set(), "the first handler run to its end", starts, "SupportsRenew.renew")
    kit.true(len(set(starts)) == len(starts), "each started once", starts, "SupportsRenew.renew")


@case("G13", "G4", ids="L04 R09")
async def what_waits_behind_a_running_handler_goes_back_at_once(kit: Kit) -> None:
    """A drain gives its handlers time, and others what had not begun: now, not when the grace is over, and not as taken over."""
    jobs, broker, began, go = (
        Queue(kit.name(), str),
        await kit.broker(),
        asyncio.Event(),
        asyncio.Event(),
    )

    async def handler(_: str) -> None:
        began.set()
        await go.wait()

    await kit.within(broker.publish_many(jobs, "abcde"))
    worker = await kit.worker(broker, jobs, handler, concurrency=1, prefetch=5, retry=ONCE)
    await kit.within(began.wait(), what="the handler begun")
    draining = await kit.start(worker.drain(kit.harness.patience))
    got = await kit.take(await kit.subscribe(jobs.name), 4)
    kit.true(
        not draining.done(),
        "the drain still waiting for its handler",
        "it has ended",
        "Subscription.settle: Release",
    )
    marks = {(it.attempt, it.takeovers) for it in got}
    kit.same(marks, {(1, 0)}, "attempt and takeovers of the four", "Subscription.settle: Release")
    go.set()
    await kit.within(draining)


@case("G5", ids="L01", needs=_LEASES, protocols=(SupportsRenew,))
async def renewal_goes_on_while_the_consumers_loop_is_blocked(kit: Kit) -> None:
    """A handler that blocks the event loop for several leases is not duplicated: a thread renews by an instance of its own."""
    if not kit.clock.real:
        raise NotShown(
            "under a virtual clock nothing is renewed from a thread: run the contract once in "
            "real time"
        )
    jobs, broker = Queue(kit.name(), str), await kit.broker()
    over, done, seen, starts = Event(), asyncio.Event(), list[str](), list[str]()

    def rival() -> None:
        async def consume() -> None:
            backend = kit.harness.make_backend()
            await backend.open(lambda _: None)
            try:
                consumer = await backend.subscribe(jobs.name, prefetch=1, lease=30.0)
                while not over.is_set():
                    seen.extend(kit.ids(list(await consumer.receive(1, 0.1))))
            finally:
                await backend.close()

        asyncio.run(consume())

    rivals: list[asyncio.Future[None]] = []

    async def handler(payload: str) -> None:
        starts.append(payload)
        rivals.append(asyncio.get_running_loop().run_in_executor(None, rival))
        time.sleep(SEVERAL * LEASE)  # noqa: ASYNC251 - blocking the loop is what is tried
        done.set()

    await kit.within(broker.publish(jobs, "x"))
    await kit.worker(broker, jobs, handler, lease=LEASE, retry=ONCE)
    await kit.within(done.wait(), what="the handler run")
    over.set()
    await kit.within(asyncio.gather(*rivals))
    kit.same(
        (starts, seen),
        (["x"], []),
        "one start, nothing for the rival",
        "SupportsRenew.renew: another instance",
    )
