"""kombu on its own transports, with confirms; each message is acknowledged by itself."""

import time
from typing import Any

import kombu
from common import PAYLOAD, PREFETCH, Job, run


def _connect(job: Job) -> tuple[kombu.Connection, kombu.Queue]:
    connection = kombu.Connection(job.url, transport_options={"confirm_publish": True})
    queue = kombu.Queue(job.queue, durable=True)
    queue(connection.default_channel).declare()
    return connection, queue


def _publish(connection: kombu.Connection, job: Job, count: int) -> None:
    producer = connection.Producer(serializer="json")
    for _ in range(count):
        producer.publish(PAYLOAD, routing_key=job.queue, exchange="")


def publish(job: Job) -> None:
    """Publish, and wait for each confirm; kombu has no other way."""
    connection, _ = _connect(job)
    _publish(connection, job, 1)
    job.start()
    _publish(connection, job, job.count)
    job.stop()


def drain(job: Job) -> None:
    """Consume in the main thread."""
    connection, queue = _connect(job)
    _publish(connection, job, job.count)

    def handle(_: Any, message: kombu.Message) -> None:
        message.ack()
        job.count_one()

    with connection.Consumer([queue], callbacks=[handle], accept=["json"], prefetch_count=PREFETCH):
        job.start()
        while job.handled < job.count:
            connection.drain_events(timeout=10)


def latency(job: Job) -> None:
    """From publish to callback, one message at a time on an idle system."""
    connection, queue = _connect(job)
    consuming, _ = _connect(job)
    producer = connection.Producer(serializer="json")

    def handle(body: Any, message: kombu.Message) -> None:
        job.latencies.append(time.perf_counter() - body["at"])
        message.ack()
        job.handled += 1

    with consuming.Consumer([queue], callbacks=[handle], accept=["json"]):
        job.start()
        for number in range(job.count):
            payload = {**PAYLOAD, "at": time.perf_counter()}
            producer.publish(payload, routing_key=job.queue, exchange="")
            while job.handled <= number:
                consuming.drain_events(timeout=10)
            time.sleep(0.005)
        job.stop()


run({"one by one": publish, "bulk": publish, "drain": drain, "latency": latency})
