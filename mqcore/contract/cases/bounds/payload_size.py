"""The size of a payload: what is too large is refused, and what fits arrives whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.kit import NotShown
from mqcore.errors import MessageTooLarge
from mqcore.messages.message import Limits
from mqcore.queue import Queue
from mqcore.spi import (
    DONE,
    Capability,
    Death,
    ErrorKind,
    Failed,
    Outgoing,
    Reason,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.contract.kit import Kit
    from mqcore.spi import Backend, Capabilities


_LIMITS = Limits()


_MANY = {f"h{number}": "v" for number in range(_LIMITS.headers)}


_LONG = {f"h{number}": "v" * 4_000 for number in range(4)}


_VALUE = {"h": "v" * _LIMITS.header_value}


@case(
    "G12",
    ids="B05",
    each={
        "payload": (b"x" * (_LIMITS.payload + 1), {}),
        "number of headers": (b"", {**_MANY, "more": "v"}),
        "bytes of headers": (b"", {**_LONG, "more": "v" * 400}),
        "one header": (b"", {"h": _VALUE["h"] + "v"}),
    },
)
async def what_is_too_large_is_refused_before_any_io(
    kit: Kit, message: tuple[bytes, dict[str, str]]
) -> None:
    """A message above a size limit raises `MessageTooLarge` with its id, and nothing is sent.

    Not even its queue is declared.
    """
    body, headers = message
    broker, name = await kit.broker(), kit.name()
    work = broker.publish(Queue(name), body, headers=headers, id="mine")
    error = cast(
        "MessageTooLarge",
        await kit.raises(MessageTooLarge, work, "MessageTooLarge", "Broker.publish"),
    )
    kit.same(error.id, "mine", "the message's id", "MessageTooLarge.id")

    (outcome,) = await kit.publish(Outgoing(name, kit.message()))
    missing = isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
    kit.true(missing, "no I/O: the queue is still missing", outcome, "Broker.publish")


@case(
    "G12",
    ids="B05",
    each={
        "payload": (b"\x00\xff" * (_LIMITS.payload // 2), {}),
        "number of headers": (b"", _MANY),
        "bytes of headers": (b"", _LONG),
        "one header": (b"", _VALUE),
    },
)
async def what_is_just_small_enough_arrives_whole(
    kit: Kit, message: tuple[bytes, dict[str, str]]
) -> None:
    """A message at the size limits arrives whole, with a delay and without.

    1 MiB of payload, 64 headers and 16 KiB of headers are promised on every backend.
    """
    body, headers = message
    body = body[: kit.capabilities.max_payload]
    broker, queue = await kit.broker(), Queue(kit.name())
    delays: list[dict[str, Any]] = (
        [{}, {"delay": 0.1}] if kit.capabilities.has(Capability.DELAY) else [{}]
    )
    consumer = None

    for delay in delays:
        await kit.within(broker.publish(queue, body, headers=headers, **delay))
        consumer = consumer or await kit.subscribe(queue.name)
        (delivery,) = await kit.take(consumer, 1)
        kit.true(
            delivery.message.body == body,
            "the body, byte for byte",
            f"{len(delivery.message.body)} bytes",
            "publish",
        )
        kit.same(dict(delivery.message.headers), headers, "the headers", "Backend.publish")
        await kit.ack(consumer, [delivery])


@case("G12", ids="B05")
async def more_than_a_stated_max_payload_is_refused_before_any_io(kit: Kit) -> None:
    """A message above the driver's own `max_payload` raises `MessageTooLarge` before any I/O.

    A message of exactly `max_payload` bytes arrives.
    """

    def make() -> Backend:
        backend = kit.harness.make_backend()
        inner = backend.open

        async def opened(lost: Callable[[Exception], None]) -> Capabilities:
            return replace(await inner(lost), max_payload=100)

        backend.open = opened  # type: ignore[method-assign]  # the author's own, which states a number
        return backend

    broker, queue = await kit.broker(make_backend=make), Queue(kit.name())
    work = broker.publish(queue, b"x" * 101, id="mine")
    error = cast(
        "MessageTooLarge",
        await kit.raises(MessageTooLarge, work, "MessageTooLarge", "Broker.publish"),
    )
    kit.same(error.id, "mine", "the message's id", "MessageTooLarge.id")

    (outcome,) = await kit.publish(Outgoing(queue.name, kit.message()))
    missing = isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
    kit.true(missing, "no I/O: the queue is still missing", outcome, "Broker.publish")

    await kit.within(broker.publish(queue, b"x" * 100, id="whole"))
    kit.same(
        await kit.contents(queue.name),
        Counter(["whole"]),
        "messages of exactly max_payload bytes",
        "Broker.publish",
    )


@case("G12", "G3", ids="B05")
async def a_stated_max_payload_is_carried_whole(kit: Kit) -> None:
    """A message of `max_payload` bytes arrives whole, and so does its dead letter.

    It has as many headers as core allows, and its death record is the longest: what core adds must
    fit beside the payload.
    """
    limit = kit.capabilities.max_payload
    if limit is None:
        raise NotShown("states no max_payload: the broker's own limit is above what core sends")
    body, jobs = b"\x00\xff" * (limit // 2), Queue(kit.name())
    broker = await kit.broker(limits=replace(_LIMITS, payload=limit))
    await kit.within(broker.publish(jobs, body, headers=_LONG))
    consumer = await kit.subscribe(jobs.name)
    (delivery,) = await kit.take(consumer, 1)
    kit.true(
        delivery.message.body == body,
        "the body, byte for byte",
        f"{len(delivery.message.body)} bytes",
        "publish",
    )

    now = kit.clock.now()
    death = Death(
        reason=Reason.REJECTED,
        queue=jobs.name,
        attempts=3,
        first_at=now,
        last_at=now,
        error="e" * 2_000,
        traceback="t" * 4_000,
    )
    settled = await kit.settle(consumer, kit.successor(delivery, f"{jobs.name}.dlq", death=death))
    kit.same(
        settled,
        [DONE],
        "its dead letter stored",
        "Subscription.settle: a Move of the largest message",
    )
    letters = await kit.take(await kit.subscribe(f"{jobs.name}.dlq"), 1)
    kit.true(
        letters[0].message.body == body,
        "the dead letter's body",
        f"{len(letters[0].message.body)} bytes",
        "settle",
    )
