"""pika's connection out of a broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pika.connection import Connection

from mqcore import Broker, ConfigurationError, MqcoreError, Queue
from mqcore.spi import Backend
from mqcore_rabbitmq import RabbitOptions


async def test_the_connection_works_and_nothing_else_is_given(rabbitmq_url: str, name: str) -> None:
    orders = Queue(name, str)
    async with Broker.connect(rabbitmq_url) as broker:
        connection = broker.unwrap(Connection)
        opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        channel = connection.channel(on_open_callback=opened.set_result)
        await asyncio.wait_for(opened, 5)

        await broker.publish(orders, "one")
        counted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        channel.queue_declare(name, passive=True, callback=counted.set_result)
        assert (await asyncio.wait_for(counted, 5)).method.queue == name

        for kind in (str, bytes, Backend, RabbitOptions):
            with pytest.raises(
                ConfigurationError,
                match=r"It has: pika\.adapters\.asyncio_connection\.AsyncioConnection",
            ) as caught:
                broker.unwrap(kind)
            assert rabbitmq_url not in str(caught.value)
        await broker.delete(orders)

    with pytest.raises(MqcoreError):
        broker.unwrap(Connection)
