"""Which server a name means, and what a server answers to the question who it is."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mqcore.contract.brokers import KINDS, Brokers, BrokerUnavailable, find
from mqcore.contract.brokers.probe import Identity, ask_postgresql, ask_rabbitmq, ask_redis
from mqcore.errors import ConfigurationError

REDIS = b"$64\r\n# Server\r\nredis_version:7.0.15\r\nredis_git_sha1:00000000\r\n\r\n+PONG\r\n"
VALKEY = (
    b"$64\r\n# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\n"
    b"valkey_version:8.1.1\r\n\r\n+PONG\r\n"
)
START = (
    b"\x01\x00\x00\x00\x00\x00\x40\x00\x0a\x00\x0a"
    b"\x00\x09\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x064.0.51\xce"
)


ACCEPTED = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x1eserver_version\00015.18 (Debian)\0Z\0\0\0\x05I"
PASSWORD = b"R\0\0\0\x17\0\0\0\nSCRAM-SHA-256\0\0"
STARTING = b"E\0\0\0\x30SFATAL\0C57P03\0Mthe database system is starting up\0\0"


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """Serve one connection: an answer to each thing that is said, and then the end."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                for answer in answers:
                    connection.recv(256)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("ask", "answers", "identity"),
    [
        pytest.param(ask_redis, [b"+PONG\r\n", REDIS], Identity("Redis", "7.0.15"), id="redis"),
        pytest.param(ask_redis, [b"+PONG\r\n", VALKEY], Identity("Valkey", "8.1.1"), id="valkey"),
        pytest.param(ask_rabbitmq, [START], Identity("RabbitMQ", "4.0.51"), id="rabbitmq"),
        pytest.param(ask_postgresql, [ACCEPTED], Identity("PostgreSQL", "15.18"), id="postgresql"),
        pytest.param(ask_postgresql, [PASSWORD], Identity("PostgreSQL", ""), id="password-first"),
    ],
)
def test_a_server_says_what_it_is(
    ask: Callable[..., Identity], answers: list[bytes], identity: Identity
) -> None:
    with answering(*answers) as port:
        assert ask("127.0.0.1", port, 5.0) == identity


@pytest.mark.parametrize(
    ("ask", "answers"),
    [
        pytest.param(
            ask_redis, [b"-LOADING Redis is loading the dataset in memory\r\n"], id="loading"
        ),
        pytest.param(ask_redis, [b"-NOAUTH Authentication required.\r\n"], id="password"),
        pytest.param(ask_redis, [b"+PONG\r\n", b"$0\r\n\r\n+PONG\r\n"], id="no-version"),
        pytest.param(ask_redis, [b"+PONG\r\n"], id="closes"),
        pytest.param(ask_rabbitmq, [b"AMQP\x00\x01\x00\x00\xce"], id="other-protocol"),
        pytest.param(ask_rabbitmq, [], id="closes-at-once"),
        pytest.param(ask_postgresql, [STARTING], id="starting"),
        pytest.param(ask_postgresql, [PASSWORD[:4]], id="half-an-answer"),
    ],
)
def test_what_does_not_serve_yet_is_an_os_error(
    ask: Callable[..., Identity], answers: list[bytes]
) -> None:
    with answering(*answers) as port, pytest.raises(OSError):  # noqa: PT011 - any of its kinds: the caller tries again
        ask("127.0.0.1", port, 5.0)


def test_a_name_with_a_number_is_one_kind_and_without_one_all_of_a_product() -> None:
    assert [kind.name for kind in find("redis-7")] == ["redis-7"]
    assert [kind.name for kind in find("redis")] == ["redis-8", "redis-7"]
    assert {kind.name for kind in KINDS} == {
        "redis-8",
        "redis-7",
        "valkey-8",
        "rabbitmq-4",
        "rabbitmq-3",
        "postgresql-17",
        "postgresql-15",
    }


def test_an_unknown_name_is_an_error_with_the_known_names() -> None:
    with pytest.raises(
        LookupError,
        match=r"unknown broker 'kafka' \(known: rabbitmq, rabbitmq-4, .*valkey-8",
    ):
        find("kafka")


@pytest.mark.parametrize(
    ("urls", "name", "url"),
    [
        (["redis://h/1"], "redis", "redis://h/1"),
        (["redis://h/1"], "redis-8", "redis://h/1"),
        (["redis://h/1", "redis-7=redis://h/7"], "redis-7", "redis://h/7"),
        (["redis-7=redis://h/7"], "redis", "redis://h/7"),
        (["rediss://h:6380"], "redis", "rediss://h:6380"),
        (["amqp://h", "valkey=redis://h"], "valkey", "redis://h"),
        (["postgresql://h/shop"], "postgresql-17", "postgresql://h/shop"),
        (["amqps://u:secret@h/v?heartbeat=5"], "rabbitmq-4", "amqps://u:secret@h/v?heartbeat=5"),
    ],
)
def test_a_url_serves_its_name_or_its_product(urls: list[str], name: str, url: str) -> None:
    assert Brokers("url", urls).url_of(name) == url


def test_a_missing_url_is_an_error() -> None:
    brokers = Brokers("url", ["redis://h"])
    with pytest.raises(
        BrokerUnavailable, match="valkey is not available: url: no URL was given for valkey"
    ):
        brokers.server("valkey")
    assert list(brokers.missing) == ["valkey"]


@pytest.mark.parametrize("url", ["kafka://h", "http://h"])
def test_a_url_of_another_scheme_needs_a_name(url: str) -> None:
    with pytest.raises(LookupError, match="Give it as NAME=URL"):
        Brokers("url", [url])


@pytest.mark.parametrize("url", ["redis", "kafka=redis://h", "redis=nonsense", ""])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises((LookupError, ConfigurationError)):
        Brokers("url", [url])


def test_an_unknown_provider_is_an_error_with_the_known_ones() -> None:
    with pytest.raises(
        LookupError, match=r"unknown provider 'cloud' \(known: docker, local, url, auto"
    ):
        Brokers("cloud")  # type: ignore[arg-type]  # which is the point
