"""mqcore, through the application's API, with its defaults; the broker is the URL."""

import asyncio
import time
from typing import Any

from common import PAYLOAD, PREFETCH, THREADS, WINDOW, Job, run

from mqcore import App, Broker, Queue, Worker


async def fill(broker: Broker, queue: Queue[Any], count: int) -> None:
    """Publish in batches."""
    for start in range(0, count, WINDOW):
        await broker.publish_many(queue, [PAYLOAD] * min(WINDOW, count - start))


async def one_by_one(job: Job) -> None:
    """Publish, and wait for each receipt."""
    queue: Queue[Any] = Queue(job.queue, dict)
    async with Broker.connect(job.url, queues=[queue]) as broker:
        await broker.publish(queue, PAYLOAD)
        job.start()
        for _ in range(job.count):
            await broker.publish(queue, PAYLOAD)
        job.stop()


async def bulk(job: Job) -> None:
    """Publish batches, one after the other."""
    queue: Queue[Any] = Queue(job.queue, dict)
    async with Broker.connect(job.url, queues=[queue]) as broker:
        job.start()
        await fill(broker, queue, job.count)
        job.stop()


async def drain(job: Job) -> None:
    """A worker with an async handler."""
    queue: Queue[Any] = Queue(job.queue, dict)
    app, ended = App("bench"), asyncio.Event()

    @app.consumer(queue, concurrency=PREFETCH // 2, prefetch=PREFETCH)
    async def handle(payload: dict[str, Any]) -> None:
        if job.count_one():
            ended.set()

    async with app.connect(job.url) as broker:
        await fill(broker, queue, job.count)
        job.start()
        async with Worker(app, broker):
            await ended.wait()


async def drain_blocking(job: Job) -> None:
    """A worker with a blocking handler in threads."""
    queue: Queue[Any] = Queue(job.queue, dict)
    app, ended, loop = App("bench"), asyncio.Event(), asyncio.get_running_loop()

    @app.consumer(queue, concurrency=THREADS, prefetch=PREFETCH)
    def handle(payload: dict[str, Any]) -> None:
        if job.count_one():
            loop.call_soon_threadsafe(ended.set)

    async with app.connect(job.url) as broker:
        await fill(broker, queue, job.count)
        job.start()
        async with Worker(app, broker):
            await ended.wait()


async def latency(job: Job) -> None:
    """From publish to handler, one message at a time on an idle system."""
    queue: Queue[Any] = Queue(job.queue, dict)
    app, handled = App("bench"), asyncio.Event()

    @app.consumer(queue)
    async def handle(payload: dict[str, Any]) -> None:
        job.latencies.append(time.perf_counter() - payload["at"])
        handled.set()

    async with app.connect(job.url) as broker, Worker(app, broker):
        job.start()
        for _ in range(job.count):
            handled.clear()
            await broker.publish(queue, {**PAYLOAD, "at": time.perf_counter()})
            await handled.wait()
            await asyncio.sleep(0.005)
        job.stop()


SCENARIOS = {
    "one by one": one_by_one,
    "bulk": bulk,
    "drain": drain,
    "drain, blocking": drain_blocking,
    "latency": latency,
}

if __name__ == "__main__":
    run(SCENARIOS)
