"""Opening, losing and closing a connection, and what `classify` answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.core.common import CLOSE, LONG
from mqcore.contract.kit import ContractError
from mqcore.errors import ConnectionLost, PublishFailed, QueueNotFound
from mqcore.queue import Queue
from mqcore.spi import (
    ErrorKind,
    Failed,
    Outgoing,
    QueueSpec,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from mqcore.contract.kit import Kit


@case("G1")
async def classify_takes_any_exception(kit: Kit) -> None:
    """`classify` returns an ErrorKind for any exception, and never raises."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    errors = [
        ValueError("x"),
        OSError(111, "refused"),
        OSError(),
        TimeoutError(),
        RuntimeError(),
        KeyError("k"),
        Odd(),
    ]
    for error in [
        *errors,
        ConnectionLost("closed"),
        QueueNotFound("gone"),
        ExceptionGroup("two", errors),
    ]:
        try:
            kind: object = kit.backend.classify(error)
        except Exception as raised:  # noqa: BLE001 - this is what must not happen
            kind = f"{type(raised).__name__} raised"
        kit.true(
            isinstance(kind, ErrorKind),
            f"an ErrorKind for {type(error).__name__}",
            kind,
            "Backend.classify",
        )
    kind = kit.backend.classify(QueueNotFound("gone"))
    kit.same(kind, ErrorKind.NOT_FOUND, "the kind of QueueNotFound", "Backend.classify")


@case("G14", ids="C01 C02")
async def an_open_broker_is_connected(kit: Kit) -> None:
    """Broker.health reports connected and consuming separately, and neither after a close."""
    broker = await kit.broker()
    health = broker.health()
    kit.same(
        (health.connected, dict(health.consuming)),
        (True, {}),
        "connected, and queues consumed",
        "Backend.open",
    )

    queue = kit.name()
    async with broker.consume(Queue(queue), retry=kit.retry):
        kit.same(
            dict(broker.health().consuming), {queue: True}, "queues consumed", "Backend.subscribe"
        )

    await kit.within(broker.close())
    health = broker.health()
    kit.same(
        (health.connected, health.ok),
        (False, False),
        "connected and ok after close",
        "Broker.health",
    )


@case("G1", "G14", ids="C01 C02", hooks=("cut",))
async def a_silent_broker_holds_nobody_up(kit: Kit) -> None:
    """With the network cut, publish, close and connect end in time, and nothing is `Stored`.

    Publish ends by its timeout, close within 2 s, a connect fails within 15 s.
    """
    queue, backend = await kit.queue(), kit.harness.make_backend()
    await kit.within(backend.open(lambda _: None))
    async with cast("AbstractAsyncContextManager[None]", kit.harness.cut()):
        try:
            outcomes = list(
                await kit.within(
                    backend.publish([Outgoing(queue, kit.message())], timeout=1.0), 2.0
                )
            )
        except ContractError:
            raise  # it did not end in time
        except Exception as error:  # noqa: BLE001 - it may raise when nothing was sent
            kit.true(
                isinstance(backend.classify(error), ErrorKind),
                "an ErrorKind",
                error,
                "Backend.classify",
            )
        else:
            ended = isinstance(outcomes[0], (Failed, Unknown))
            kit.true(ended, "Failed or Unknown", outcomes, "Backend.publish: timeout")
        await kit.within(backend.close(), CLOSE + 0.5)
        opening = asyncio.gather(
            kit.harness.make_backend().open(lambda _: None), return_exceptions=True
        )
        (ending,) = await kit.within(opening, 15.0)
        kit.true(
            isinstance(ending, Exception),
            "an error of open without a network",
            ending,
            "Backend.open",
        )

    kit.lost.clear()  # the case itself cut the connection


@case("G14", ids="C03")
async def open_and_close_come_in_any_order_and_again(kit: Kit) -> None:
    """Close before open, close twice and open again all work, and confirmed messages are kept."""
    queue = await kit.queue()
    await kit.put(queue, "a")
    backend = kit.harness.make_backend()
    await kit.within(backend.close(), CLOSE)

    for _ in range(3):
        await kit.within(backend.open(kit.lost.append))
        await kit.within(backend.close(), CLOSE)
        await kit.within(backend.close(), CLOSE)

    await kit.open(backend)
    (delivery,) = await kit.take(await kit.subscribe(queue, backend=backend), 1)
    kit.same(
        delivery.message.id, "a", "the id of the message received after reopening", "Backend.open"
    )


