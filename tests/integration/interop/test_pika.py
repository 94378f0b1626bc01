"""A plain pika program, which knows nothing of mqcore, on our queues and routers (G17)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from mqcore import App, Broker, Context, Queue, Router, Settings, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pika.adapters.blocking_connection import BlockingChannel

JSON = dict[str, int]
WITHIN = 10.0
QUEUES = [None, "machine"]
"""What is asked for: classic queues, and quorum queues."""


@pytest.fixture
def plain(rabbitmq_url: str) -> Iterator[BlockingChannel]:
    """A channel as the tutorials make one."""
    connection = pika.BlockingConnection(pika.URLParameters(f"{rabbitmq_url.rstrip('/')}/%2F"))
    yield connection.channel()
    connection.close()


def connect(url: str, durability: str | None = None) -> Broker:
    return Broker.connect(url, settings=Settings(), durability=durability)


def taken(channel: BlockingChannel, queue: str) -> tuple[Any, bytes]:
    """Get one message, as a plain program does; returns its properties and body."""
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is not None:
            return properties, body
        time.sleep(0.01)
    raise AssertionError(f"nothing came out of {queue}")


@pytest.mark.parametrize("durability", QUEUES)
async def test_what_it_publishes_is_handled_as_a_first_attempt(
    rabbitmq_url: str, plain: BlockingChannel, durability: str | None, name: str
) -> None:
    queue = Queue(name, str, codec="text")
    async with connect(rabbitmq_url, durability) as broker:
        await broker.declare(queue)
        plain.basic_publish("", queue.name, b"Hello World!")
        headers = {"tenant": "north", "count": 3}
        properties = pika.BasicProperties(
            "text/plain", message_id="its-own", headers=headers, correlation_id="c-1"
        )
        plain.basic_publish("", queue.name, "häh?".encode(), properties)
        async with broker.consume(queue) as deliveries:
            first, second = [await deliveries.get(timeout=WITHIN) for _ in range(2)]
        assert first is not None
        assert second is not None
    assert (first.value, first.attempt, first.redelivered, first.published_at) == (
        "Hello World!",
        1,
        False,
        None,
    )
    assert first.id
    assert (second.value, second.id, second.content_type) == ("häh?", "its-own", "text/plain")
    assert (second.headers["tenant"], second.correlation_id) == ("north", "c-1")


async def test_its_failures_are_retried_and_dead_lettered_like_ours(
    rabbitmq_url: str, plain: BlockingChannel, name: str
) -> None:
    app = App("interop")
    attempts: list[int] = []

    @app.consumer(Queue(name, JSON))
    async def fail(value: JSON, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ValueError(f"not {value}")

    settings = Settings.model_validate(
        {"queues": {name: {"retry": {"backoff": "fixed", "base": 0.1}}}}
    )
    async with app.connect(rabbitmq_url, settings=settings) as broker, Worker(app, broker):
        plain.basic_publish("", name, b'{"n": 1}')
        plain.basic_publish("", name, b"{n: 1}")
        letters = {}
        async with asyncio.timeout(WITHIN):
            while len(letters) < 2:
                letters = {letter.body: letter for letter in await broker.dead_letters(name).list()}
                await asyncio.sleep(0.05)
    assert (letters[b'{"n": 1}'].reason, attempts) == ("retries_exhausted", [1, 2, 3])
    assert letters[b"{n: 1}"].reason == "undecodable"


@pytest.mark.parametrize("durability", QUEUES)
async def test_it_reads_what_we_publish(
    rabbitmq_url: str, plain: BlockingChannel, durability: str | None, name: str
) -> None:
    queue = Queue(name, JSON)
    async with connect(rabbitmq_url, durability) as broker:
        receipt = await broker.publish(queue, {"n": 1}, headers={"tenant": "north"})
        properties, body = await asyncio.to_thread(taken, plain, queue.name)
    assert body == b'{"n":1}'
    assert (properties.message_id, properties.content_type) == (receipt.id, "application/json")
    assert properties.delivery_mode == pika.DeliveryMode.Persistent.value
    assert properties.headers["tenant"] == "north"


async def test_it_acknowledges_and_gives_back(
    rabbitmq_url: str, plain: BlockingChannel, name: str
) -> None:
    queue = Queue(name, str, codec="text")
    async with connect(rabbitmq_url) as broker:
        await broker.publish(queue, "again")
        method, _, _ = await asyncio.to_thread(_got, plain, queue.name)
        plain.basic_nack(method.delivery_tag, requeue=True)
        async with broker.consume(queue) as deliveries:
            delivery = await deliveries.get(timeout=WITHIN)
            assert delivery is not None
            assert (delivery.value, delivery.attempt, delivery.redelivered) == ("again", 1, True)
            await delivery.ack()


def _got(channel: BlockingChannel, queue: str) -> tuple[Any, Any, Any]:
    deadline = time.monotonic() + WITHIN
    while (found := channel.basic_get(queue))[0] is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


async def test_it_publishes_to_our_routers(
    rabbitmq_url: str, plain: BlockingChannel, name: str
) -> None:
    placed, every = Queue(f"{name}.placed", JSON), Queue(f"{name}.every", JSON)
    router = Router(name, JSON, kind="topic").bind(placed, "order.placed").bind(every, "order.#")
    async with connect(rabbitmq_url) as broker:
        await broker.declare(router)
        plain.exchange_declare(name, passive=True)
        plain.basic_publish(name, "order.placed", b'{"n": 1}')
        plain.basic_publish(name, "order.sent.late", b'{"n": 2}')
        found = {}
        for queue, number in ((placed, 1), (every, 2)):
            async with broker.consume(queue) as deliveries:
                got = [await deliveries.get(timeout=WITHIN) for _ in range(number)]
                found[queue.name] = [
                    delivery.value["n"] for delivery in got if delivery is not None
                ]
    assert found == {placed.name: [1], every.name: [1, 2]}


async def test_its_own_queue_hears_our_routers(
    rabbitmq_url: str, plain: BlockingChannel, name: str
) -> None:
    router = Router(name, JSON, kind="direct").bind(Queue(f"{name}.ours", JSON), "today")
    async with connect(rabbitmq_url) as broker:
        await broker.declare(router)
        own = plain.queue_declare("", exclusive=True).method.queue
        plain.queue_bind(own, name, "today")
        await broker.publish(router, {"n": 1}, key="today")
        properties, body = await asyncio.to_thread(taken, plain, own)
        assert (body, properties.content_type) == (b'{"n":1}', "application/json")
        [counts] = await broker.counts(f"{name}.ours")
        assert counts.ready == 1


async def test_it_looks_for_our_queues_and_may_not_declare_them_anew(
    rabbitmq_url: str, plain: BlockingChannel, name: str
) -> None:
    queue = Queue(name, str, codec="text")
    async with connect(rabbitmq_url) as broker:
        await broker.publish(queue, "still there")
        assert plain.queue_declare(queue.name, passive=True).method.message_count == 1
        with pytest.raises(ChannelClosedByBroker, match="PRECONDITION_FAILED"):
            plain.queue_declare(queue.name)
        [counts] = await broker.counts(queue)
        assert counts.ready == 1


async def test_we_adopt_a_queue_of_its_own(
    rabbitmq_url: str, plain: BlockingChannel, name: str
) -> None:
    plain.queue_declare(name, durable=True)
    queue = Queue(name, str, codec="text", declare=False)
    async with connect(rabbitmq_url) as broker:
        await broker.publish(queue, "hello")
        _, body = await asyncio.to_thread(taken, plain, queue.name)
        assert body == b"hello"
        plain.basic_publish("", queue.name, b"hello yourself")
        async with broker.consume(queue) as deliveries:
            delivery = await deliveries.get(timeout=WITHIN)
            assert delivery is not None
            assert delivery.value == "hello yourself"
            await delivery.ack()
    plain.queue_delete(name)  # what mqcore has not made, its fixture does not clear away
