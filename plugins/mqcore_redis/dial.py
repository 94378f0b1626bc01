"""Making one connection: address, TLS, password, database.

It is redis-py's own `Connection`, with its retries and timeouts switched off.
"""

import asyncio
import math
from contextlib import suppress
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection, UnixDomainSocketConnection
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from mqcore_redis.classify import other_protocol
from mqcore_redis.options import Place, RedisOptions

__all__ = ["client", "dial", "plain_settings"]


_TLS_GOODBYE = 0.2
"""Seconds that a close waits for a silent server."""
_UNKNOWN_CA = {18, 19, 20, 21}
"""OpenSSL's numbers for a certificate whose issuer is not known here."""


class _Tls(Connection):
    """A connection with our own TLS context and server name."""

    def __init__(self, *, context: Any, server_name: str | None, **settings: Any) -> None:
        self._context, self._server_name = context, server_name
        super().__init__(**settings)

    def _connection_arguments(self) -> dict[str, Any]:
        name = self._server_name or self.host
        tls = {"ssl": self._context, "server_hostname": name, "ssl_shutdown_timeout": _TLS_GOODBYE}
        return {**super()._connection_arguments(), **tls}


def plain_settings() -> dict[str, Any]:
    """Return the settings of every connection.

    No retries, because they would repeat commands that may have had an effect; and RESP2.
    """
    return {
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


async def dial(place: Place) -> AbstractConnection:
    """Connect to the server, or to the master that Sentinel names.

    Raises the driver's own exception, and leaves nothing open then.
    """
    address = await _master(place) if place.kind == "sentinel" else next(iter(place.hosts), None)
    return await _connect(place, address, _login(place))


def client(place: Place, connection: AbstractConnection) -> Redis:
    """Return a client with connections of its own to the server of `connection`.

    It connects when it is first used.
    """
    address = (connection.host, connection.port) if isinstance(connection, Connection) else None
    kind, settings = _settings(place, address, _login(place))
    return Redis.from_pool(ConnectionPool(connection_class=kind, **settings))


def _login(place: Place) -> dict[str, Any]:
    return {"db": place.db, "username": place.username, "password": place.password}


def _settings(
    place: Place, address: tuple[str, int] | None, who: dict[str, Any]
) -> tuple[type[AbstractConnection], dict[str, Any]]:
    settings = {**plain_settings(), **who, "socket_timeout": None, "driver_info": None}
    if address is None:
        return UnixDomainSocketConnection, {"path": place.path, **settings}
    options = place.options
    settings |= {
        "host": address[0],
        "port": address[1],
        "socket_connect_timeout": options.connect_timeout,
    }
    if place.tls is None:
        return Connection, settings
    return _Tls, {"context": place.tls, "server_name": options.server_name, **settings}


async def _connect(
    place: Place, address: tuple[str, int] | None, who: dict[str, Any]
) -> AbstractConnection:
    kind, settings = _settings(place, address, who)
    connection, options = kind(**settings), place.options
    try:
        async with asyncio.timeout(options.connect_timeout):
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it without annotations
    except (TimeoutError, RedisTimeoutError):
        await connection.disconnect(nowait=True)
        hint = ": does this port speak TLS?" if isinstance(connection, _Tls) else ""
        raise RedisTimeoutError(
            f"no answer from Redis within {options.connect_timeout:g} s{hint}"
        ) from None
    except InvalidResponse as error:
        await connection.disconnect(nowait=True)
        raise other_protocol(error) from error
    except BaseException as error:
        await connection.disconnect(nowait=True)
        # redis-py keeps only the text of OpenSSL's error
        if getattr(error.__context__, "verify_code", None) in _UNKNOWN_CA:
            raise RedisConnectionError(
                f"{error}; name the file of the CA's certificate with ?cafile=FILE"
            ) from error
        raise
    return connection


async def _master(place: Place) -> tuple[str, int]:
    """Ask the Sentinels, one after the other, for the address of the master."""
    options, secret = place.options, place.options.sentinel_password
    who = {"password": secret.get_secret_value() if secret is not None else None}
    trouble: Exception | None = None
    for host, port in place.hosts:
        try:
            found = await _ask(await _connect(place, (host, port), who), options)
        except (RedisError, OSError) as error:
            trouble = error
            continue
        if found:
            return found[0].decode(), int(found[1])
        trouble = ResponseError(f"Sentinel {host}:{port} knows no master called {options.master!r}")
    if isinstance(trouble, ResponseError):
        raise trouble
    raise RedisConnectionError(f"no Sentinel of {place.shown} answers") from trouble


async def _ask(sentinel: AbstractConnection, options: RedisOptions) -> Any:
    """Return host and port of the master; None when this Sentinel does not know it."""
    try:
        async with asyncio.timeout(options.connect_timeout):
            await sentinel.send_command(
                "SENTINEL", "GET-MASTER-ADDR-BY-NAME", options.master, check_health=False
            )
            return await sentinel.read_response(timeout=math.inf)
    finally:
        with suppress(RedisError, OSError):
            await sentinel.disconnect(nowait=True)
