"""From publish to handled on `memory://`: microseconds a message, beside a bare asyncio queue.

    python benchmarks/memory.py [messages]

Figures are medians of interleaved rounds inside one run; compare ratios, not absolute figures of
two machines.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from pydantic import BaseModel

from mqcore import App, Broker, Queue, Worker
from mqcore.testing import memory_url

TEXT = "x" * 140
ROUNDS = 5


class Order(BaseModel):
    """About 200 bytes of JSON."""

    order_id: int
    total: float
    text: str


ORDER = Order(order_id=1, total=9.5, text=TEXT)


async def bare(count: int) -> float:
    """Time `asyncio.Queue` with JSON both ways: the upper bound."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    payload = {"order_id": 1, "total": 9.5, "text": TEXT}
    began = time.perf_counter()
    for _ in range(count):
        queue.put_nowait(json.dumps(payload).encode())
    for _ in range(count):
        json.loads(await queue.get())
    return time.perf_counter() - began


async def handled(
    count: int, publish: Callable[[Broker, Queue[Order], int], Awaitable[None]]
) -> float:
    """Publish `count` messages while a worker handles them; until the last is handled."""
    orders = Queue("orders", Order)
    app = App("bench")
    left, done = count, asyncio.Event()

    @app.consumer(orders, concurrency=100, prefetch=500)
    async def on_order(order: Order) -> None:
        nonlocal left
        assert order.order_id == 1
        left -= 1
        if not left:
            done.set()

    async with app.connect(memory_url()) as broker, Worker(app, broker):
        began = time.perf_counter()
        await publish(broker, orders, count)
        await done.wait()
        return time.perf_counter() - began


async def publish_only(
    count: int, publish: Callable[[Broker, Queue[Order], int], Awaitable[None]]
) -> float:
    """Publish without a consumer."""
    orders = Queue("orders", Order)
    async with Broker.connect(memory_url()) as broker:
        await broker.declare(orders)
        began = time.perf_counter()
        await publish(broker, orders, count)
        return time.perf_counter() - began


async def one_by_one(broker: Broker, orders: Queue[Order], count: int) -> None:
    """Await each publish."""
    for _ in range(count):
        await broker.publish(orders, ORDER)


async def concurrently(broker: Broker, orders: Queue[Order], count: int) -> None:
    """200 at once, gathered by core into shared batches."""
    for _ in range(count // 200):
        await asyncio.gather(*(broker.publish(orders, ORDER) for _ in range(200)))


async def in_batches(broker: Broker, orders: Queue[Order], count: int) -> None:
    """500 in one call."""
    for _ in range(count // 500):
        await broker.publish_many(orders, [ORDER] * 500)


async def main(count: int) -> None:
    """Print a line for each way."""
    ways: dict[str, Callable[[], Awaitable[float]]] = {
        "bare asyncio.Queue and json": lambda: bare(count)
    }
    for publish in (one_by_one, concurrently, in_batches):
        ways[f"publish, {publish.__name__}"] = lambda publish=publish: publish_only(count, publish)  # type: ignore[misc]  # bound now
        ways[f"publish to handled, {publish.__name__}"] = lambda publish=publish: handled(
            count, publish
        )  # type: ignore[misc]  # as above
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            taken[name].append(await way())
    base = statistics.median(taken["bare asyncio.Queue and json"])
    for name, times in taken.items():
        middle = statistics.median(times)
        print(
            f"{name:40} {middle / count * 1e6:7.1f} us a message   {middle / base:5.1f} times bare"
        )


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
