"""Publish and drain on Redis or Valkey, beside plain redis-py pipelines on a list, in the same run.

    python benchmarks/on_redis.py redis://127.0.0.1:6379/0 [messages]

A list is what no safe queue can beat: nothing is leased, remembered, sorted or given back. Figures
are medians of interleaved rounds inside one run; compare ratios, not absolute figures of two
machines. CPU is the client's.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import redis.asyncio as redis_py
from pydantic import BaseModel

from mqcore import App, Broker, Queue, Worker
from mqcore.spi import Ack, Message, Outgoing, QueueSpec, new_id
from mqcore_redis import RedisBackend, RedisOptions

TEXT = "x" * 140
BODY = json.dumps({"order_id": 1, "total": 9.5, "text": TEXT}).encode()
ROUNDS = 3
Way = Callable[[str, int], Awaitable[tuple[float, float]]]


class Order(BaseModel):
    """About 200 bytes of JSON."""

    order_id: int
    total: float
    text: str


ORDER = Order(order_id=1, total=9.5, text=TEXT)


async def timed(work: Awaitable[object]) -> tuple[float, float]:
    """Return seconds and seconds of this process's CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    await work
    return time.perf_counter() - began, time.process_time() - cpu


# Plain redis-py


async def list_one_by_one(url: str, count: int) -> tuple[float, float]:
    """Push, and wait for each answer."""
    async with redis_py.Redis.from_url(url) as client:

        async def work() -> None:
            for _ in range(count):
                await client.lpush("bench:list", BODY)

        taken = await timed(work())
        await client.delete("bench:list")
        return taken


async def list_pipeline_500(url: str, count: int) -> tuple[float, float]:
    """Push 500 in one pipeline."""
    async with redis_py.Redis.from_url(url) as client:

        async def work() -> None:
            for _ in range(count // 500):
                async with client.pipeline(transaction=False) as pipe:
                    for _ in range(500):
                        pipe.lpush("bench:list", BODY)
                    await pipe.execute()

        taken = await timed(work())
        await client.delete("bench:list")
        return taken


async def list_drain_100(url: str, count: int) -> tuple[float, float]:
    """Pop 100 in one command, and read their JSON."""
    async with redis_py.Redis.from_url(url) as client:
        await client.lpush("bench:list", *[BODY] * count)

        async def work() -> None:
            while bodies := await client.rpop("bench:list", 100):  # type: ignore[misc]  # redis-py's union of sync and async
                for body in bodies:
                    json.loads(body)

        return await timed(work())


# The driver


@asynccontextmanager
async def queue_of(url: str) -> AsyncIterator[tuple[RedisBackend, str]]:
    """Open the driver on a new queue."""
    backend = RedisBackend(url, RedisOptions())
    await backend.open(lambda error: print("lost:", error))
    name = f"bench.{new_id()[:8]}"
    await backend.declare([QueueSpec(name=name)])
    try:
        yield backend, name
    finally:
        await backend.delete(name)
        await backend.close()


def out(name: str) -> Outgoing:
    """Make a message."""
    return Outgoing(
        name, Message(id=new_id(), body=BODY, content_type="application/json", published_at=1.7e9)
    )


async def driver_one_by_one(url: str, count: int) -> tuple[float, float]:
    """Publish, and wait for each confirm."""
    async with queue_of(url) as (backend, name):

        async def work() -> None:
            for _ in range(count):
                await backend.publish([out(name)], timeout=10)

        return await timed(work())


async def driver_500(url: str, count: int) -> tuple[float, float]:
    """Publish 500 in one call."""
    async with queue_of(url) as (backend, name):

        async def work() -> None:
            for _ in range(count // 500):
                await backend.publish([out(name) for _ in range(500)], timeout=10)

        return await timed(work())


async def driver_drain_100(url: str, count: int) -> tuple[float, float]:
    """Claim 100, read their JSON, acknowledge them."""
    async with queue_of(url) as (backend, name):
        for _ in range(count // 500):
            await backend.publish([out(name) for _ in range(500)], timeout=10)
        consumer = await backend.subscribe(name, prefetch=100, lease=30)

        async def work() -> None:
            left = count
            while left:
                got = await consumer.receive(100, 5)
                for delivery in got:
                    json.loads(delivery.message.body)
                await consumer.settle([Ack(delivery.receipt) for delivery in got], timeout=10)
                left -= len(got)

        return await timed(work())


# An application


async def app_one_by_one(url: str, count: int) -> tuple[float, float]:
    """Await each publish of a model."""
    async with Broker.connect(url) as broker:
        orders = Queue(f"bench.{new_id()[:8]}", Order)
        await broker.declare(orders)

        async def work() -> None:
            for _ in range(count):
                await broker.publish(orders, ORDER)

        taken = await timed(work())
        await broker.delete(orders)
        return taken


async def app_many_500(url: str, count: int) -> tuple[float, float]:
    """Publish 500 models in one call."""
    async with Broker.connect(url) as broker:
        orders = Queue(f"bench.{new_id()[:8]}", Order)
        await broker.declare(orders)

        async def work() -> None:
            for _ in range(count // 500):
                await broker.publish_many(orders, [ORDER] * 500)

        taken = await timed(work())
        await broker.delete(orders)
        return taken


async def app_handled(url: str, count: int) -> tuple[float, float]:
    """Let a worker with 100 slots and a prefetch of 500 handle what is there."""
    app, orders = App("bench"), Queue(f"bench.{new_id()[:8]}", Order)
    left, done = count, asyncio.Event()

    @app.consumer(orders, concurrency=100, prefetch=500)
    async def on_order(order: Order) -> None:
        nonlocal left
        assert order.order_id == 1
        left -= 1
        if not left:
            done.set()

    async with app.connect(url) as broker:
        for _ in range(count // 500):
            await broker.publish_many(orders, [ORDER] * 500)

        async def work() -> None:
            async with Worker(app, broker):
                await done.wait()

        taken = await timed(work())
        await broker.delete(orders)
        return taken


WAYS: dict[str, list[Way]] = {
    "publish one by one": [list_one_by_one, driver_one_by_one, app_one_by_one],
    "publish 500 in a batch": [list_pipeline_500, driver_500, app_many_500],
    "drain": [list_drain_100, driver_drain_100, app_handled],
}


async def main(url: str, count: int) -> None:
    """Print a line for each way."""
    for title, ways in WAYS.items():
        taken: dict[str, list[tuple[float, float]]] = {way.__name__: [] for way in ways}
        size = count if "one by one" not in title else count // 5
        for _ in range(ROUNDS):
            for way in ways:
                taken[way.__name__].append(await way(url, size))
        print(title)
        base = statistics.median(seconds for seconds, _ in taken[ways[0].__name__])
        for name, times in taken.items():
            middle, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            rate = f"{size / middle:10,.0f} a second   {cpu / size * 1e6:6.1f} ms of CPU a thousand"
            print(f"  {name:20} {rate}   {middle / base:5.1f} times a list's time")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 20_000))  # noqa: PLR2004 - URL and count
