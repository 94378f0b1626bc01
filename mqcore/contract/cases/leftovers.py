"""Profile *leftovers*: what is closed or settled leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.resources import ProcessResources
from mqcore.errors import MqcoreError
from mqcore.messages.message import new_id
from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Capability,
    ErrorKind,
    Outgoing,
    QueueSpec,
    Release,
    Settlement,
    SupportsBrowse,
    SupportsCount,
    SupportsDelete,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqcore.contract.kit import Kit
    from mqcore.spi import Backend

_REFUSED, _CLOSE, _LONG = 5.0, 2.0, 600.0
"""Seconds: limits for a refused connect and for a close, and a receive that the case ends."""
_CLOSES = "Backend.close: release everything"
_OPENS = "Backend.open: leave nothing open when it fails"
_KEPT = "Subscription.settle: remove every trace of the message"
_STEPS = (0, 1, 2, 3, 5, 8, 13, 21, 34)
"""Turns of the event loop after which an `open` is cancelled."""


# In this process


@case("G14", ids="C01", hooks=("make_unreachable",))
async def an_address_where_nobody_listens_is_an_error_soon(kit: Kit) -> None:
    """Opening a closed port raises within 5 s and leaves no socket, thread or task.

    Connecting a Broker then raises an error of mqcore.
    """
    unreachable = kit.harness.make_unreachable()
    await kit.within(kit.backend.close(), _CLOSE)
    before = ProcessResources()

    for _ in range(2):
        opening = kit.within(unreachable.open(kit.lost.append), _REFUSED)
        error = await kit.raises(
            Exception, opening, "an error of open at a closed port", "Backend.open"
        )
        kit.kind(error, ErrorKind.TRANSIENT)
        await before.gone("after an open that failed", _OPENS)

    await kit.within(unreachable.close(), _CLOSE)
    connecting = kit.within(kit.broker(make_backend=kit.harness.make_unreachable), _REFUSED)
    await kit.raises(MqcoreError, connecting, "an error of mqcore", "Backend.open")
    await before.gone("after a connect that failed", _OPENS)


@case("G14", ids="C03", alone=True)
async def nothing_of_an_instance_is_left_after_its_close(kit: Kit) -> None:
    """A closed instance leaves no socket, thread or task, three times in a row.

    When it closes, one consumer waits, another holds messages, and a publish has just ended.
    """
    queue, backend = await kit.queue(), kit.harness.make_backend()
    await kit.within(kit.backend.close(), _CLOSE)
    before = ProcessResources()

    for turn in range(3):
        await kit.within(backend.open(kit.lost.append))
        batch = [Outgoing(queue, kit.message(f"{turn}-{number}")) for number in range(3)]
        kit.same(
            await kit.publish(*batch, backend=backend), [STORED] * 3, "stored", "Backend.publish"
        )

        holds = await kit.subscribe(queue, prefetch=2, lease=2.0, backend=backend)
        first, _ = await kit.take(holds, 2)
        await kit.ack(holds, [first])
        waits = await kit.subscribe(queue, prefetch=100, lease=2.0, backend=backend)
        await kit.drain(waits)
        waiting = await kit.start(waits.receive(1, _LONG))

        await kit.within(backend.close(), _CLOSE)
        await kit.within(asyncio.gather(waiting, return_exceptions=True), 1.0)
        await before.gone("after close", _CLOSES)


@case("G14", ids="C01 C07", alone=True)
async def nothing_is_left_of_an_open_that_was_cancelled(kit: Kit) -> None:
    """A cancelled `open` leaves nothing behind, and the instance can be opened again."""
    backend = kit.harness.make_backend()
    await kit.within(kit.backend.close(), _CLOSE)
    before = ProcessResources()

    for steps in _STEPS:
        opening = asyncio.create_task(backend.open(kit.lost.append))
        for _ in range(steps):
            await asyncio.sleep(0)
        opening.cancel()
        with suppress(asyncio.CancelledError):
            await kit.within(opening)
        await kit.within(backend.close(), _CLOSE)
        await before.gone(f"after an open that was cancelled at step {steps}", _CLOSES)

    await kit.open(backend)
    queue = kit.name()
    kit.same(
        await _works(kit, backend, queue),
        [STORED],
        "the outcome of a publish after open",
        "Backend.open",
    )


async def _works(kit: Kit, backend: Backend, queue: str) -> list[object]:
    """Declare a queue and publish a message with this instance."""
    await kit.within(backend.declare([QueueSpec(name=queue)]))
    return list(await kit.publish(Outgoing(queue, kit.message()), backend=backend))


# In the broker


@case("G2", "G3", ids="C40", alone=True)
async def nothing_that_was_settled_is_left_in_the_broker(kit: Kit) -> None:
    """Settled messages are gone from counts, browse, and the storage where it can be searched."""
    queue, body = await kit.queue(), f"body-{new_id()}".encode()
    before = await _stored(kit, body)
    consumer = await kit.subscribe(queue)
    batch = [Outgoing(queue, kit.message(f"{number}", body=body)) for number in range(30)]
    if kit.capabilities.has(Capability.DELAY):
        batch += [
            Outgoing(queue, kit.message(f"later-{number}", body=body), 0.2) for number in range(3)
        ]
    kit.same(await kit.publish(*batch), [STORED] * len(batch), "stored", "Backend.publish")
    await _sees_them(kit, before, body, len(batch))

    held = await kit.take(consumer, len(batch))
    released = held[:10]
    settlements: list[Settlement] = [Release(delivery.receipt) for delivery in released]
    settlements += [kit.successor(item, f"{queue}.dlq") for item in held[10:20]]
    settlements += [Ack(delivery.receipt) for delivery in held[20:]]
    kit.same(
        await kit.settle(consumer, *settlements),
        [DONE] * len(held),
        "outcomes of the settlement",
        "Subscription.settle",
    )
    await kit.ack(consumer, await kit.take(consumer, len(released)))
    await kit.within(consumer.close())
    kit.same(
        (await kit.contents(f"{queue}.dlq")).total(),
        10,
        "number of messages in the dead-letter queue",
        "Subscription.settle: Move",
    )

    for name in (queue, f"{queue}.dlq", f"{queue}.quarantine"):
        await _is_empty(kit, name)
    await _no_more_than(kit, before, body)
    await _leaves_no_place(kit, queue, body)


async def _stored(kit: Kit, body: bytes) -> Mapping[str, int]:
    """Count the messages with this body in the broker's storage, where the harness can."""
    return await kit.within(kit.harness.stored(body), 60.0) if kit.harness.has("stored") else {}


