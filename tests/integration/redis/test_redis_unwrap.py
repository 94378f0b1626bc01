"""redis-py's client out of a broker: on a server, on a local socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis

from mqcore import Broker, ConfigurationError, MqcoreError, Queue, sync
from mqcore.spi import Backend
from mqcore_redis import RedisOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Private

SECRET = "hunter2"
orders = Queue("unwrapped", str)


async def test_the_client_works_and_nothing_else_is_given(private: Callable[..., Private]) -> None:
    server = private()
    async with Broker.connect(f"redis://default:{SECRET}@127.0.0.1:{server.port}/3") as broker:
        client = broker.unwrap(Redis)
        assert broker.unwrap(Redis) is client
        await client.set("theirs", "1")
        assert await client.get("theirs") == b"1"
        assert (await client.info("keyspace")).keys() == {"db3"}

        await client.blpop(["nothing"], timeout=0.05)  # type: ignore[misc]  # redis-py's annotation
        await broker.publish(orders, "still there")
        assert (await broker.counts(orders))[0].ready == 1

        for kind in (str, bytes, Backend, RedisOptions):
            with pytest.raises(
                ConfigurationError, match=r"It has: redis\.asyncio\.client\.Redis"
            ) as caught:
                broker.unwrap(kind)
            assert SECRET not in str(caught.value)

    with pytest.raises(MqcoreError):
        broker.unwrap(Redis)
    with server.client() as plain:
        assert len(plain.client_list()) == 1, "the client was closed with the broker"


async def test_the_client_of_a_local_socket(private: Callable[..., Private]) -> None:
    server = private("--unixsocket", "s.sock")
    async with Broker.connect(f"unix://{server.folder}/s.sock") as broker:
        assert await broker.unwrap(Redis).ping()


def test_a_blocking_broker_hands_out_the_client_of_its_own_loop(
    private: Callable[..., Private],
) -> None:
    server = private()
    with sync.Broker.connect(f"redis://127.0.0.1:{server.port}") as broker:
        assert isinstance(broker.unwrap(Redis), Redis)
        with pytest.raises(ConfigurationError):
            broker.unwrap(str)
