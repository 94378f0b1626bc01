"""The blocking facade is typed as the asyncio one; see `publishing.py`."""

from typing import Any, assert_type

from pydantic import BaseModel, TypeAdapter

from mqcore import BlockingContext, DeadLetter, Health, MqcoreError, Queue, Receipt, Redriven
from mqcore.spi import QueueCounts
from mqcore.sync import Broker, Consumer, DeadLetters, Producer, Received


class Order(BaseModel):
    id: int


class Invoice(BaseModel):
    order: int


orders = Queue("orders", Order)
numbers = Queue("numbers", TypeAdapter(list[int]))


def publishing(broker: Broker) -> None:
    assert_type(broker.publish(orders, Order(id=1), priority=8), Receipt)
    assert_type(broker.publish_many(orders, [Order(id=1)]), list[Receipt | MqcoreError])
    assert_type(broker.producer(orders), Producer[Order])
    assert_type(broker.request(orders, Order(id=1), result=Invoice), Invoice)
    assert_type(broker.request(orders, Order(id=1), result=TypeAdapter(list[int])), list[int])
    assert_type(broker.request(orders, Order(id=1)), Any)

    broker.publish(orders, Invoice(order=1))  # type: ignore[misc]  # another model
    broker.publish_many(orders, [Invoice(order=1)])  # type: ignore[misc]  # as above
    broker.producer(orders).publish(Invoice(order=1))  # type: ignore[arg-type]  # as above
    broker.publish(orders, Order(id=1), dealy=30)  # type: ignore[call-arg]  # a typo


def consuming(url: str) -> None:
    with Broker.connect(url) as broker, broker.consume(orders) as deliveries:
        assert_type(broker, Broker)
        assert_type(deliveries, Consumer[Order])
        for delivery in deliveries:
            assert_type(delivery, Received[Order])
            assert_type(delivery.value, Order)
            delivery.retry(delay=3)
        assert_type(deliveries.get(1), Received[Order] | None)
        assert_type(broker.consume("by name"), Consumer[bytes])
        assert_type(broker.consume(numbers), Consumer[list[int]])


def looking_after(broker: Broker) -> None:
    letters = broker.dead_letters(orders)
    assert_type(letters, DeadLetters)
    assert_type(letters.list(reason="expired"), list[DeadLetter])
    assert_type(letters.redrive(limit=3), Redriven)
    assert_type(letters.purge(), int)
    assert_type(list(broker.counts(orders)), list[QueueCounts])
    assert_type(broker.health(), Health)

    letters.list(raeson="expired")  # type: ignore[call-arg]  # a typo


def in_a_handlers_thread(ctx: BlockingContext) -> None:
    assert_type(ctx.publish(orders, Order(id=1)), Receipt)

    ctx.publish(orders, Invoice(order=1))  # type: ignore[misc]  # another model
