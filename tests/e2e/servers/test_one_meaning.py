"""One application, unchanged, on memory and on a real broker: a user sees the same (G17)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel
from support.waiting import eventually

from mqcore import (
    App,
    Broker,
    Context,
    MqcoreError,
    Queue,
    Reject,
    Retry,
    RetryPolicy,
    Router,
    Worker,
    fixed,
)
from mqcore.messages.message import new_id
from mqcore.testing import memory_url

pytestmark = pytest.mark.timeout(120)


class Order(BaseModel):
    id: int
    total: float = 1.0


class Shop:
    """The application and the diary of what became of its messages."""

    def __init__(self) -> None:
        self.prefix = f"shop.{new_id()[:10]}"
        self.orders = Queue(
            f"{self.prefix}.orders",
            Order,
            ttl=3600,
            retry=RetryPolicy(max_attempts=3, backoff=fixed(0.2)),
        )
        self.line = Queue(f"{self.prefix}.line", str)
        self.audit = Queue(f"{self.prefix}.audit", Order)
        self.router = Router(f"{self.prefix}.events", Order, kind="topic")
        self.router.bind(self.orders, "order.placed").bind(self.audit, "order.*")
        self.app = App("shop", routers=[self.router])
        self.diary: list[str] = []
        self.app.consumer(self.orders, concurrency=1)(self.on_order)
        self.app.consumer(self.audit)(self.on_audit)

    def note(self, *words: object) -> None:
        self.diary.append(" ".join(str(word).replace(self.prefix, "shop") for word in words))

    async def on_order(self, order: Order, ctx: Context) -> str:
        facts = (
            f"order {order.id} attempt {ctx.attempt} priority {ctx.priority} {dict(ctx.headers)}"
        )
        match order.id:
            case 1:
                raise Reject("not this one")
            case 2 if ctx.attempt < 3:
                raise ValueError("not yet")
            case 3:
                raise ValueError("never")
            case 4 if ctx.attempt == 1:
                raise Retry(delay=0.3)
        self.note("handled", facts)
        return f"did {order.id}"

    async def on_audit(self, order: Order) -> None:
        self.note("audited", order.id)

    def seen(self, *words: str) -> bool:
        return all(any(line.startswith(word) for line in self.diary) for word in words)


async def refusal(work: Any) -> str:
    """What kind of error the work ends in."""
    try:
        await work
    except MqcoreError as error:
        return type(error).__name__
    return "none"


async def story(url: str) -> list[str]:
    """Run the application, and tell what was to be seen, the parts of it in a fixed order."""
    shop = Shop()
    async with shop.app.connect(url) as broker:
        async with Worker(shop.app, broker):
            told = await _work(shop, broker)
        await _refusals(shop, broker)
        await _order(shop, broker)
        letters = broker.dead_letters(shop.orders)
        shop.note("purged", await letters.purge(), len(await letters.list()))
        for queue in (shop.orders, shop.line, shop.audit):
            await broker.delete(queue)
        shop.note("missing", await refusal(broker.publish(shop.orders.name, b"{}")))
    return told + shop.diary


async def _work(shop: Shop, broker: Broker) -> list[str]:
    """Retries, rejections, requests, routes, and what becomes of the dead."""
    for number in (1, 2, 3, 4):
        await broker.publish(shop.orders, Order(id=number), priority=8, headers={"tenant": "a"})
    shop.note("reply", await broker.request(shop.orders, Order(id=5)))
    await broker.publish(shop.router, Order(id=6), key="order.placed")
    await broker.publish(shop.router, Order(id=7), key="order.gone", delay=0.3)
    wanted = ("handled order 2", "handled order 4", "handled order 6", "audited 6", "audited 7")
    await eventually(lambda: shop.seen(*wanted), 20)
    letters = broker.dead_letters(shop.orders)

    async def both_are_dead() -> bool:
        return len(await letters.list()) == 2

    await eventually(both_are_dead, 20)
    for letter in sorted(await letters.list(), key=lambda letter: letter.body):
        died = (
            letter.reason,
            letter.attempts,
            letter.queue,
            letter.error,
            letter.body,
            dict(letter.headers),
        )
        shop.note("dead", *died, letter.message.priority)
    told = sorted(shop.diary)
    shop.diary.clear()
    redriven = await letters.redrive(reason="retries_exhausted")
    shop.note("redriven", len(redriven.moved), dict(redriven.left))
    await eventually(both_are_dead, 20)
    return told


async def _refusals(shop: Shop, broker: Broker) -> None:
    shop.note("no such queue", await refusal(broker.publish(f"{shop.prefix}.nowhere", b"{}")))
    shop.note(
        "no such key", await refusal(broker.publish(shop.router, Order(id=8), key="nobody.listens"))
    )
    shop.note(
        "no such priority", await refusal(broker.publish(shop.orders, Order(id=8), priority=11))
    )
    shop.note(
        "too large", await refusal(broker.publish(f"{shop.prefix}.orders", b"x" * (1 << 20) + b"x"))
    )
    other = Queue(shop.orders.name, Order, ttl=60)
    shop.note("declared otherwise", await refusal(broker.declare(other)))


async def _order(shop: Shop, broker: Broker) -> None:
    """Expiry, priority and order inside a level, through the pull API."""
    await broker.declare(shop.line)
    await broker.publish(shop.line, "gone", ttl=0.2)
    await broker.publish(
        shop.line, "later", delay=3.0
    )  # longer than a slow server takes for the others
    for word, priority in (("low", 1), ("first", 5), ("second", 5), ("urgent", 9)):
        await broker.publish(shop.line, word, priority=priority)
    await asyncio.sleep(0.4)
    got: list[str] = []
    async with broker.consume(shop.line, prefetch=1) as consumer:
        async for delivery in consumer:
            got.append(delivery.value)
            await delivery.ack()
            if len(got) == 5:
                break
    shop.note("came", got)
    letters = await broker.dead_letters(shop.line).list()
    shop.note("expired", [(letter.reason, letter.attempts, letter.body) for letter in letters])


async def test_an_application_means_the_same_on_this_broker_as_on_memory(url: str) -> None:
    assert await story(url) == await story(memory_url())
