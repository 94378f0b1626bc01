"""What comes out of a queue has the type that goes in, and a handler takes that type.

See `publishing.py` for how these files are read.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, assert_type

from pydantic import BaseModel, TypeAdapter

from mqcore import (
    App,
    BlockingContext,
    Broker,
    Consumer,
    Context,
    Queue,
    Received,
    RetryPolicy,
    Worker,
)
from mqcore.consuming.context import DeliveryInfo


class Order(BaseModel):
    id: int


class Invoice(BaseModel):
    order: int


orders = Queue("orders", Order)
raw = Queue("raw")
numbers = Queue("numbers", TypeAdapter(list[int]))
app = App("shop")


async def the_pull_api(broker: Broker) -> None:
    async with broker.consume(orders, prefetch=5) as deliveries:
        assert_type(deliveries, Consumer[Order])
        async for delivery in deliveries:
            assert_type(delivery, Received[Order])
            assert_type(delivery.value, Order)
            assert_type(delivery.attempt, int)
            await delivery.ack()
        assert_type(await deliveries.get(timeout=1), Received[Order] | None)
    assert_type(broker.consume("by name"), Consumer[bytes])
    assert_type(broker.consume(raw), Consumer[bytes])
    assert_type(broker.consume(numbers), Consumer[list[int]])

    broker.consume(orders, prefech=5)  # type: ignore[call-overload]  # a typo


@app.consumer(orders, retry=RetryPolicy(max_attempts=5), concurrency=8, timeout=30)
async def plain(order: Order) -> int:
    return order.id


@app.consumer(orders)
async def with_context(order: Order, ctx: Context) -> None:
    await ctx.publish(orders, order)


@app.consumer(orders)
def in_a_thread(order: Order) -> str:
    return str(order.id)


@app.consumer(orders)
def in_a_thread_with_context(order: Order, ctx: BlockingContext) -> None:
    ctx.publish(orders, order)


@app.consumer(orders, process=True)
def in_a_process(order: Order, facts: DeliveryInfo) -> int:
    return order.id + facts.attempt


@app.consumer(orders)
async def of_any_model(order: BaseModel) -> None: ...


@app.consumer("by name")
async def of_a_bare_name(order: Order, ctx: Context) -> None: ...


@app.consumer(orders, batch=32, linger=0.5, concurrency=2)
async def batched(items: list[Received[Order]]) -> None:
    for item in items:
        assert_type(item.value, Order)
        await item.ack()


@app.consumer(orders, batch=32)
async def batched_read_only(items: Sequence[Received[Order]]) -> None: ...


@app.consumer("by name", batch=8)
async def batched_of_a_bare_name(items: list[Received[Order]]) -> None: ...


@app.consumer(raw, batch=8)
def batched_in_a_thread(items: list[Received[bytes]]) -> None: ...


async def a_decorated_handler_is_still_itself() -> None:
    assert_type(plain, Callable[[Order], Coroutine[Any, Any, int]])
    assert_type(await plain(Order(id=1)), int)
    assert_type(in_a_thread(Order(id=1)), str)
    assert_type(batched, Callable[[list[Received[Order]]], Coroutine[Any, Any, None]])

    await plain(Invoice(order=1))  # type: ignore[arg-type]  # it takes what it took before


@app.consumer(orders)  # type: ignore[arg-type]  # another payload
async def wrong(order: Invoice) -> None: ...


@app.consumer(orders)  # type: ignore[arg-type]  # another payload
async def wrong_with_context(order: Invoice, ctx: Context) -> None: ...


@app.consumer(raw)  # type: ignore[arg-type]  # Queue("raw") carries bytes
async def wrong_for_bytes(order: str) -> None: ...


@app.consumer(orders)  # type: ignore[arg-type]  # a blocking handler has a context that blocks
def wrong_context(order: Order, ctx: Context) -> None: ...


@app.consumer(orders)  # type: ignore[arg-type]  # a handler of single messages gets no list
async def wrong_list(items: list[Received[Order]]) -> None: ...


@app.consumer(orders, batch=32)  # type: ignore[arg-type]  # a batch handler gets a list
async def wrong_single(order: Order) -> None: ...


@app.consumer(orders, batch=32)  # type: ignore[arg-type]  # of what the queue carries
async def wrong_items(items: list[Received[Invoice]]) -> None: ...


@app.consumer(orders, batch=32)  # type: ignore[arg-type]  # received items, not payloads
async def wrong_payloads(items: list[Order]) -> None: ...


async def options(broker: Broker) -> None:
    app.consumer(orders, concurency=8)  # type: ignore[call-overload]  # a typo
    app.consumer(orders, retry=3)  # type: ignore[call-overload]  # a policy, not a number
    app.consumer(orders, linger=0.5)  # type: ignore[call-overload]  # only a batch lingers
    app.consumer(orders, batch=8, process=True)  # type: ignore[call-overload]  # its items could not be settled
    app.consumer(orders, batch=8, ack_first=True)  # type: ignore[call-overload]  # its items are settled apart
    Worker(app, broker, concurency=8)  # type: ignore[call-arg]  # a typo
    assert_type(app.connect("memory://"), Broker)
