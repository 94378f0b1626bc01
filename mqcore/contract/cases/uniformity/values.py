"""What a stored message keeps."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.cases.uniformity.common import COPIES
from mqcore.contract.kit import NotShown
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    DONE,
    Capability,
    Death,
    Message,
    Move,
    Outgoing,
    Reason,
    Release,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.spi import Settlement


_DEATH = Death(
    reason=Reason.TIMEOUT,
    queue="some.queue",
    attempts=7,
    first_at=1_700_000_000.25,
    last_at=1_700_000_001.5,
    error_type="shop.Überlauf",
    error='two\nlines, "quoted", 世界 🐇',
    traceback="Traceback …\n" * 100,
)


def _full(kit: Kit) -> Message:
    """Return a message with every field set."""
    return kit.message(
        "a-1_~!",
        body=bytes(range(256)),
        content_type="application/json; charset=utf-8",
        headers={
            "plain": "text",
            "unicode": "Grüße 世界 🐇",
            "tab": "a\tb",
            "empty": "",
            "Upper.case_-9": "x" * 2000,
        },
        priority=7,
        attempt=3,
        hop=2,
        lineage="0badcafe",
        correlation_id="c-1",
        reply_to="mq.reply.somebody",
        failed_at=1_700_000_000.125,
        redriven=2,
        death=_DEATH,
    )


@case(
    "G17",
    "G3",
    "G10",
    "G11",
    ids="C26 C28 R07 X02",
    each={how: how for how in ("release", "crash", "move", "delay")},
)
async def every_field_survives(kit: Kit, how: str) -> None:
    """Every field of a message survives a release, a takeover, a Move and a delay."""
    if how == "delay" and not kit.capabilities.has(Capability.DELAY):
        raise NotShown("declares no DELAY")
    queue, victim, expected = await kit.queue(), await kit.open(), _full(kit)
    await kit.publish(Outgoing(queue, expected, 0.3 if how == "delay" else 0.0))
    consumer = await kit.subscribe(queue, lease=1.0, backend=victim)

    if how != "delay":
        (delivery,) = await kit.take(consumer, 1)
        move = Move(delivery.receipt, Outgoing(queue, delivery.message.moved(queue)))
        steps: dict[str, Settlement] = {"release": Release(delivery.receipt), "move": move}
        if how in steps:
            kit.same(await kit.settle(consumer, steps[how]), [DONE], how, "Subscription.settle")
        expected = expected.moved(queue) if how == "move" else expected

    await kit.kill(victim)
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    for name in (field.name for field in fields(Message)):
        actual, sent = getattr(delivery.message, name), getattr(expected, name)
        kit.same(actual, sent, f"Message.{name}", COPIES)


@case("G17", "G3", ids="U05")
async def what_is_moved_is_copied(kit: Kit) -> None:
    """Later changes by the mover to the successor's body or headers are not seen."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    consumer = await kit.subscribe(queue)
    (delivery,) = await kit.take(consumer, 1)
    headers, body = {"colour": "red"}, bytearray(b"before")
    move = kit.successor(delivery, f"{queue}.dlq", headers=headers, body=body)
    kit.same(await kit.settle(consumer, move), [DONE], "the Move", "Subscription.settle: Move")

    headers["colour"] = "blue"
    body[:] = b"after!"
    (got,) = await kit.take(await kit.subscribe(f"{queue}.dlq"), 1)
    actual = dict(got.message.headers), bytes(got.message.body)
    kit.same(
        actual,
        ({"colour": "red"}, b"before"),
        "the successor as it was moved",
        "Subscription.settle: Move, copy",
    )


@case("G17", ids="U05 R07")
async def payloads_are_encoded_and_copied(kit: Kit) -> None:
    """The next attempt sees no change of the publisher or a failed handler to the payload."""
    jobs, broker, seen, over = (
        Queue(kit.name(), list),
        await kit.broker(),
        list[Any](),
        asyncio.Event(),
    )

    async def handler(payload: list[Any]) -> None:
        seen.append(list(payload))
        payload.append("changed by a handler")
        if len(seen) == 1:
            raise ValueError
        over.set()

    payload = [1, {"two": [2.5, None, "Grüße"]}]
    await kit.within(broker.publish(jobs, payload))
    expected = [1, {"two": [2.5, None, "Grüße"]}]
    cast("dict[str, list[Any]]", payload[1])["two"].clear()
    await kit.worker(broker, jobs, handler, retry=RetryPolicy(2, fixed(0.0)))
    await kit.within(over.wait(), what="the second attempt")
    kit.same(
        seen,
        [expected, expected],
        "the payload as published, twice",
        "Backend.publish, Subscription.settle: copy",
    )
