"""Profile *foreign*: messages keep their content, and those of plain clients are handled."""

from __future__ import annotations

import asyncio
import gzip
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, TypeAdapter

from mqcore.consuming.context import Context
from mqcore.contract.case import case
from mqcore.contract.kit import NotShown
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import STORED, Capability, Message, Outgoing, Reason, Release, new_id

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


# Fidelity

_TTL = 60.0
_BODIES = {
    "empty": b"",
    "zero": b"\x00",
    "all-bytes": bytes(range(256)),
    "utf-8": "Grüße, 世界".encode(),
    "no-utf-8": b"\xff\xfe not UTF-8",
    "large": b"x" * 1024 * 1024,
}


@case("G17", ids="C25", each=_BODIES)
async def a_body_comes_back_byte_for_byte(kit: Kit, body: bytes) -> None:
    """A body of any bytes, from none to 1 MiB, comes back unchanged."""
    queue = await kit.queue()
    kit.same(
        await kit.publish(Outgoing(queue, kit.message(body=body))),
        [STORED],
        "stored",
        "Backend.publish",
    )

    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    actual = delivery.message.body
    kit.true(
        type(actual) is bytes and actual == body,
        f"{len(body)} equal bytes",
        f"{type(actual)} {actual[:60]!r}",
        "Backend.publish",
    )


@case("G17", ids="C28")
async def every_field_of_a_message_comes_back(kit: Kit) -> None:
    """Every field of a message comes back as it was published."""
    queue = await kit.queue()
    sent = kit.message(
        "id-with_~special!chars",
        headers={
            "plain": "text",
            "empty": "",
            "unicode": "Grüße 世界 \t end",
            "UPPER.lower_-9": "x" * 4_000,
        },
        content_type="application/json; charset=utf-8",
        encoding="identity",
        attempt=3,
        hop=4,
        correlation_id="c-1",
        reply_to="somewhere",
        failed_at=1_700_000_000.25,
        redriven=2,
    )
    kit.same(await kit.publish(Outgoing(queue, sent)), [STORED], "stored", "Backend.publish")

    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    for field in sent.__dataclass_fields__:
        actual, expected = getattr(delivery.message, field), getattr(sent, field)
        if field == "headers":
            actual, expected = dict(actual), dict(expected)
        kit.same(
            actual,
            expected,
            f"Message.{field}",
            "where the driver writes and reads it; mqcore.spi.pack and unpack",
        )


@case("G17")
async def what_is_changed_afterwards_changes_nothing(kit: Kit) -> None:
    """Later changes by the publisher or a consumer to body or headers are not seen by others."""
    queue = await kit.queue()
    headers, body = {"colour": "red"}, bytearray(b"before")
    batch = [Outgoing(queue, kit.message("a", headers=headers, body=body))]
    await kit.within(kit.backend.publish(batch, timeout=kit.harness.patience))
    headers["colour"] = "blue"
    body[:] = b"after!"
    batch.clear()
    consumer = await kit.subscribe(queue)

    for who in ("the publisher", "a consumer"):
        (delivery,) = await kit.take(consumer, 1)
        actual = dict(delivery.message.headers), bytes(delivery.message.body)
        kit.same(
            actual,
            ({"colour": "red"}, b"before"),
            f"headers and body, without what {who} changed",
            "Backend.publish: copy",
        )
        with suppress(TypeError):  # read-only headers are correct
            delivery.message.headers["colour"] = "green"  # type: ignore[index]  # this is what a consumer might try
        await kit.settle(consumer, Release(delivery.receipt))


# From a plain client


class Order(BaseModel):
    """A payload with a schema."""

    number: int


def _plain(body: bytes, **fields: Any) -> Message:
    return Message(id=new_id(), body=body, **fields)


async def _stored(kit: Kit, queue: str, *messages: Message) -> None:
    outcomes = await kit.publish(*[Outgoing(queue, message) for message in messages])
    kit.same(
        outcomes,
        [STORED] * len(messages),
        "all stored",
        "Backend.publish: optional fields of Message",
    )


