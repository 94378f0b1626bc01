"""Alarms, and RabbitMQ's limits on how long a message is held and how often it is delivered."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker
from support.waiting import eventually

from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Ack,
    ErrorKind,
    Failed,
    Message,
    Move,
    Outgoing,
    QueueSpec,
    new_id,
)
from mqcore_rabbitmq import RabbitBackend, RabbitOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from mqcore.contract.brokers import Server

pytestmark = pytest.mark.timeout(120)
DELIVERIES = 25
"""More than the 20 that a quorum queue of 4.0 allows where nothing else is said."""


@pytest.fixture
def server(broker_server: Callable[[str], Server], rabbitmq_url: str) -> Server:
    return broker_server("rabbitmq")


@pytest.fixture(params=["classic", "quorum"])
async def backend(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[RabbitBackend]:
    durability = "machine" if request.param == "quorum" else None
    backend = RabbitBackend(server.url, RabbitOptions.model_validate({"durability": durability}))
    await backend.open(lambda _: None)
    yield backend
    await backend.close()


async def a_queue(backend: RabbitBackend) -> str:
    name = f"t.{new_id()[:12]}"
    dead = QueueSpec(name=f"{name}.dlq", role="dead_letter")
    await backend.declare([QueueSpec(name=name, dead_letter=f"{name}.dlq"), dead])
    return name


def out(queue: str, name: str | None = None) -> Outgoing:
    return Outgoing(queue, Message(id=name or new_id(), body=b"body"))


@contextmanager
def alarm(server: Server) -> Iterator[None]:
    """A broker that is out of memory, by its own account."""
    server.run("rabbitmqctl", "set_vm_memory_high_watermark", "absolute", "1000000")
    try:
        yield
    finally:
        server.run("rabbitmqctl", "set_vm_memory_high_watermark", "absolute", "1073741824")


@contextmanager
def impatient(server: Server) -> Iterator[None]:
    """A broker whose consumer timeout is two seconds, unless the queue sets another."""
    setting = "application:set_env(rabbit, {}, {})."
    server.run("rabbitmqctl", "eval", setting.format("channel_tick_interval", 500))
    server.run("rabbitmqctl", "eval", setting.format("consumer_timeout", 2000))
    try:
        yield
    finally:
        server.run("rabbitmqctl", "eval", setting.format("consumer_timeout", 1_800_000))
        server.run("rabbitmqctl", "eval", setting.format("channel_tick_interval", 60_000))


async def test_under_an_alarm_publishing_fails_at_once_and_all_else_goes_on(
    backend: RabbitBackend, server: Server
) -> None:
    queue = await a_queue(backend)
    assert await backend.publish([out(queue, name) for name in "abc"], timeout=5) == [STORED] * 3
    consumer = await backend.subscribe(queue, prefetch=2, lease=30)
    held = [*await consumer.receive(2, 5)]
    while len(held) < 2:
        held += await consumer.receive(2 - len(held), 5)
    a, b = held
    with alarm(server):

        async def known() -> bool:
            """The broker says so to who publishes, after it has read what was published."""
            (outcome,) = await backend.publish([out(queue)], timeout=0.5)
            return isinstance(outcome, Failed)

        await eventually(known, 20)
        began = time.monotonic()
        (refused,) = await backend.publish([out(queue, "never")], timeout=10)
        assert isinstance(refused, Failed)
        assert (refused.kind, "alarm" in refused.text) == (ErrorKind.TRANSIENT, True)
        move = Move(b.receipt, Outgoing(f"{queue}.dlq", b.message.moved(queue)))
        settled, kept = await consumer.settle([Ack(a.receipt), move], timeout=10)
        assert settled == DONE
        assert isinstance(kept, Failed)  # certainly not stored, so its source stays with us
        assert time.monotonic() - began < 2.0
        assert [it.message.id for it in await consumer.receive(1, 10)] == ["c"]
        other = RabbitBackend(server.url, RabbitOptions())
        await other.open(lambda _: None)
        await other.publish([out(queue)], timeout=0.2)
        began = time.monotonic()
        await other.close()
        assert time.monotonic() - began < 2.0
    await eventually(lambda: _stored(backend, queue), 30)
    assert await consumer.settle([move], timeout=10) == [DONE]
    (count,) = await backend.count([f"{queue}.dlq"])
    assert count.ready == 1
    await consumer.close()
    got: list[str] = []
    consumer = await backend.subscribe(queue, prefetch=100, lease=30)
    while page := await consumer.receive(100, 1):
        got += [it.message.id for it in page]
    assert "never" not in got


async def _stored(backend: RabbitBackend, queue: str) -> bool:
    return await backend.publish([out(queue)], timeout=1) == [STORED]


async def test_our_queues_may_be_held_for_longer_than_the_server_bears(
    backend: RabbitBackend, server: Server
) -> None:
    if tuple(map(int, server.version.split(".")[:2])) < (3, 12):
        pytest.skip("before 3.12 a queue cannot say so itself")
    with impatient(server):
        queue = await a_queue(backend)
        await backend.publish([out(queue)], timeout=5)
        consumer = await backend.subscribe(queue, prefetch=1, lease=30)
        (delivery,) = await consumer.receive(1, 5)
        await asyncio.sleep(5)
        assert await consumer.settle([Ack(delivery.receipt)], timeout=5) == [DONE]
        assert await consumer.receive(1, 0.5) == []
        await consumer.close()


async def test_a_consumer_that_holds_a_message_too_long_gets_an_error_and_consumes_again(
    server: Server,
) -> None:
    """In a foreign queue, or before 3.12, the broker closes the channel and redelivers all."""
    backend = RabbitBackend(server.url, RabbitOptions())
    lost: list[Exception] = []
    await backend.open(lost.append)
    name = f"t.{new_id()[:12]}"
    with impatient(server):
        async with backend._open.topology.rpc.channel() as channel:
            channel.raw.queue_declare(name, durable=True)
            await channel.return_all()
        await backend.publish([out(name, "a"), out(name, "b")], timeout=5)
        consumer = await backend.subscribe(name, prefetch=2, lease=30)
        held = [*await consumer.receive(1, 5)]
        while len(held) < 2:
            held += await consumer.receive(2 - len(held), 5)
        with pytest.raises(ChannelClosedByBroker, match="timed out"):
            await consumer.receive(2, 20)
        assert await consumer.settle([Ack(it.receipt) for it in held], timeout=5) == [STALE] * 2
    again = await backend.subscribe(name, prefetch=2, lease=30)
    got = [*await again.receive(2, 5)]
    while len(got) < 2:
        got += await again.receive(2, 5)
    assert sorted(it.message.id for it in got) == ["a", "b"]
    assert all(it.takeovers for it in got)
    assert await again.settle([Ack(it.receipt) for it in got], timeout=5) == [DONE] * 2
    assert lost == []  # one channel, not the connection
    await backend.delete(name)
    await backend.close()


async def test_no_number_of_deliveries_takes_a_message_away(backend: RabbitBackend) -> None:
    """Each dead consumer and each browse adds to a quorum queue's delivery count."""
    queue = await a_queue(backend)
    await backend.publish([out(queue, "old")], timeout=5)
    for _ in range(DELIVERIES):
        consumer = await backend.subscribe(queue, prefetch=1, lease=30)
        (delivery,) = await consumer.receive(1, 5)
        assert delivery.message.id == "old"
        await consumer.close()


