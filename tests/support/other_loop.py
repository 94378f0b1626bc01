"""Every call of a Broker by its name, and a way to make one from another event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mqcore import Broker, Consumer, Queue, Router

__all__ = ["CALLS", "elsewhere"]


async def _consume(broker: Broker, queue: Queue[str], _: Router[str], __: Consumer[str]) -> None:
    async with broker.consume(queue):
        pass


async def _unwrap(broker: Broker, _: Queue[str], __: Router[str], ___: Consumer[str]) -> None:
    broker.unwrap(object)


CALLS: Mapping[str, Callable[[Broker, Queue[str], Router[str], Consumer[str]], Awaitable[Any]]] = {
    "open": lambda broker, queue, router, consumer: broker.open(),
    "publish": lambda broker, queue, router, consumer: broker.publish(queue, "x"),
    "publish to a router": lambda broker, queue, router, consumer: broker.publish(
        router, "x", key="k"
    ),
    "publish by name": lambda broker, queue, router, consumer: broker.publish(queue.name, "x"),
    "publish_many": lambda broker, queue, router, consumer: broker.publish_many(queue, ["x", "y"]),
    "producer.publish": lambda broker, queue, router, consumer: broker.producer(queue).publish("x"),
    "producer.publish_many": lambda broker, queue, router, consumer: broker.producer(
        queue
    ).publish_many(["x"]),
    "request": lambda broker, queue, router, consumer: broker.request(queue, "x", timeout=1),
    "consume": _consume,
    "consumer.get": lambda broker, queue, router, consumer: consumer.get(0.1),
    "consumer.close": lambda broker, queue, router, consumer: consumer.close(),
    "declare": lambda broker, queue, router, consumer: broker.declare(queue, router),
    "unbind": lambda broker, queue, router, consumer: broker.unbind(*router.bindings),
    "bindings": lambda broker, queue, router, consumer: broker.bindings(),
    "delete": lambda broker, queue, router, consumer: broker.delete(queue),
    "purge": lambda broker, queue, router, consumer: broker.purge(queue),
    "peek": lambda broker, queue, router, consumer: broker.peek(queue),
    "counts": lambda broker, queue, router, consumer: broker.counts(queue),
    "dead_letters.list": lambda broker, queue, router, consumer: broker.dead_letters(queue).list(),
    "dead_letters.redrive": lambda broker, queue, router, consumer: broker.dead_letters(
        queue
    ).redrive(),
    "dead_letters.purge": lambda broker, queue, router, consumer: broker.dead_letters(
        queue
    ).purge(),
    "diagnose": lambda broker, queue, router, consumer: broker.diagnose(),
    "unwrap": _unwrap,
    "close": lambda broker, queue, router, consumer: broker.close(),
}
"""Calls on an open broker; each takes the broker, a queue, a router and an open consumer."""


async def elsewhere(call: Callable[[], Awaitable[Any]], limit: float = 20.0) -> Exception | None:
    """Make a call in a new event loop in a thread, and return what it raised.

    An application does that with `asyncio.run` in a thread pool.
    """

    async def attempt() -> Exception | None:
        try:
            async with asyncio.timeout(limit):
                await call()
        except Exception as error:  # noqa: BLE001 - what it is, the test asks
            return error
        return None

    return await asyncio.to_thread(asyncio.run, attempt())