@case("G17", ids="C27")
async def a_bare_message_is_a_first_attempt(kit: Kit) -> None:
    """A message with only id and body is a first attempt with the default priority."""
    queue, sent = await kit.queue(), _plain(b"plain \xff")
    await _stored(kit, queue, sent)
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    look = "where the driver reads a message; mqcore.spi.unpack"
    kit.same((delivery.attempt, delivery.message.priority), (1, 5), "attempt and priority", look)
    kit.same(
        (delivery.redelivered, delivery.takeovers),
        (False, 0),
        "redelivered, takeovers",
        "Subscription.receive",
    )

    for field in (
        "content_type",
        "published_at",
        "correlation_id",
        "reply_to",
        "expires_at",
        "failed_at",
        "death",
    ):
        kit.same(getattr(delivery.message, field), None, f"Message.{field}", look)

    kit.same(delivery.expires_in, None, "Delivery.expires_in", "Subscription.receive")
    kit.same(
        (delivery.message, dict(delivery.message.headers)),
        (sent, {}),
        "the message as it was sent",
        look,
    )


@case("G17", "G8", needs=(Capability.PRIORITY,))
async def a_bare_message_stands_at_the_default_priority(kit: Kit) -> None:
    """A message without a priority has priority 5."""
    if kit.limit(Capability.PRIORITY, "levels") < len(("low", "default", "high")):
        raise NotShown("tells fewer than three levels apart")
    queue = await kit.queue()
    await kit.put(queue, "low", priority=0)
    sent = _plain(b"plain")
    await _stored(kit, queue, sent)
    await kit.put(queue, "high", priority=10)
    got = kit.ids(await kit.take(await kit.subscribe(queue), 3))
    kit.same(
        got, ["high", sent.id, "low"], "messages in priority order", "Backend.publish: priority"
    )


_TYPES: dict[str, tuple[Any, bytes, str | None, Any]] = {
    "bytes": (bytes, b"\x00\xff", None, b"\x00\xff"),
    "text": (str, "Grüße".encode(), None, "Grüße"),
    "json": (TypeAdapter(Order), b'{"number": 3, "more": 1}', None, Order(number=3)),
    "json-that-says-so": (
        TypeAdapter(Order),
        b'{"number": "4"}',
        "application/json",
        Order(number=4),
    ),
    "json-in-utf-16": (
        TypeAdapter(Order),
        '{"number": 5}'.encode("utf-16"),
        "application/json; charset=utf-16",
        Order(number=5),
    ),
}


@case("G17", ids="C27", each=_TYPES)
async def a_handler_gets_what_a_plain_client_sent(
    kit: Kit, kind: tuple[Any, bytes, str | None, Any]
) -> None:
    """A plain client's message is decoded by its content type, else by the queue's codec."""
    payload, body, content_type, expected = kind
    broker, queue, facts = await kit.broker(), Queue(kit.name(), payload), list[Any]()
    actual = asyncio.Event()

    async def handler(value: Any, ctx: Context) -> None:
        facts.append(
            (value, ctx.attempt, ctx.priority, ctx.redelivered, ctx.published_at, dict(ctx.headers))
        )
        actual.set()

    await kit.within(broker.declare(queue))
    await _stored(kit, queue.name, _plain(body, content_type=content_type))
    worker = await kit.worker(broker, queue, handler)
    await kit.within(actual.wait(), what="the handler run")
    await kit.within(worker.drain())
    kit.same(
        facts,
        [(expected, 1, 5, False, None, {})],
        "value, attempt, priority, redelivered, published_at, headers",
        _READ,
    )
    kit.same(
        await kit.contents(queue.name),
        Counter(),
        "messages left in the queue after the ack",
        "Subscription.settle: Ack",
    )


