"""A payload goes only to a queue of its type; mypy must refuse the rest.

Nothing here runs. An expected error is a `type: ignore` with its code; should mypy stop to see it,
the ignore is unused, which is an error too.
"""

from datetime import timedelta
from typing import Any, assert_type

from pydantic import BaseModel, TypeAdapter

from mqcore import Broker, Context, MqcoreError, Producer, Queue, Receipt, Router


class Order(BaseModel):
    id: int


class Invoice(BaseModel):
    order: int


Either = Order | Invoice
EITHER: TypeAdapter[Either] = TypeAdapter(Either)

orders = Queue("orders", Order, ttl=3600)
invoices = Queue("invoices", Invoice, ttl=timedelta(hours=1), dead_letter=None)
raw = Queue("raw")
numbers = Queue("numbers", TypeAdapter(list[int]))
mixed = Queue("mixed", EITHER)
events = Router("shop", Order).bind(orders, "order.*")
bytewise = Router("bytes", kind="fanout").bind(raw)


def what_a_queue_and_a_router_carry() -> None:
    assert_type(orders, Queue[Order])
    assert_type(raw, Queue[bytes])
    assert_type(numbers, Queue[list[int]])
    assert_type(mixed, Queue[Order | Invoice])
    assert_type(Queue("raw", declare=False), Queue[bytes])
    assert_type(orders.configured(ttl=1), Queue[Order])
    assert_type(events, Router[Order])
    assert_type(bytewise, Router[bytes])


async def a_publish(broker: Broker) -> None:
    assert_type(
        await broker.publish(orders, Order(id=1), priority=8, ttl=60, headers={"a": "b"}), Receipt
    )
    await broker.publish(raw, b"bytes")
    await broker.publish(numbers, [1, 2])
    await broker.publish(mixed, Invoice(order=1))
    await broker.publish(events, Order(id=1), key="order.placed", delay=timedelta(seconds=3))
    await broker.publish("by name", {"anything": 1})

    await broker.publish(orders, Invoice(order=1))  # type: ignore[misc]  # another model
    await broker.publish(orders, {"id": 1})  # type: ignore[misc]  # a dict is no model
    await broker.publish(raw, "text")  # type: ignore[misc]  # text is no bytes
    await broker.publish(numbers, ["1"])  # type: ignore[misc]  # "1" is no int
    await broker.publish(mixed, "neither")  # type: ignore[misc]  # in no part of the union
    await broker.publish(events, Invoice(order=1), key="order.placed")  # type: ignore[misc]  # a router is typed, too
    await broker.publish(3, Order(id=1))  # type: ignore[arg-type]  # no queue, router or name


async def a_batch(broker: Broker) -> None:
    assert_type(await broker.publish_many(orders, [Order(id=1)]), list[Receipt | MqcoreError])
    await broker.publish_many(events, (Order(id=number) for number in range(3)), key="order.placed")

    await broker.publish_many(orders, [Order(id=1), Invoice(order=1)])  # type: ignore[misc]  # one of them is wrong
    await broker.publish_many(orders, Order(id=1))  # type: ignore[misc]  # one is not many


async def a_producer(broker: Broker) -> None:
    producer = broker.producer(orders, priority=8)
    assert_type(producer, Producer[Order])
    assert_type(await producer.publish(Order(id=1), ttl=60), Receipt)
    assert_type(broker.producer(events, key="order.placed"), Producer[Order])

    await producer.publish(Invoice(order=1))  # type: ignore[arg-type]  # another model
    await producer.publish_many([Invoice(order=1)])  # type: ignore[list-item]  # as above
    broker.producer(orders, piority=8)  # type: ignore[call-arg]  # a typo


async def a_handlers_context(ctx: Context) -> None:
    assert_type(await ctx.publish(orders, Order(id=1), delay=3), Receipt)

    await ctx.publish(orders, Invoice(order=1))  # type: ignore[misc]  # another model
    await ctx.publish(orders, Order(id=1), dealy=3)  # type: ignore[call-arg]  # a typo


async def a_request(broker: Broker) -> None:
    assert_type(await broker.request(orders, Order(id=1), result=Invoice, timeout=5), Invoice)
    assert_type(await broker.request(orders, Order(id=1), result=TypeAdapter(list[int])), list[int])
    assert_type(await broker.request("by name", 1, result=EITHER), Order | Invoice)
    assert_type(await broker.request(orders, Order(id=1)), Any)

    await broker.request(orders, Invoice(order=1), result=Invoice)  # type: ignore[misc]  # another model
    await broker.request(orders, Order(id=1), results=Invoice)  # type: ignore[call-overload]  # a typo


async def options(broker: Broker) -> None:
    await broker.publish(orders, Order(id=1), dealy=30)  # type: ignore[call-arg]  # a typo
    await broker.publish(orders, Order(id=1), priority="8")  # type: ignore[arg-type]  # a number
    await broker.publish(orders, Order(id=1), headers={"n": 1})  # type: ignore[dict-item]  # header values are text
    await broker.publish(orders, Order(id=1), delay=None)  # type: ignore[arg-type]  # 0 is no delay
    Queue("orders", Order, tll=3)  # type: ignore[call-overload]  # a typo
    Queue("orders", Order, overflow="drop")  # type: ignore[call-overload]  # there is no such way
    Router("shop", Order, kind="regex")  # type: ignore[call-overload]  # there is no such kind
    Broker.connect("memory://", clok=None)  # type: ignore[call-arg]  # a typo


def bindings() -> None:
    Router("shop", Order).bind(invoices)  # type: ignore[arg-type]  # the queue carries something else
    assert_type(Router("shop", Order).bind(orders, "a").bind(orders, "b"), Router[Order])
