"""A URL with the port of another protocol: the error says what to write."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mqcore import BackendNotFound, Broker, BrokerError, ConfigurationError, ConnectionLost
from mqcore_redis import RedisBackend, RedisOptions


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """Serve a port that answers whatever comes with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (b"AMQP\x00\x00\x09\x01", r"It looks like AMQP: use amqp:// for RabbitMQ\."),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "It looks like HTTP"),
        (b"\x15\x03\x01", "is this the port of a Redis server"),
    ],
)
@pytest.mark.parametrize("login", ["", "user:hunter2@"])
async def test_redis_on_a_port_of_another_protocol(answer: bytes, hint: str, login: str) -> None:
    async with answering(answer) as port:
        with pytest.raises(BrokerError, match=hint) as caught:
            async with Broker.connect(f"redis://{login}127.0.0.1:{port}"):
                pass
    assert "does not speak Redis' protocol" in str(caught.value)
    assert "Protocol error" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_amqp_on_a_port_of_another_protocol() -> None:
    async with answering(b"-ERR unknown command 'AMQP'\r\n") as port:
        with pytest.raises(
            ConnectionLost, match=r"before any AMQP frame came|nothing speaks AMQP"
        ) as caught:
            async with Broker.connect(f"amqp://127.0.0.1:{port}"):
                pass
    assert "AddressFamily" not in str(caught.value)


async def test_amqp_on_a_port_that_waits_for_more() -> None:
    """As Redis does, which waits for the end of a line."""
    released = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(
            ConnectionLost, match=r"nothing speaks AMQP.*Redis is redis://"
        ) as caught:
            async with Broker.connect(f"amqp://127.0.0.1:{port}?connect_timeout=0.3"):
                pass
        released.set()
    assert "AddressFamily" not in str(caught.value)
    assert "Connection.close" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "ours"),
    [
        ("valkey", "redis"),
        ("valkeys", "rediss"),
        ("rabbitmq", "amqp"),
        ("redis+socket", "unix"),
        ("pyamqp", "amqp"),
    ],
)
def test_a_scheme_of_other_libraries_is_answered_with_ours(scheme: str, ours: str) -> None:
    with pytest.raises(BackendNotFound, match=rf"Write {ours}:// for this broker"):
        Broker.connect(f"{scheme}://localhost")


def test_a_redis_url_names_one_database() -> None:
    for url, options, db in [
        ("unix:///tmp/s.sock", RedisOptions(db=3), 3),
        ("unix:///tmp/s.sock", RedisOptions(), 0),
        ("redis://h/3", RedisOptions(), 3),
        ("redis://h", RedisOptions(db=4), 4),
        ("redis://h/4", RedisOptions(db=4), 4),
    ]:
        assert RedisBackend(url, options)._place.db == db
    with pytest.raises(ConfigurationError, match="two databases: 3 in its path and db=4"):
        RedisBackend("redis://h/3", RedisOptions(db=4))
    with pytest.raises(ConfigurationError, match="database 0 alone"):
        RedisBackend("redis+cluster://h", RedisOptions(db=4))
    with pytest.raises(ConfigurationError, match="db"):
        Broker.connect("unix:///tmp/s.sock?db=-1")
