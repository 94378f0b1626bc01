"""Middlewares that change the body on its way out change it back on every way in."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import BaseModel
from support.process_handlers import Point, jobs, points
from support.process_handlers import app as processes
from support.waiting import eventually

from mqcore import (
    Broker,
    Context,
    DeadLetter,
    DecodeError,
    Message,
    Queue,
    Received,
    Reject,
    RemoteError,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
    sync,
)
from mqcore.middleware import Middleware
from mqcore.testing import VirtualClock, memory_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Order(BaseModel):
    number: int
    note: str = "x" * 500


class Packed(Middleware):
    """Compresses."""

    def outgoing(self, message: Message) -> Message:
        return replace(
            message,
            body=zlib.compress(message.body),
            headers={**message.headers, "packed": "zlib"},
        )

    def incoming(self, message: Message) -> Message:
        headers = dict(message.headers)
        if headers.pop("packed", None) is None:
            return message
        return replace(message, body=zlib.decompress(message.body), headers=headers)


class Sealed(Middleware):
    """Encrypts, as far as a test needs it: a wrong key is noticed."""

    def __init__(self, key: int) -> None:
        self.key = key

    def outgoing(self, message: Message) -> Message:
        headers = {**message.headers, "sealed": message.content_type or ""}
        body = bytes(byte ^ self.key for byte in b"seal" + message.body)
        return replace(message, body=body, content_type="application/x-sealed", headers=headers)

    def incoming(self, message: Message) -> Message:
        headers = dict(message.headers)
        if (content_type := headers.pop("sealed", None)) is None:
            return message
        body = bytes(byte ^ self.key for byte in message.body)
        if not body.startswith(b"seal"):
            raise ValueError("the key is wrong")
        return replace(message, body=body[4:], content_type=content_type or None, headers=headers)


class Gzipped(Middleware):
    """Compresses by a content encoding, which mqcore undoes by itself."""

    def outgoing(self, message: Message) -> Message:
        packer = zlib.compressobj(wbits=31)
        return replace(
            message, body=packer.compress(message.body) + packer.flush(), encoding="gzip"
        )


WAYS = {
    "packed and sealed": (Packed, lambda: Sealed(7)),
    "gzipped and sealed": (Gzipped, lambda: Sealed(7)),
}
orders = Queue("orders", Order)
texts = Queue("texts", str)
ONCE = RetryPolicy(1, fixed(0))


@pytest.fixture(params=WAYS)
def middleware(request: pytest.FixtureRequest) -> list[Middleware]:
    return [make() for make in WAYS[request.param]]


@pytest.fixture
async def sealing(
    clock: VirtualClock, url: str, middleware: list[Middleware]
) -> AsyncIterator[Broker]:
    """A broker whose messages are compressed and sealed."""
    settings = Settings()
    async with Broker.connect(url, clock=clock, settings=settings, middleware=middleware) as broker:
        yield broker


@pytest.fixture
async def wrong(clock: VirtualClock, url: str) -> AsyncIterator[Broker]:
    """A client that has another key."""
    settings = Settings()
    keys = [Packed(), Sealed(8)]
    async with Broker.connect(url, clock=clock, settings=settings, middleware=keys) as broker:
        yield broker


async def stored(broker: Broker, queue: Queue[Any]) -> Message:
    """Return the one message of a queue as the broker stores it."""
    (entry,) = await broker.peek(queue)
    return entry.message


async def only_letter(broker: Broker, queue: Queue[Any]) -> DeadLetter:
    """Wait for the one dead letter of a queue."""
    letters: list[DeadLetter] = []

    async def has_come() -> bool:
        letters[:] = await broker.dead_letters(queue).list()
        return bool(letters)

    await eventually(has_come)
    (letter,) = letters
    return letter


async def is_sealed(broker: Broker, queue: Queue[Any]) -> bool:
    message = await stored(broker, queue)
    return b"number" not in message.body and message.content_type == "application/x-sealed"


@pytest.mark.parametrize("blocking", [False, True], ids=["async", "thread"])
async def test_a_handler_gets_what_was_published(
    sealing: Broker, serve: Any, *, blocking: bool
) -> None:
    seen: list[Any] = []

    async def handle(order: Order, ctx: Context) -> None:
        seen.append((order, dict(ctx.headers), ctx.content_type))

    def handle_blocking(order: Order, ctx: Any) -> None:
        seen.append((order, dict(ctx.headers), ctx.content_type))

    await sealing.publish(orders, Order(number=1), headers={"tenant": "north"})
    assert await is_sealed(sealing, orders)
    async with serve(orders, handle_blocking if blocking else handle, on=sealing):
        await eventually(lambda: seen)
    assert seen == [(Order(number=1), {"tenant": "north"}, "application/json")]


async def test_a_process_handler_and_its_reply(middleware: list[Middleware]) -> None:
    broker = Broker.connect(memory_url(), settings=Settings(), middleware=middleware)
    async with broker, Worker(processes, broker, grace=0):
        assert await broker.request(points, Point(x=4), result=Point) == Point(x=8)
        with pytest.raises(RemoteError, match="no such customer"):
            await broker.request(jobs, "reject no such customer", result=str)


async def test_a_batch(sealing: Broker, clock: VirtualClock, serve: Any) -> None:
    seen: list[Any] = []

    async def handle(batch: list[Received[Order]]) -> None:
        seen.extend((item.value.number, dict(item.headers)) for item in batch)

    await sealing.publish_many(orders, [Order(number=number) for number in range(3)])
    async with serve(orders, handle, on=sealing, batch=3):
        await clock.advance(1)
        await eventually(lambda: len(seen) == 3)
    assert seen == [(number, {}) for number in range(3)]


async def test_the_pull_api(sealing: Broker) -> None:
    await sealing.publish(orders, Order(number=1))
    async with sealing.consume(orders) as deliveries:
        delivery = await deliveries.get()
        assert delivery is not None
        assert (delivery.value, dict(delivery.headers)) == (Order(number=1), {})
        await delivery.ack()


def test_the_blocking_pull_api(middleware: list[Middleware]) -> None:
    settings = Settings()
    with sync.Broker.connect(memory_url(), settings=settings, middleware=middleware) as broker:
        broker.publish(orders, Order(number=1))
        with broker.consume(orders) as deliveries:
            delivery = deliveries.get(timeout=10)
            assert delivery is not None
            assert (delivery.value, dict(delivery.headers)) == (Order(number=1), {})
            delivery.ack()


async def test_a_request_and_its_replies(sealing: Broker, serve: Any) -> None:
    async def answer(order: Order) -> Order:
        if not order.number:
            raise Reject("no such order")
        return Order(number=order.number + 1)

    async with serve(orders, answer, on=sealing):
        assert await sealing.request(orders, Order(number=1), result=Order) == Order(number=2)
        with pytest.raises(RemoteError, match="no such order"):
            await sealing.request(orders, Order(number=0), result=Order)


async def test_a_dead_letter_keeps_the_stored_body_and_is_redriven(
    sealing: Broker, serve: Any
) -> None:
    refuses = True
    seen: list[Order] = []

    async def handle(order: Order) -> None:
        if refuses:
            raise Reject("not today")
        seen.append(order)

    await sealing.publish(orders, Order(number=1), headers={"tenant": "north"})
    published = await stored(sealing, orders)

    async with serve(orders, handle, on=sealing):
        letter = await only_letter(sealing, orders)
        assert letter.body == published.body
        assert letter.message.headers == published.headers
        assert letter.message.content_type == published.content_type
        assert letter.message.encoding == published.encoding

        refuses = False
        assert (await sealing.dead_letters(orders).redrive()).moved == (letter.id,)
        await eventually(lambda: seen)
    assert seen == [Order(number=1)]


async def test_a_retried_message_is_undone_once_for_each_attempt(
    sealing: Broker, clock: VirtualClock, serve: Any
) -> None:
    seen: list[tuple[Order, int]] = []

    async def handle(order: Order, ctx: Context) -> None:
        seen.append((order, ctx.attempt))
        if ctx.attempt == 1:
            raise ValueError("again")

    await sealing.publish(orders, Order(number=1))
    async with serve(orders, handle, on=sealing, retry=RetryPolicy(2, fixed(1))):
        await clock.advance(2)
        await eventually(lambda: len(seen) == 2)
    assert seen == [(Order(number=1), 1), (Order(number=1), 2)]


async def test_messages_of_other_publishers_come_as_they_are(
    sealing: Broker, broker: Broker
) -> None:
    await broker.publish(orders, Order(number=1))
    async with sealing.consume(orders) as deliveries:
        delivery = await deliveries.get()
        assert delivery is not None
        assert delivery.value == Order(number=1)


def never(*_: object) -> None:
    raise AssertionError("no handler may see it")


async def never_async(_: Order) -> None:
    never()


async def never_batch(_: list[Received[Order]]) -> None:
    never()


@pytest.mark.parametrize("way", ["handler", "batch", "pull"])
async def test_a_transform_that_fails_makes_the_message_undecodable(
    sealing: Broker, wrong: Broker, clock: VirtualClock, serve: Any, way: str
) -> None:
    await sealing.publish(orders, Order(number=1))
    published = await stored(sealing, orders)

    if way == "pull":
        async with wrong.consume(orders) as deliveries:
            getting = asyncio.create_task(deliveries.get(timeout=1))
            await clock.advance(1)
            assert await getting is None
    else:
        handler, options = (never_async, {}) if way == "handler" else (never_batch, {"batch": 2})
        async with serve(orders, handler, on=wrong, **options):
            await clock.advance(1)
            await eventually(lambda: wrong.events.counts["message.dead"])

    letter = await only_letter(sealing, orders)
    assert (letter.reason, letter.attempts) == ("undecodable", 0)
    assert (
        letter.error
        == "mqcore.errors.DecodeError: Sealed.incoming failed: ValueError: the key is wrong"
    )
    assert letter.body == published.body


async def test_a_transform_that_fails_before_a_process_handler() -> None:
    url = memory_url()
    keys, other = [Sealed(7)], [Sealed(8)]
    async with (
        Broker.connect(url, settings=Settings(), middleware=keys) as broker,
        Broker.connect(url, settings=Settings(), middleware=other) as wrong,
        Worker(processes, wrong, grace=0),
    ):
        with pytest.raises(DecodeError, match="the key is wrong"):  # the reply has the other key
            await broker.request(jobs, "echo hello", result=str)
        letter = await only_letter(broker, jobs)
        assert letter.reason == "undecodable"
