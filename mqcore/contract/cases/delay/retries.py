"""Delays of retries and releases, and delays that are cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.browse import shows_delayed
from mqcore.contract.cases.delay.common import (
    EARLY,
    NEEDS,
    OWN,
    arrival_times,
)
from mqcore.contract.kit import NotShown
from mqcore.errors import Retry
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    DONE,
    Ack,
    Move,
    Release,
    SupportsBrowse,
    SupportsTake,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


@case("G7", "G10", needs=NEEDS)
async def a_move_may_delay_its_successor(kit: Kit) -> None:
    """A Move with a delay removes its source at once and delivers its successor when it is due."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue, prefetch=1)
    (first,) = await kit.take(consumer, 1)
    began = kit.now
    kit.same(
        await kit.settle(consumer, kit.successor(first, queue, 0.6, attempt=2)),
        [DONE],
        "moved",
        "settle: Move",
    )

    (second,) = await kit.take(consumer, 1)
    kit.true(
        kit.now >= began + 0.6 - EARLY,
        "not before 0.6 s",
        f"{kit.now - began:.4f} s",
        "settle: Move with a delay",
    )

    seen = (second.message.id, second.attempt, second.redelivered)
    kit.same(seen, ("a", 2, False), "id, attempt, redelivered", "settle: Move with a delay")


@case("G7", "G10", needs=NEEDS)
async def a_retried_message_is_delayed_again_and_again(kit: Kit) -> None:
    """A message may be delayed ten times in a row: no loop counter or dedup window drops it."""
    queue, due = await kit.queue(), kit.now + 0.1
    await kit.put(queue, "a", delay=0.1)
    consumer = await kit.subscribe(queue)

    for attempt in range(1, 11):
        (delivery,) = await kit.take(consumer, 1)
        kit.true(
            kit.now >= due - EARLY,
            f"0.1 s before attempt {attempt}",
            f"{due - kit.now:.4f} s early",
            OWN,
        )
        due = kit.now + 0.1
        kit.same(
            delivery.attempt,
            attempt,
            "the attempt",
            "settle: Move of a message that was delayed before",
        )
        move = kit.successor(delivery, queue, 0.1, attempt=attempt + 1)
        kit.same(await kit.settle(consumer, move), [DONE], "moved", "settle: Move")


@case("G7", "G4", needs=NEEDS)
async def a_release_does_not_delay_again(kit: Kit) -> None:
    """A released message that was delayed before is ready at once."""
    queue = await kit.queue()
    await kit.put(queue, "a", delay=1.5)
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    began = kit.now
    await kit.settle(consumer, Release(delivery.receipt))
    await kit.take(consumer, 1)
    kit.true(
        kit.now - began < 1.0,
        "the released message at once",
        f"after {kit.now - began:.3f} s",
        "settle: Release",
    )


@case("G7", "G11", ids="D05", needs=NEEDS, protocols=(SupportsBrowse, SupportsTake))
async def a_delayed_message_can_be_cancelled_and_rescheduled(kit: Kit) -> None:
    """A delayed message can be taken: an Ack cancels it, and a Move gives it another time."""
    if not shows_delayed(kit):
        raise NotShown("BROWSE states that it does not show delayed messages")
    queue, browser = await kit.queue(), cast("SupportsBrowse", kit.backend)
    await kit.put(queue, "cancelled", "sooner", delay=60.0)
    entries = await kit.within(browser.browse(queue, 10))
    taken = await kit.within(
        cast("SupportsTake", kit.backend).take(queue, [entry.key for entry in entries], 30.0)
    )
    by_name = {delivery.message.id: delivery for delivery in taken}
    kit.same(set(by_name), {"cancelled", "sooner"}, "both taken", "SupportsTake.take")

    consumer = await kit.subscribe(queue)
    move: Move = kit.successor(by_name["sooner"], queue, 0.5)
    kit.same(
        await kit.settle(consumer, Ack(by_name["cancelled"].receipt), move),
        [DONE, DONE],
        "outcomes of the settlement",
        "take",
    )
    kit.same(
        list(await arrival_times(kit, consumer, 1)), ["sooner"], "the rescheduled message", "take"
    )
    kit.same(kit.ids(await kit.drain(consumer)), [], "further messages", "take")


@case("G10", "G7", ids="D03", needs=NEEDS)
async def the_wait_of_a_retry_occupies_no_handler(kit: Kit) -> None:
    """A worker with one slot handles other messages while one waits for its retry."""
    broker, queue = await kit.broker(), Queue(kit.name(), retry=RetryPolicy(2, fixed(1.0)))
    seen: asyncio.Queue[bytes] = asyncio.Queue()
    failed = set[bytes]()

    async def handler(body: bytes) -> None:
        await seen.put(body)
        if body == b"again" and body not in failed:
            failed.add(body)
            raise Retry

    await kit.worker(broker, queue, handler, concurrency=1, prefetch=1)
    for body in (b"again", b"other"):
        await kit.within(broker.publish(queue, body))
    order = [await kit.within(seen.get()) for _ in range(3)]
    kit.same(
        order,
        [b"again", b"other", b"again"],
        "the order of handling",
        "settle: Move with a delay",
    )