@case("G17", "G11")
async def a_compressed_body_is_decoded_and_kept_as_it_was_sent(kit: Kit) -> None:
    """A handler gets a compressed body decoded; the dead letter keeps it as it was sent."""
    broker, queue = await kit.broker(), Queue(kit.name(), Order, retry=RetryPolicy(2, fixed(0)))
    actual: list[int] = []

    async def handler(order: Order) -> None:
        actual.append(order.number)
        raise ValueError

    await kit.within(broker.declare(queue))
    sent = _plain(gzip.compress(b'{"number": 7}'), content_type="application/json", encoding="gzip")
    bomb = _plain(
        gzip.compress(bytes(64 * 1024 * 1024)), content_type="application/json", encoding="gzip"
    )
    unknown = _plain(b"\x0b\x02\x80", content_type="application/json", encoding="br")
    await _stored(kit, queue.name, sent, bomb, unknown)
    worker = await kit.worker(broker, queue, handler)
    letters = await kit.take(await kit.subscribe(f"{queue.name}.dlq"), 3)
    await kit.within(worker.drain())
    look = "where the driver writes and reads Message.encoding; mqcore.spi.pack and unpack"
    kit.same(actual, [7, 7], "what the handler got", look)

    stored = {
        delivery.message.id: (delivery.message.body, delivery.message.encoding)
        for delivery in letters
    }
    kit.same(
        stored,
        {letter.id: (letter.body, letter.encoding) for letter in (sent, bomb, unknown)},
        "the dead letters",
        look,
    )

    reasons = {
        delivery.message.id: delivery.message.death and delivery.message.death.reason
        for delivery in letters
    }
    undecodable = Reason.UNDECODABLE
    expected = {sent.id: Reason.RETRIES_EXHAUSTED, bomb.id: undecodable, unknown.id: undecodable}
    kit.same(reasons, expected, "reasons of the dead letters", look)


_BAD: dict[str, tuple[bytes, str | None, Reason]] = {
    "no-json": (b"plain words", None, Reason.UNDECODABLE),
    "no-utf-8": (b'{"number": "\xff"}', "application/json", Reason.UNDECODABLE),
    "unknown-type": (b'{"number": 1}', "application/x-unheard-of", Reason.UNDECODABLE),
    "wrong-shape": (b'{"nombre": 1}', "application/json", Reason.INVALID),
    "empty": (b"", None, Reason.UNDECODABLE),
}


@case("G11", "G17", ids="C27 C34", each=_BAD)
async def what_cannot_be_read_is_dead_lettered_at_once(
    kit: Kit, bad: tuple[bytes, str | None, Reason]
) -> None:
    """An unreadable message is dead-lettered unchanged, without a handler or a retry.

    Its neighbours are handled.
    """
    body, content_type, reason = bad
    broker, queue = await kit.broker(), Queue(kit.name(), Order, retry=RetryPolicy(3, fixed(0)))
    handled: list[int] = []
    actual = asyncio.Event()

    async def handler(order: Order) -> None:
        handled.append(order.number)
        if order.number == 2:  # noqa: PLR2004 - the last one sent
            actual.set()

    await kit.within(broker.declare(queue))
    poison = _plain(body, content_type=content_type, headers={"h": "v"})
    await _stored(kit, queue.name, _plain(b'{"number": 1}'), poison, _plain(b'{"number": 2}'))
    worker = await kit.worker(broker, queue, handler, concurrency=1)
    await kit.within(actual.wait(), what="the handler run")
    (letter,) = await kit.take(await kit.subscribe(f"{queue.name}.dlq"), 1)
    await kit.within(worker.drain())
    kit.same(handled, [1, 2], "the other messages handled", "Subscription.settle")

    message, death = letter.message, letter.message.death
    kept = (message.id, message.body, message.content_type, dict(message.headers))
    kit.same(
        kept,
        (poison.id, body, content_type, {"h": "v"}),
        "the original message",
        "Subscription.settle: Move",
    )

    record = death and (death.reason, death.queue)
    kit.same(
        record,
        (reason, queue.name),
        "the record: reason and queue",
        "Subscription.settle: Move; mqcore.spi.pack",
    )
    kit.same(
        await kit.contents(queue.name),
        Counter(),
        "messages left in the queue",
        "Subscription.settle: Move",
    )


