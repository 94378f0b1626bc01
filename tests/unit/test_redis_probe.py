"""What is made of a server's own words, and what kind a trouble is."""

from __future__ import annotations

import ssl

import pytest
from redis import exceptions as redis

from mqcore.errors import ConfigurationError, ConnectionLost, QueueNotFound, TopologyMismatch
from mqcore.spi import Durability, ErrorKind
from mqcore_redis import RedisBackend, RedisOptions
from mqcore_redis.probe import _config, _durability, _info, _server, denied

AOF = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory": "0",
}
MEMORY, PROCESS, MACHINE = Durability.MEMORY, Durability.PROCESS, Durability.MACHINE


@pytest.mark.parametrize(
    ("info", "config", "stated", "wanted", "verified"),
    [
        ({}, AOF, None, MACHINE, True),
        ({}, AOF | {"appendfsync": "everysec"}, None, PROCESS, True),
        ({}, AOF | {"no-appendfsync-on-rewrite": "yes"}, None, PROCESS, True),
        ({}, AOF | {"appendonly": "no"}, "machine", MEMORY, True),
        ({"aof_enabled": "1"}, {}, None, PROCESS, True),
        ({"aof_enabled": "1"}, {}, "machine", MACHINE, False),
        ({"aof_enabled": "0"}, {}, "machine", MEMORY, True),
        ({}, {}, None, MEMORY, False),
        ({}, {}, "process", PROCESS, False),
        ({}, AOF | {"maxmemory": "100", "maxmemory-policy": "allkeys-lru"}, None, MEMORY, True),
        ({}, AOF | {"maxmemory": "0", "maxmemory-policy": "allkeys-lru"}, None, MACHINE, True),
        ({}, AOF | {"maxmemory": "100", "maxmemory-policy": "noeviction"}, None, MACHINE, True),
        (
            {"aof_enabled": "1", "maxmemory": "9", "maxmemory_policy": "volatile-ttl"},
            {},
            "machine",
            MEMORY,
            False,
        ),
        ({"aof_enabled": "1", "aof_last_write_status": "err"}, AOF, None, MEMORY, True),
    ],
    ids=range(14),
)
def test_durability(
    info: dict[str, str],
    config: dict[str, str],
    stated: str | None,
    wanted: Durability,
    *,
    verified: bool,
) -> None:
    found, limits = _durability(
        info, config, RedisOptions.model_validate({"assume_durability": stated})
    )
    assert (found, limits["verified"]) == (wanted, verified)
    assert ("warning" in limits) == (found is MEMORY)


def test_a_server_that_is_nearly_full_is_warned_of() -> None:
    _, limits = _durability({"used_memory": "81"}, AOF | {"maxmemory": "100"}, RedisOptions())
    assert "80 %" in str(limits["warning"])
    _, limits = _durability({"used_memory": "80"}, AOF | {"maxmemory": "100"}, RedisOptions())
    assert "warning" not in limits


def test_info_and_config_are_read_or_denied() -> None:
    assert _info(b"# Server\r\nredis_version:7.0.15\r\nos:a:b\r\n") == {
        "redis_version": "7.0.15",
        "os": "a:b",
    }
    assert _config([b"appendonly", b"yes", b"requirepass", b"hunter2"]) == {"appendonly": "yes"}
    assert _info(redis.NoPermissionError("no")) == {}
    assert _config(redis.ResponseError("unknown command 'CONFIG'")) == {}
    with pytest.raises(ConnectionLost):
        _info(ConnectionLost("broken"))


def test_valkey_is_told_from_the_redis_that_it_claims_to_be() -> None:
    assert (
        _server({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.1.1"})
        == "Valkey 8.1.1"
    )
    assert _server({"redis_version": "8.0.2"}) == "Redis 8.0.2"
    assert _server({}) == "Redis"
    with pytest.raises(ConfigurationError, match="too old"):
        _server({"redis_version": "6.2.14"})


def test_a_missing_right_is_known_by_its_words() -> None:
    assert denied(redis.ResponseError("The user executing the script can't run this command"))
    assert denied(
        redis.NoPermissionError(
            "User app has no permissions to run the 'time' command: permission denied"
        )
    )
    assert not denied(redis.ResponseError("something else"))


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def circular() -> Exception:
    error = redis.ConnectionError("a")
    error.__cause__ = error
    return error


def untrusted() -> Exception:
    error = redis.ConnectionError("Error 1 connecting")
    error.__context__ = ssl.SSLCertVerificationError("certificate verify failed")
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (QueueNotFound("gone"), ErrorKind.NOT_FOUND),
        (ConnectionLost("closed"), ErrorKind.TRANSIENT),
        (TopologyMismatch("other"), ErrorKind.PERMANENT),
        (redis.ConnectionError("refused"), ErrorKind.TRANSIENT),
        (redis.TimeoutError("late"), ErrorKind.TRANSIENT),
        (OSError(111, "refused"), ErrorKind.TRANSIENT),
        (redis.AuthenticationError("WRONGPASS"), ErrorKind.DENIED),
        (redis.AuthenticationError("no", status_code="WRONGPASS"), ErrorKind.DENIED),
        (redis.NoPermissionError("no", status_code="NOPERM"), ErrorKind.DENIED),
        (untrusted(), ErrorKind.DENIED),
        (redis.OutOfMemoryError("full", status_code="OOM"), ErrorKind.FULL),
        (redis.BusyLoadingError("wait", status_code="LOADING"), ErrorKind.TRANSIENT),
        (redis.ReadOnlyError("replica", status_code="READONLY"), ErrorKind.TRANSIENT),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), ErrorKind.TRANSIENT),
        (redis.ResponseError("MISCONF Errors writing to the AOF file"), ErrorKind.TRANSIENT),
        (redis.ResponseError("BUSY Redis is busy running a script."), ErrorKind.TRANSIENT),
        (redis.ResponseError("WRONGTYPE Operation against a key"), ErrorKind.PERMANENT),
        (circular(), ErrorKind.TRANSIENT),
        (ValueError("x"), ErrorKind.PERMANENT),
        (Odd(), ErrorKind.PERMANENT),
    ],
    ids=range(20),
)
def test_errors_have_a_kind(error: Exception, kind: ErrorKind) -> None:
    assert RedisBackend("redis://h", RedisOptions()).classify(error) is kind
