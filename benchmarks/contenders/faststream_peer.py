"""FastStream on RabbitMQ (aio-pika) or on a Redis stream, with its defaults and a prefetch."""

import asyncio
import logging
import time
from typing import Any

import redis
from common import PAYLOAD, PREFETCH, WINDOW, Job, run
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from faststream.redis import RedisBroker, StreamSub


def _broker(job: Job, handle: Any = None) -> tuple[Any, dict[str, Any]]:
    """Return a broker, and what its `publish` needs to reach the queue."""
    if job.url.startswith("redis"):
        broker: Any = RedisBroker(job.url, logger=None)
        if handle is not None:
            # The group is made first, so that it begins with what is published before the start.
            redis.Redis.from_url(job.url).xgroup_create(job.queue, "bench", "0", mkstream=True)
            stream = StreamSub(job.queue, group="bench", consumer="one", max_records=PREFETCH)
            broker.subscriber(stream=stream)(handle)
        return broker, {"stream": job.queue}

    queue = RabbitQueue(job.queue, durable=True)
    broker = RabbitBroker(job.url, logger=None, default_channel=Channel(prefetch_count=PREFETCH))
    if handle is not None:
        broker.subscriber(queue)(handle)
    return broker, {"queue": queue, "persist": True}


async def _fill(broker: Any, goal: dict[str, Any], count: int) -> None:
    window = (
        WINDOW if "queue" in goal else 90
    )  # on Redis each takes a connection, of 100 that its pool has
    for start in range(0, count, window):
        some = range(min(window, count - start))
        await asyncio.gather(*(broker.publish(PAYLOAD, **goal) for _ in some))


async def one_by_one(job: Job) -> None:
    """Publish, and wait for each confirm."""
    broker, goal = _broker(job)
    await broker.connect()
    if "queue" in goal:
        await broker.declare_queue(goal["queue"])
    await broker.publish(PAYLOAD, **goal)
    job.start()
    for _ in range(job.count):
        await broker.publish(PAYLOAD, **goal)
    job.stop()


async def bulk(job: Job) -> None:
    """Publish in windows that are gathered."""
    broker, goal = _broker(job)
    await broker.connect()
    if "queue" in goal:
        await broker.declare_queue(goal["queue"])
    job.start()
    await _fill(broker, goal, job.count)
    job.stop()


async def drain(job: Job) -> None:
    """A subscriber with an async handler."""
    ended = asyncio.Event()

    async def handle(payload: dict[str, Any]) -> None:
        if job.count_one():
            ended.set()

    broker, goal = _broker(job, handle)
    await broker.connect()
    if "queue" in goal:
        await broker.declare_queue(goal["queue"])
    await _fill(broker, goal, job.count)
    job.start()
    await broker.start()
    await ended.wait()


async def latency(job: Job) -> None:
    """From publish to handler, one message at a time on an idle system."""
    handled = asyncio.Event()

    async def handle(payload: dict[str, Any]) -> None:
        job.latencies.append(time.perf_counter() - payload["at"])
        handled.set()

    broker, goal = _broker(job, handle)
    await broker.start()
    job.start()
    for _ in range(job.count):
        handled.clear()
        await broker.publish({**PAYLOAD, "at": time.perf_counter()}, **goal)
        await handled.wait()
        await asyncio.sleep(0.005)
    job.stop()


logging.disable(logging.CRITICAL)
run({"one by one": one_by_one, "bulk": bulk, "drain": drain, "latency": latency})
