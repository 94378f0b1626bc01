"""What an application sees of expiry."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.ttl.common import BOTH, EXPIRES_IN, NEEDS, time_left
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    Delivery,
    Reason,
    SupportsBrowse,
    SupportsTake,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


async def _letter(kit: Kit, queue: str) -> Delivery:
    """Receive the dead letter of a queue."""
    (letter,) = await kit.take(await kit.subscribe(f"{queue}.dlq"), 1)
    return letter


@case("G6", "G11", ids="T09", needs=NEEDS)
async def an_expired_message_is_dead_lettered_with_its_reason(kit: Kit) -> None:
    """A worker dead-letters an expired message as `expired`, without an attempt."""
    broker, queue = await kit.broker(), Queue(kit.name())
    started: asyncio.Queue[bytes] = asyncio.Queue()
    await kit.within(broker.publish(queue, b"\x00brief", ttl=0.3, headers={"h": "v"}))
    await kit.advance(0.5)
    await kit.worker(broker, queue, started.put)
    await kit.within(broker.publish(queue, b"patient"))
    kit.same(await kit.within(started.get()), b"patient", "the message handled", EXPIRES_IN)

    message = (await _letter(kit, queue.name)).message
    death = message.death
    kit.true(death, "a record of the death", "none", "Message.death")

    if death is not None:
        actual = (death.reason, death.queue, death.attempts)
        kit.same(actual, (Reason.EXPIRED, queue.name, 0), "reason, queue and attempts", EXPIRES_IN)
    kit.same(
        (message.body, dict(message.headers)),
        (b"\x00brief", {"h": "v"}),
        "body and headers",
        "Message",
    )


@case("G6", "G2", ids="T09", needs=NEEDS)
async def an_expired_message_without_a_dead_letter_queue_is_dropped_and_counted(kit: Kit) -> None:
    """Without a dead-letter queue an expired message is dropped, and an event reports it."""
    broker, queue = await kit.broker(), Queue(kit.name(), dead_letter=None)
    dropped = asyncio.Event()
    broker.events.listen(lambda event: dropped.set() if event.name == "message.dropped" else None)
    await kit.within(broker.publish(queue, b"", ttl=0.3))
    await kit.advance(0.5)
    worker = await kit.worker(broker, queue, asyncio.Queue[bytes]().put)
    await kit.within(dropped.wait(), what="the event message.dropped")
    await kit.within(worker.drain(0))
    kit.same(await kit.contents(queue.name), Counter(), "messages left in the queue", EXPIRES_IN)


@case("G6", ids="T08", needs=NEEDS)
async def what_expires_behind_a_busy_handler_never_starts(kit: Kit) -> None:
    """A prefetched message that expires before its turn is dead-lettered, not started."""
    broker, queue = await kit.broker(), Queue(kit.name())
    started: asyncio.Queue[bytes] = asyncio.Queue()
    go = asyncio.Event()

    async def handler(body: bytes) -> None:
        await started.put(body)
        await go.wait()

    await kit.within(broker.publish(queue, b"busy"))
    await kit.worker(broker, queue, handler, concurrency=1, prefetch=3)
    await kit.within(started.get())
    await kit.within(broker.publish(queue, b"brief", ttl=0.8))
    await kit.within(broker.publish(queue, b"patient"))
    await kit.advance(1.0)
    go.set()
    kit.same(await kit.within(started.get()), b"patient", "the next to start", EXPIRES_IN)

    letter = await _letter(kit, queue.name)
    kit.same(
        (letter.message.body, letter.expires_in), (b"brief", None), "the dead letter", EXPIRES_IN
    )


@case("G6", ids="T08", needs=NEEDS)
async def the_pull_api_does_not_hand_out_what_has_expired(kit: Kit) -> None:
    """The pull API does not return a message that expired after it was received."""
    broker, queue = await kit.broker(), Queue(kit.name())
    await kit.within(broker.publish(queue, b"a"))
    await kit.within(broker.publish(queue, b"brief", ttl=0.8))

    async with broker.consume(queue) as deliveries:
        await kit.within((await kit.within(anext(deliveries))).ack())
        await kit.advance(1.0)
        kit.same(
            await kit.within(deliveries.get(timeout=kit.harness.silence)),
            None,
            "the message returned by get",
            EXPIRES_IN,
        )

    kit.same((await _letter(kit, queue.name)).message.body, b"brief", "the dead letter", EXPIRES_IN)


@case("G6", "G10", needs=BOTH)
async def a_retry_that_would_come_too_late_is_buried_at_once(kit: Kit) -> None:
    """A retry that would come after the expiry is dead-lettered at once as `expired`."""
    broker, queue = await kit.broker(), Queue(kit.name(), retry=RetryPolicy(5, fixed(60.0)))
    await kit.within(broker.publish(queue, b"a", ttl=30.0))
    async with broker.consume(queue) as deliveries:
        await kit.within((await kit.within(anext(deliveries))).retry())
    death = (await _letter(kit, queue.name)).message.death
    kit.same(
        death and (death.reason, death.attempts),
        (Reason.EXPIRED, 1),
        "reason and attempts of the dead letter",
        "Broker.consume: retry",
    )


@case("G6", "G11", ids="T10", needs=NEEDS, protocols=(SupportsBrowse, SupportsTake))
async def a_redrive_clears_the_expiry(kit: Kit) -> None:
    """A redriven message does not expire again."""
    broker, queue = await kit.broker(), Queue(kit.name())
    await kit.within(broker.publish(queue, b"a", ttl=0.3))
    await kit.advance(0.5)
    handled: asyncio.Queue[bytes] = asyncio.Queue()
    letters = broker.dead_letters(queue)
    dead_lettered = asyncio.Event()
    broker.events.listen(
        lambda event: dead_lettered.set() if event.name == "message.dead" else None
    )
    worker = await kit.worker(broker, queue, handled.put)
    await kit.within(dead_lettered.wait(), what="the event message.dead")
    await kit.within(worker.drain(0))
    await kit.within(letters.redrive())
    await kit.advance(0.5)
    kit.same(
        list((await time_left(kit, queue.name)).values()),
        [None],
        "expires_in after the redrive",
        "DeadLetters.redrive",
    )