@case("G14", "G17", ids="C03 C04 C33")
async def a_closed_broker_ends_its_consumers_and_refuses_to_publish(kit: Kit) -> None:
    """Closing a Broker ends its consumers without an exception, and later publishes are refused.

    Closing twice is not an error.
    """
    broker, queue = await kit.broker(), Queue(kit.name())
    seen, acked = list[bytes](), asyncio.Event()

    async def consume() -> None:
        async with broker.consume(queue, retry=kit.retry) as deliveries:
            async for delivery in deliveries:
                seen.append(delivery.value)
                await delivery.ack()
                acked.set()

    consuming = await kit.start(consume())
    await kit.within(broker.publish(queue, b"a"))
    await kit.within(acked.wait(), what="the message delivered and acked")
    await kit.within(broker.close())
    await kit.within(consuming)
    await kit.within(broker.close())
    kit.same(seen, [b"a"], "payloads until the iteration ends", "Subscription.close")
    await kit.raises(
        (PublishFailed, ConnectionLost),
        broker.publish(queue, b"b"),
        "PublishFailed",
        "Broker.close",
    )
    kit.same(
        await kit.contents(queue.name),
        Counter(),
        "messages in the queue",
        "Backend.close",
    )


@case("G1", ids="C04")
async def a_closed_instance_refuses_every_call_in_clear_words(kit: Kit) -> None:
    """Each call on a closed instance raises a TRANSIENT error whose text contains "closed"."""
    queue = await kit.queue()
    backend = await kit.open()
    consumer = await kit.subscribe(queue, backend=backend)
    await kit.within(backend.close(), CLOSE)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "Backend.publish": lambda: backend.publish([Outgoing(queue, kit.message())], timeout=1.0),
        "Backend.subscribe": lambda: backend.subscribe(queue, prefetch=1, lease=30.0),
        "Backend.declare": lambda: backend.declare([QueueSpec(name=queue)]),
        "Subscription.receive": lambda: consumer.receive(1, 0.0),
    }

    for name, call in calls.items():
        error = await kit.raises(Exception, call(), f"an error of {name} after close", name)
        kit.true("close" in str(error).lower(), 'an error text with the word "closed"', error, name)
        kit.kind(error, ErrorKind.TRANSIENT)

    kit.same(await kit.contents(queue), Counter(), "messages stored", "Backend.publish")


@case("G2", ids="C04 C09")
async def a_consumer_closes_at_once_and_for_good(kit: Kit) -> None:
    """Closing a consumer takes under 2 s, ends a waiting receive with `[]`, and may be repeated.

    A later `receive` raises an error that says the consumer is closed.
    """
    consumer = await kit.subscribe(await kit.queue())
    waiting = await kit.start(consumer.receive(10, LONG))
    await kit.within(consumer.close(), CLOSE)
    kit.same(
        list(await kit.within(waiting, 1.0)),
        [],
        "messages of a waiting receive at close",
        "Subscription.close",
    )

    await kit.within(consumer.close(), CLOSE)
    error = await kit.raises(
        Exception, consumer.receive(1, 0.0), "an exception", "Subscription.receive after close"
    )
    kit.true(
        "close" in str(error).lower(),
        'an error text with the word "closed"',
        error,
        "Subscription.receive",
    )


@case("G2", "G13", ids="C09")
async def a_full_consumer_closes_at_once_too(kit: Kit) -> None:
    """A consumer that holds its whole prefetch closes within 2 s, and so does its instance."""
    queue = await kit.queue()
    await kit.put(queue, *"abc")
    for close_all in (False, True):
        backend = await kit.open()
        consumer = await kit.subscribe(queue, prefetch=1, lease=2.0, backend=backend)
        await kit.take(consumer, 1)
        waiting = await kit.start(consumer.receive(1, LONG))
        kit.true(
            not waiting.done(),
            "a receive that waits while the prefetch is used up",
            waiting,
            "Subscription.receive: prefetch",
        )
        await kit.within(backend.close() if close_all else consumer.close(), CLOSE)
        await kit.within(asyncio.gather(waiting, return_exceptions=True), 1.0)

    kit.same(
        len(await kit.take(await kit.subscribe(queue), 3)),
        3,
        "number of messages in the queue",
        "Subscription.close",
    )
