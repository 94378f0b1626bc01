"""dramatiq on RabbitMQ or Redis: an actor in its worker's threads."""

import logging
import threading
import time
from typing import Any

import dramatiq
from common import PAYLOAD, THREADS, Job, run
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker


def _actor(job: Job) -> tuple[Any, Any, threading.Event]:
    """Return the broker, the actor, and an event for the last message."""
    if job.url.startswith("redis"):
        broker: Any = RedisBroker(url=job.url)
    else:
        broker = RabbitmqBroker(url=job.url, confirm_delivery=True)
    dramatiq.set_broker(broker)
    ended = threading.Event()

    @dramatiq.actor(queue_name=job.queue, broker=broker)
    def handle(payload: dict[str, Any]) -> None:
        if "at" in payload:
            job.latencies.append(time.perf_counter() - payload["at"])
        if job.count_one():
            ended.set()

    return broker, handle, ended


def publish(job: Job) -> None:
    """Send, and wait for each confirm; dramatiq has no other way."""
    _, handle, _ = _actor(job)
    handle.send(PAYLOAD)
    job.start()
    for _ in range(job.count):
        handle.send(PAYLOAD)
    job.stop()


def drain(job: Job) -> None:
    """Run its worker."""
    broker, handle, ended = _actor(job)
    for _ in range(job.count):
        handle.send(PAYLOAD)
    worker = dramatiq.Worker(broker, worker_threads=THREADS)
    job.start()
    worker.start()
    ended.wait()


def latency(job: Job) -> None:
    """From send to actor, one message at a time on an idle system."""
    broker, handle, _ = _actor(job)
    dramatiq.Worker(broker, worker_threads=THREADS).start()
    time.sleep(1)
    job.start()
    for number in range(job.count):
        handle.send({**PAYLOAD, "at": time.perf_counter()})
        while job.handled <= number:
            time.sleep(0.0002)
        time.sleep(0.005)
    job.stop()


logging.disable(logging.CRITICAL)
run({"one by one": publish, "bulk": publish, "drain, blocking": drain, "latency": latency})