@pytest.mark.parametrize("how", ["nack", "reject", "recover", "close"])
async def test_who_keeps_its_place_is_marked(
    backend: RabbitBackend, server: Server, how: str
) -> None:
    """No way to give back keeps the place without the mark of a crash (ADR 16)."""
    queue = await a_queue(backend)
    await backend.publish([out(queue, name) for name in "abc"], timeout=5)
    assert await asyncio.to_thread(given_back, server.url, queue, how) == [
        ("a", True),
        ("b", True),
        ("c", False),
    ]


def given_back(url: str, queue: str, how: str) -> list[tuple[str, bool]]:
    """Take two messages and give them back; return all ids, and whether they are marked."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel, other = connection.channel(), connection.channel()
    tags = [channel.basic_get(queue)[0].delivery_tag for _ in range(2)]
    if how == "nack":
        channel.basic_nack(tags[-1], multiple=True, requeue=True)
    elif how == "reject":
        for tag in tags:
            channel.basic_reject(tag, requeue=True)
    elif how == "recover":
        channel.basic_recover(requeue=True)
    else:
        channel.close()

    deadline = time.monotonic() + 10
    while other.queue_declare(queue, passive=True).method.message_count < len("abc"):
        assert time.monotonic() < deadline, "not all are back"
        time.sleep(0.01)
    came = [other.basic_get(queue)[:2] for _ in "abc"]
    got = [(str(given.message_id), method.redelivered) for method, given in came]
    connection.close()
    return got