@case("G17", "G4", "G10", "G11")
async def a_bare_message_is_retried_and_dead_lettered_like_any_other(kit: Kit) -> None:
    """A plain client's message is retried and dead-lettered like any other, counting from 1."""
    broker, queue = await kit.broker(), Queue(kit.name(), retry=RetryPolicy(3, fixed(0)))
    attempts: list[int] = []

    async def handler(_: bytes, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ValueError

    await kit.within(broker.declare(queue))
    sent = _plain(b"plain")
    await _stored(kit, queue.name, sent)
    worker = await kit.worker(broker, queue, handler)
    (letter,) = await kit.take(await kit.subscribe(f"{queue.name}.dlq"), 1)
    await kit.within(worker.drain())
    kit.same(attempts, [1, 2, 3], "attempts", "Subscription.settle: Move")
    kit.same(
        (letter.message.id, letter.message.body),
        (sent.id, b"plain"),
        "id and body",
        "Subscription.settle: Move",
    )

    death = letter.message.death
    record = death and (death.reason, death.attempts)
    look = "Subscription.settle: Move; mqcore.spi.pack"
    kit.same(record, (Reason.RETRIES_EXHAUSTED, 3), "the record: reason and attempts", look)


@case("G17", "G6", needs=(Capability.EXPIRY,))
async def a_queues_ttl_counts_for_a_bare_message_too(kit: Kit) -> None:
    """A queue's ttl applies to a message without a publish time.

    It counts from publish where the broker has a clock, else from the first receipt.
    """
    queue = await kit.queue(ttl=_TTL)
    await _stored(kit, queue, _plain(b"plain"))
    (delivery,) = await kit.take(await kit.subscribe(queue), 1)
    remaining = delivery.expires_in
    kit.true(
        remaining is not None and 0 < remaining <= _TTL,
        "expires_in of at most 60 s",
        remaining,
        "Delivery.expires_in",
    )


@case("G17")
async def a_reply_goes_to_a_reply_queue_and_to_no_other(kit: Kit) -> None:
    """A worker sends replies to reply queues only, whatever `reply_to` a request names."""
    broker, queue, victim = await kit.broker(), Queue(kit.name()), await kit.queue()
    requests = [
        _plain(b"1", reply_to=name) for name in (victim, f"{victim}.dlq", "mq.registry", "mq.lost")
    ]
    handled: list[bytes] = []
    actual = asyncio.Event()

    async def handler(value: bytes) -> str:
        handled.append(value)
        if len(handled) == len(requests) + 1:
            actual.set()
        return "a reply"

    await kit.within(broker.declare(queue))
    await _stored(kit, queue.name, *requests)
    worker = await kit.worker(broker, queue, handler)
    answer = await kit.within(broker.request(queue, b"asked", result=str))
    await kit.within(actual.wait(), what="the handler run")
    await kit.within(worker.drain())
    look = "Backend.reply_queues"
    kit.same(answer, "a reply", "the reply to a request", look)
    kit.same(
        await kit.contents(victim), Counter(), "messages in a queue that is not a reply queue", look
    )
    kit.same(
        await kit.contents(f"{victim}.dlq"),
        Counter(),
        "messages in a queue that is not a reply queue",
        look,
    )
    kit.same(
        await kit.contents(queue.name),
        Counter(),
        "requests left in the queue",
        "Subscription.settle: Ack",
    )
    kit.same(broker.events.counts["reply.failed"], len(requests), "events reply.failed", look)


_READ = "where the driver reads a message; mqcore.spi.unpack"
