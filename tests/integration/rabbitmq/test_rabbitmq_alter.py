"""`broker.alter` on RabbitMQ: what is altered, and the text of each error."""

from __future__ import annotations

from typing import Any

import pytest
from pika import spec

from mqcore import Broker, ConfigurationError, Queue, QueueNotFound, Settings, TopologyMismatch

pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_length": 5}, "max_length"),
        ({"retention": 700.0}, "retention"),
    ],
    ids=["max_length", "retention"],
)
async def test_what_the_broker_fixes_is_named_and_nothing_changes(
    rabbitmq_url: str, name: str, settings: dict[str, Any], text: str
) -> None:
    queue = Queue(name, str, ttl=60, max_length=10, retention=600)
    async with Broker.connect(rabbitmq_url, settings=Settings()) as broker:
        await broker.publish(queue, "kept")
        before = [each.spec for each in await broker.counts(name, f"{name}.dlq")]
        with pytest.raises(TopologyMismatch, match=text) as caught:
            await broker.alter(queue, **settings)
        assert name in str(caught.value)
        assert [each.spec for each in await broker.counts(name, f"{name}.dlq")] == before
        assert (await broker.counts(name))[0].ready == 1

        await broker.alter(queue, ttl=120)
        (altered,) = await broker.counts(name)
        assert altered.spec is not None
        assert (altered.spec.ttl, altered.ready) == (120.0, 1)


async def test_a_queue_that_is_not_there_is_named(rabbitmq_url: str, name: str) -> None:
    async with Broker.connect(rabbitmq_url, settings=Settings()) as broker:
        with pytest.raises(QueueNotFound, match=f"{name}.*does not exist"):
            await broker.alter(name, ttl=5)


async def test_a_queue_of_another_client_is_left_as_it_is(rabbitmq_url: str, name: str) -> None:
    async with Broker.connect(rabbitmq_url, settings=Settings()) as broker:
        backend = broker._session.connection.backend
        async with backend._open.topology.rpc.channel() as channel:  # type: ignore[attr-defined]  # RabbitMQ's
            await channel.request(spec.Queue.Declare(queue=name, durable=True))
        with pytest.raises(ConfigurationError, match=f"{name}.*was not declared by mqcore"):
            await broker.alter(name, ttl=5)
        assert await broker.delete(name)