async def _sees_them(kit: Kit, before: Mapping[str, int], body: bytes, count: int) -> None:
    """Fail unless the harness finds the stored messages, or it could not find traces later."""
    deadline = kit.now + kit.harness.patience

    while kit.harness.has("stored"):
        seen = (Counter(await _stored(kit, body)) - Counter(before)).total()
        if seen >= count:
            return
        kit.true(
            kit.now < deadline,
            f"{count} messages seen in the broker's storage",
            seen,
            "Harness.stored",
        )
        await kit.advance(0.2)


async def _is_empty(kit: Kit, queue: str) -> None:
    """Fail unless counts and browse soon show an empty queue."""
    deadline = kit.now + kit.harness.patience

    if isinstance(kit.backend, SupportsCount):
        while True:
            found = await kit.within(kit.backend.count([queue]))
            if not any(counts.total for counts in found):
                break
            kit.true(kit.now < deadline, f"0 ready, leased and delayed in {queue}", found, _KEPT)
            await kit.advance(0.1)

    if isinstance(kit.backend, SupportsBrowse):
        entries = await kit.within(cast("SupportsBrowse", kit.backend).browse(queue, 100))
        kit.same(
            [delivery.message.id for delivery in entries],
            [],
            f"what browse shows in {queue}",
            _KEPT,
        )


async def _no_more_than(kit: Kit, before: Mapping[str, int], body: bytes) -> None:
    """Fail unless each place of the broker's storage soon holds no more than before."""
    deadline = kit.now + kit.harness.patience

    while more := Counter(await _stored(kit, body)) - Counter(before):
        kit.true(
            kit.now < deadline, "no settled message in the broker's storage", dict(more), _KEPT
        )
        await kit.advance(0.2)


async def _leaves_no_place(kit: Kit, queue: str, body: bytes) -> None:
    """Delete the queue with its dead letters, and fail if the storage still names them."""
    if not isinstance(kit.backend, SupportsDelete):
        return
    for name in (queue, f"{queue}.dlq"):
        await kit.within(kit.backend.delete(name))

    places = [place for place in await _stored(kit, body) if queue in place]
    kit.same(
        places,
        [],
        "places of a deleted queue in the broker's storage",
        "delete: remove all that is the queue's",
    )
