"""Renewing a lease."""

from __future__ import annotations

import asyncio
import time
from threading import Event
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.lease.common import LEASE, LEASES, ONCE
from mqcore.contract.faults import Renewals
from mqcore.contract.kit import NotShown
from mqcore.queue import Queue
from mqcore.spi import (
    DONE,
    STALE,
    Ack,
    Release,
    SupportsRenew,
)

if TYPE_CHECKING:
    from mqcore.consuming.context import Context
    from mqcore.contract.kit import Kit


SEVERAL = 2.5
"""How many leases a long handler outlives."""


@case("G5", ids="L01", needs=LEASES, protocols=(SupportsRenew,))
async def a_renewed_lease_holds(kit: Kit) -> None:
    """A renewed message stays with its owner; one that is not renewed is lost.

    Renewing a lost claim answers False.
    """
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
            "the answer to a renewal",
            look,
        )

    kit.same(
        kit.ids(await kit.receive(other, wait=0.05)),
        ["b"],
        "messages for another consumer",
        look,
    )

    asked = [a.receipt, b.receipt, b"nobody's"]
    actual = list(await kit.within(backend.renew(queue, asked, 30.0)))
    kit.same(actual, [True, False, False], "answers for a kept, a lost and an unknown claim", look)
    kit.same(
        await kit.settle(owner, Ack(a.receipt), Ack(b.receipt)),
        [DONE, STALE],
        "outcomes of their settlements",
        look,
    )


@case("G5", ids="L01", needs=LEASES, protocols=(SupportsRenew,))
async def any_open_instance_may_renew_and_settle(kit: Kit) -> None:
    """Receipts are at most 64 bytes and work on every instance.

    The thread that renews has an instance of its own.
    """
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
        "messages for another consumer",
        "SupportsRenew.renew: the new lease",
    )
    kit.same(
        await kit.settle(second, Ack(delivery.receipt)),
        [DONE],
        "the ack by another instance",
        "Subscription.settle",
    )
    kit.same(
        await kit.settle(owner, Ack(delivery.receipt)),
        [STALE],
        "a second ack by the owner",
        "Subscription.settle",
    )


@case("G5", ids="L02", needs=LEASES, protocols=(SupportsRenew,))
async def what_was_settled_cannot_be_renewed(kit: Kit) -> None:
    """Renewing a settled message, or one of a missing queue, answers False and restores nothing."""
    backend, queue = cast("SupportsRenew", kit.backend), await kit.queue()
    await kit.put(queue, "a", "b")
    consumer = await kit.subscribe(queue)
    a, b = await kit.take(consumer, 2)
    await kit.settle(consumer, Ack(a.receipt), Release(b.receipt))
    look = "SupportsRenew.renew"
    actual = await kit.within(backend.renew(queue, [a.receipt, b.receipt], 30.0))
    kit.same(list(actual), [False, False], "renewals of settled messages", look)
    kit.same(
        list(await kit.within(backend.renew(kit.name(), [a.receipt], 30.0))),
        [False],
        "a renewal in a missing queue",
        look,
    )
    kit.same(
        list((await kit.contents(queue)).elements()), [b.message.id], "messages in the queue", look
    )


@case("G5", ids="L02", needs=LEASES, protocols=(SupportsRenew,))
async def a_lost_lease_cancels_the_handler_and_shows_in_its_context(kit: Kit) -> None:
    """When a renewal answers False, the handler is cancelled and `ctx.lease_lost` is set.

    Nothing is settled for it.
    """
    renewals, jobs = Renewals(kit), Queue(kit.name(), str)
    broker = await kit.broker(make_backend=renewals.make)
    began, cancelled, seen = asyncio.Event(), asyncio.Event(), []

    async def handler(_: str, ctx: Context) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(ctx.lease_lost)
            cancelled.set()

    await kit.within(broker.publish(jobs, "x"))
    await kit.worker(broker, jobs, handler, lease=LEASE, retry=ONCE, prefetch=1, concurrency=1)
    await kit.within(began.wait(), what="the handler started")
    rival = await kit.subscribe(jobs.name)
    (taken,) = await kit.take(rival, 1)
    renewals.through = True
    await kit.within(cancelled.wait(), what="the handler cancelled by its lost lease")
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
    """While a handler runs, its message and those waiting behind it are not given to others."""
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
    actual = await kit.receive(rival, wait=SEVERAL * LEASE)
    kit.same(kit.ids(actual), [], "messages for the other consumer", "SupportsRenew.renew")
    kit.true(ended.is_set(), "the first handler run to its end", starts, "SupportsRenew.renew")
    kit.true(len(set(starts)) == len(starts), "each started once", starts, "SupportsRenew.renew")


@case("G13", "G4", ids="L04 R09")
async def what_waits_behind_a_running_handler_goes_back_at_once(kit: Kit) -> None:
    """A drain returns messages that wait behind a running handler at once, not as taken over."""
    jobs, broker, began, go = (
        Queue(kit.name(), str),
        await kit.broker(),
        asyncio.Event(),
        asyncio.Event(),
    )

    async def handler(_: str) -> None:
        began.set()
        await go.wait()

    await kit.within(broker.publish_many(jobs, list("abcde")))
    worker = await kit.worker(broker, jobs, handler, concurrency=1, prefetch=5, retry=ONCE)
    await kit.within(began.wait(), what="the handler started")
    draining = await kit.start(worker.drain(kit.harness.patience))
    got = await kit.take(await kit.subscribe(jobs.name), 4)
    kit.true(
        not draining.done(),
        "the drain still waiting for its handler",
        "it has ended",
        "Subscription.settle: Release",
    )

    marks = {(delivery.attempt, delivery.takeovers) for delivery in got}
    kit.same(marks, {(1, 0)}, "attempt and takeovers of the four", "Subscription.settle: Release")

    go.set()
    await kit.within(draining)


@case("G5", ids="L01", needs=LEASES, protocols=(SupportsRenew,))
async def renewal_goes_on_while_the_consumers_loop_is_blocked(kit: Kit) -> None:
    """A handler that blocks the event loop for several leases keeps its message.

    A thread renews with its own instance.
    """
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
        "starts of the handler, and messages for the other consumer",
        "SupportsRenew.renew: another instance",
    )
