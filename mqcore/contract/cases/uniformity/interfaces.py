"""The async and the blocking interface behave the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from mqcore import sync
from mqcore.clock import SystemClock
from mqcore.config.settings import Settings
from mqcore.contract.case import case
from mqcore.contract.cases.uniformity.common import COPIES
from mqcore.contract.kit import ContractError, NotShown
from mqcore.errors import (
    ConfigurationError,
    MqcoreError,
    QueueNotFound,
    ValidationError,
)
from mqcore.queue import Queue
from mqcore.rules.retry import RetryPolicy
from mqcore.spi import (
    Capability,
    Message,
    SupportsBrowse,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.contract.kit import Kit


ONCE = RetryPolicy(1)


async def _blocking(kit: Kit, work: Callable[[sync.Broker], Any]) -> Any:
    """Run `work` with a blocking Broker of the same server, in a thread and in real time."""

    def run() -> Any:
        options: Any = {
            "make_backend": kit.harness.make_backend,
            "settings": Settings(),
            "clock": SystemClock(),
        }
        with sync.Broker(**options) as broker:
            return work(broker)

    limited = asyncio.timeout(kit.harness.patience)
    try:
        async with limited:
            return await asyncio.to_thread(run)
    except TimeoutError:
        if not limited.expired():
            raise  # a timeout of the driver
        raise ContractError(
            f"the blocking call ends within {kit.harness.patience:g} s", "it has not ended"
        ) from None


@case("G17", ids="U04")
async def both_ways_to_publish_store_the_same(kit: Kit) -> None:
    """The blocking API stores the same message as the async API, and returns the same receipt."""
    queue, broker = Queue(kit.name(), dict), await kit.broker()
    options: dict[str, Any] = {"headers": {"note": "Grüße"}}
    if kit.capabilities.has(Capability.PRIORITY):
        options["priority"] = 8
    payload: dict[str, Any] = {"number": 1, "text": "世界"}
    async_receipt = await kit.within(broker.publish(queue, payload, id="async", **options))
    blocking_receipt = await _blocking(
        kit, lambda blocking: blocking.publish(queue, payload, id="sync", **options)
    )
    kit.same(
        (async_receipt.queues, async_receipt.duplicate),
        (blocking_receipt.queues, blocking_receipt.duplicate),
        "the same receipt",
    )

    messages = {
        delivery.message.id: delivery.message
        for delivery in await kit.take(await kit.subscribe(queue.name), 2)
    }

    for name in (field.name for field in fields(Message)):
        if name not in {"id", "published_at"}:
            kit.same(
                getattr(messages["sync"], name),
                getattr(messages["async"], name),
                f"the same Message.{name}",
                COPIES,
            )


_WRONG: dict[str, tuple[type[Exception], Callable[[Any, str], Any]]] = {
    "missing queue": (QueueNotFound, lambda broker, name: broker.publish(name, b"")),
    "wrong payload": (ValidationError, lambda broker, name: broker.publish(Queue(name, int), "x")),
    "priority": (ValidationError, lambda broker, name: broker.publish(name, b"", priority=11)),
    "ttl": (ValidationError, lambda broker, name: broker.publish(name, b"", ttl=0)),
    "option": (ConfigurationError, lambda broker, name: broker.publish(name, b"", colour="red")),
    "described twice": (
        MqcoreError,
        lambda broker, name: broker.declare(Queue(name, max_length=1), Queue(name, ttl=60)),
    ),
}


@case("G17", "G1", ids="U04", each=_WRONG)
async def both_ways_to_call_raise_the_same(
    kit: Kit, wrong: tuple[type[Exception], Callable[[Any, str], Any]]
) -> None:
    """The blocking API raises the same errors as the async API."""
    kind, ask = wrong
    broker, name = await kit.broker(), kit.name()
    one = await kit.raises(kind, ask(broker, name), kind.__name__)

    async def blocking() -> None:
        await _blocking(kit, lambda blocking: ask(blocking, name))

    try:
        await blocking()
    except kind as two:
        kit.same(type(two), type(one), "one type of error")
    else:
        kit.true(False, f"{kind.__name__} in the blocking API", "nothing was raised")  # noqa: FBT003 - the check's value


@case("G17", ids="U04", protocols=(SupportsBrowse,))
async def both_ways_to_consume_settle_the_same(kit: Kit) -> None:
    """The blocking API settles messages as the async API does."""
    if not kit.clock.real:
        raise NotShown(
            "a blocking consumer waits in real time: run the contract once with a real clock"
        )

    one, two = Queue(kit.name(), str), Queue(kit.name(), str)
    broker = await kit.broker()
    for queue in (one, two):
        await kit.within(broker.publish_many(queue, list("abc")))

    async with broker.consume(one, retry=ONCE, prefetch=3) as consumer:
        for how in ("ack", "release", "reject"):
            await kit.within(getattr(await kit.within(anext(consumer)), how)())
            if how == "release":
                await kit.within((await kit.within(anext(consumer))).ack())

    def work(blocking: sync.Broker) -> None:
        with blocking.consume(two, retry=ONCE, prefetch=3) as consumer:
            for how in ("ack", "release", "reject"):
                getattr(next(consumer), how)()
                if how == "release":
                    next(consumer).ack()

    await _blocking(kit, work)
    for queue in (one, two):
        kit.same(
            await kit.contents(queue.name),
            Counter(),
            "messages left in the queue",
            "Subscription.settle",
        )
        (letter,) = await kit.within(broker.dead_letters(queue).list())
        kit.same(
            (letter.reason, letter.attempts),
            ("rejected", 1),
            "reason and attempts of the dead letter",
            "Subscription.settle: Move",
        )
