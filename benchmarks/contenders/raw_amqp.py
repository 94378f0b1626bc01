"""The raw clients of RabbitMQ: py-amqp for confirms one by one, pika's asyncio connection in bulk.

No headers, no decoding, acknowledgements of 100 at once: what no safe queue can beat.
"""

import asyncio
import time

import pika
from common import BODY, PREFETCH, WINDOW, Job, run
from pika.adapters.asyncio_connection import AsyncioConnection

PERSISTENT = pika.BasicProperties(delivery_mode=2, content_type="application/json")


def one_by_one(job: Job) -> None:
    """Publish with py-amqp, and wait for each confirm."""
    import amqp  # noqa: PLC0415 - the floor in CI runs without it

    parts = pika.URLParameters(job.url)
    with amqp.Connection(
        f"{parts.host}:{parts.port}",
        userid=parts.credentials.username,
        password=parts.credentials.password,
        confirm_publish=True,
    ) as connection:
        channel = connection.channel()
        channel.queue_declare(job.queue, durable=True, auto_delete=False)
        message = amqp.Message(BODY, delivery_mode=2, content_type="application/json")
        job.start()
        for _ in range(job.count):
            channel.basic_publish_confirm(message, routing_key=job.queue)
        job.stop()


async def _channel(job: Job) -> pika.channel.Channel:
    """Open an asyncio connection and a channel with the queue declared."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[pika.channel.Channel] = loop.create_future()

    def opened(connection: AsyncioConnection) -> None:
        connection.channel(on_open_callback=declare)

    def declare(channel: pika.channel.Channel) -> None:
        channel.queue_declare(job.queue, durable=True, callback=lambda _: ready.set_result(channel))

    AsyncioConnection(pika.URLParameters(job.url), on_open_callback=opened)
    return await ready


async def _fill(channel: pika.channel.Channel, job: Job) -> None:
    """Publish with confirms, a window of messages at a time."""
    confirmed, all_confirmed = 0, asyncio.Event()
    sent = 0

    def confirm(frame: pika.frame.Method[pika.spec.Basic.Ack]) -> None:
        nonlocal confirmed
        confirmed = (
            frame.method.delivery_tag
            if frame.method.multiple
            else max(confirmed, frame.method.delivery_tag)
        )
        if confirmed >= sent:
            all_confirmed.set()

    selected = asyncio.Event()
    channel.confirm_delivery(confirm, lambda _: selected.set())
    await selected.wait()

    while sent < job.count:
        all_confirmed.clear()
        for _ in range(min(2 * WINDOW, job.count - sent)):
            channel.basic_publish("", job.queue, BODY, PERSISTENT)
            sent += 1
        await all_confirmed.wait()


async def bulk(job: Job) -> None:
    """Publish 1,000 at a time, confirmed."""
    channel = await _channel(job)
    job.start()
    await _fill(channel, job)
    job.stop()


async def drain(job: Job) -> None:
    """Consume, with one acknowledgement for 100."""
    channel = await _channel(job)
    await _fill(channel, job)
    ended = asyncio.Event()

    def handle(_: object, method: pika.spec.Basic.Deliver, __: object, ___: bytes) -> None:
        last = job.count_one()
        if last or job.handled % (PREFETCH // 2) == 0:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if last:
            ended.set()

    channel.basic_qos(prefetch_count=PREFETCH)
    job.start()
    channel.basic_consume(job.queue, handle)
    await ended.wait()


async def latency(job: Job) -> None:
    """From publish to callback, one message at a time on an idle system."""
    channel = await _channel(job)
    handled = asyncio.Event()

    def handle(_: object, method: pika.spec.Basic.Deliver, __: object, body: bytes) -> None:
        job.latencies.append(time.perf_counter() - float(body[:20]))
        channel.basic_ack(method.delivery_tag)
        handled.set()

    channel.basic_consume(job.queue, handle)
    await asyncio.sleep(0.2)
    job.start()
    for _ in range(job.count):
        handled.clear()
        channel.basic_publish(
            "", job.queue, f"{time.perf_counter():20.9f}".encode() + BODY[20:], PERSISTENT
        )
        await handled.wait()
        await asyncio.sleep(0.005)
    job.stop()


SCENARIOS = {"one by one": one_by_one, "bulk": bulk, "drain": drain, "latency": latency}

if __name__ == "__main__":
    run(SCENARIOS)
