"""The connection of a task store: opened again when it is needed after it broke."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from pydantic import ValidationError
from redis.exceptions import RedisError

from mqcore.spi import ConnectionLost, ErrorKind, split_url
from mqcore.tasks.spi import ConfigurationError, IllegalTransition, StoreError
from mqcore_redis.classify import refusal_of
from mqcore_redis.dial import dial
from mqcore_redis.link import Link
from mqcore_redis.options import Place, RedisOptions, read
from mqcore_redis.probe import RIGHTS, probe
from mqcore_redis.scripts import TASK_NAMES
from mqcore_redis.session import Session, raise_if_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore_redis.link import Answer

__all__ = ["Server", "place_of"]

_ILLEGAL = "ILLEGAL "
"""Begins the error of a script for a state that cannot follow."""
_RIGHTS = f"{RIGHTS}; to learn of results at once also +@pubsub &PREFIX:*"
_HINTS = {
    ErrorKind.FULL: "The server is full: free memory, or set a higher maxmemory",
    ErrorKind.DENIED: f"The user of the URL needs {_RIGHTS}",
}


def place_of(url: str) -> Place:
    """Read the URL of a store, which has the options of the backend.

    Raises `ConfigurationError`, without secrets, when it is not valid.
    """
    try:
        query = split_url(url).query
        given = dict(parse_qsl(query, strict_parsing=True)) if query else {}
        options = RedisOptions.model_validate(given)
    except ValidationError as error:
        names = ", ".join(sorted({str(it["loc"][0]) for it in error.errors()}))
        known = ", ".join(RedisOptions.model_fields)
        raise ConfigurationError(
            f"the URL of the task store has options that are not valid: {names}. There are: {known}"
        ) from None
    except ValueError:
        raise ConfigurationError(
            "the URL of the task store is not valid. Write redis://host:6379/0?option=value"
        ) from None
    return read(url, options)


class Server:
    """The server of one store. Each call connects first, if the connection is broken or missing."""

    def __init__(self, place: Place) -> None:
        options = place.options
        self.stem = f"{options.prefix}:tasks:{{{options.tag or 0}}}:"
        """Begins every key. The part in braces puts them all into one slot of a cluster."""
        self._place = place
        self._session: Session | None = None
        self._is_open = False
        self._connecting = asyncio.Lock()

    async def open(self) -> None:
        """Connect, load the scripts and check the server."""
        self._is_open = True
        try:
            await self._connected()
        except BaseException:
            self._is_open = False
            raise

    async def close(self) -> None:
        """Disconnect."""
        self._is_open = False
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def run(self, script: str, *words: Any) -> Answer:
        """Run a script of the store. Raises `StoreError`, and `IllegalTransition` as it is."""
        session = await self._connected()
        try:
            return await session.run(script, [self.stem], *words)
        except (RedisError, ConnectionLost, OSError) as error:
            text = str(error)
            if text.startswith(_ILLEGAL):
                raise IllegalTransition(text.removeprefix(_ILLEGAL)) from error
            raise self._failed(error) from error

    async def ask(self, command: str, key: str, *words: Any) -> Answer:
        """Run a command on one of the store's keys. Raises `StoreError`."""
        session = await self._connected()
        try:
            return await session.command(command, f"{self.stem}{key}", *words)
        except (RedisError, ConnectionLost, OSError) as error:
            raise self._failed(error) from error

    async def listen(self, channel: str, heard: Callable[[bytes | None], None]) -> None:
        """Subscribe to one of the store's channels, on a connection of its own.

        `heard` gets None when the subscription has begun. Raises `StoreError` when it is lost.
        """
        lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

        def broken(error: Exception) -> None:
            if not lost.done():
                lost.set_result(error)

        link: Link | None = None
        try:
            link = Link(await dial(self._any_node()), broken, heard=heard)
            raise_if_error(await link.call("SUBSCRIBE", f"{self.stem}{channel}"))
            heard(None)
            raise await lost
        except (RedisError, ConnectionLost, OSError) as error:
            raise self._failed(error) from error
        finally:
            if link is not None:
                await link.close()

    def _any_node(self) -> Place:
        """Return where to subscribe: each node of a cluster passes on what is published on one."""
        place = self._place
        if place.kind != "cluster":
            return place
        return replace(place, hosts=(random.choice(place.hosts),))

    async def _connected(self) -> Session:
        session = self._session
        if session is not None and session.error is None:
            return session

        async with self._connecting:
            session = self._session
            if self._is_open and (session is None or session.error is not None):
                session = self._session = await self._connect(session)
            if session is None or not self._is_open:
                await self.close()  # also when it was closed while it connected
                raise StoreError(
                    f"the task store at {self._place.shown} is closed. Call open() first"
                )
            return session

    async def _connect(self, old: Session | None) -> Session:
        self._session = None
        if old is not None:
            await old.close()

        session = Session(self._place, lambda _error: None, TASK_NAMES)
        try:
            await session.open()
            await probe(session)
        except (RedisError, ConnectionLost, OSError) as error:
            await session.close()
            raise StoreError(
                f"cannot connect to the task store at {self._place.shown}: "
                f"{type(error).__name__}: {error}. Nothing was sent. The next call connects again; "
                f"check that the server runs and what the URL says. The user needs {_RIGHTS}"
            ) from error
        except BaseException:
            await session.close()
            raise
        return session

    def _failed(self, error: Exception) -> StoreError:
        kind, shown = refusal_of(error), self._place.shown
        if kind is None:
            return StoreError(
                f"the task store at {shown} has failed: {type(error).__name__}: {error}. Changes "
                "that were sent may have been made. Apply them again: that is safe, and the next "
                "call connects again if it has to"
            )
        return StoreError(
            f"the task store at {shown} has refused a call: {error}. Nothing was changed. "
            f"{_HINTS.get(kind, 'Apply the changes again later')}"
        )
