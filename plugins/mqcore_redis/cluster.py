"""All nodes of a cluster behind the methods of a `Link`.

redis-py finds the node of a command by its keys, and follows slots that have moved. Commands of one
slot keep their order: each waits for the one before it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mqcore.spi import ConnectionLost
from mqcore_redis.classify import is_answer
from mqcore_redis.dial import plain_settings
from mqcore_redis.link import Answer
from mqcore_redis.options import Place
from mqcore_redis.scripts import Call

__all__ = ["ClusterLink"]

_ANSWER = 8.0
"""Seconds for one command. A BLPOP of the waker waits for less."""
_AT_ONCE, _MANY = 32, 100_000
"""Scripts that run at the same time, each on its own connection, and the most connections.

A slot with idle consumers blocks one connection.
"""
_CLOSED = "the connection to the Redis cluster was closed"
_BROKEN = (RedisConnectionError, RedisTimeoutError, OSError)


class ClusterLink:
    """All nodes of a cluster."""

    def __init__(self, place: Place, broken: Callable[[Exception], None]) -> None:
        options = place.options
        files = (options.cafile, options.certfile, options.keyfile)
        cafile, certfile, keyfile = (None if file is None else str(file) for file in files)
        self.client = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in place.hosts],
            username=place.username,
            password=place.password,
            socket_timeout=_ANSWER,
            socket_connect_timeout=options.connect_timeout,
            max_connections=_MANY,
            ssl=place.tls is not None,
            ssl_ca_certs=cafile,
            ssl_certfile=certfile,
            ssl_keyfile=keyfile,
            **plain_settings(),
        )
        self._broken = broken
        self._error: Exception | None = None
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[Answer]] = set()

    async def connect(self) -> None:
        """Find the nodes. Raises the driver's own exception, and leaves nothing open then."""
        try:
            await self.client.initialize()
        except BaseException:
            await self.client.aclose()
            raise

    async def everywhere(self, *commands: tuple[Any, ...]) -> list[list[Answer]]:
        """Run commands, whose names may have several words, on all masters.

        Returns a list of answers for each command, errors among them.
        """
        masters = self.client.get_primaries()
        return [
            await asyncio.gather(*(_ask(node, command) for node in masters)) for command in commands
        ]

    def run(self, calls: Sequence[Call], **_: bool) -> list[asyncio.Future[Answer]]:
        """Run scripts; those of one slot in their order, and the others at the same time."""
        return [self.call(*call.command(), script=call) for call in calls]

    def call(self, *command: Any, script: Call | None = None) -> asyncio.Future[Answer]:
        """Send a command. The future never raises: an error is its result.

        That is so when `close` cancels the command, too.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._error is not None:
            future.set_result(self._error)
            return future

        def tell(task: asyncio.Task[Answer]) -> None:
            self._tasks.discard(task)
            if not future.done():
                future.set_result(ConnectionLost(_CLOSED) if task.cancelled() else task.result())

        task = asyncio.create_task(self._call(command, script))
        self._tasks.add(task)
        task.add_done_callback(tell)
        return future

    async def _call(self, command: tuple[Any, ...], script: Call | None) -> Answer:
        try:
            if script is None:
                return await self.client.execute_command(*command)
            key = script.keys[0]
            async with self._lines.setdefault(key[: key.find("}")], asyncio.Lock()), self._room:
                try:
                    return await self.client.execute_command(*command)
                except NoScriptError:  # nothing ran
                    return await self.client.execute_command(*script.command(as_text=True))
        except Exception as error:  # noqa: BLE001 - any exception is the answer: a caller waits for one
            if isinstance(error, ReadOnlyError):
                self._broken(error)
            elif isinstance(error, _BROKEN) and not is_answer(error) and self._error is None:
                self._error = error
                self._broken(error)
            return error

    async def close(self) -> None:
        """Close at once. Callers that wait get `ConnectionLost`."""
        self._error = ConnectionLost(_CLOSED)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.aclose()


async def _ask(master: ClusterNode, command: tuple[Any, ...]) -> Answer:
    try:
        return await master.execute_command(*command)
    except ResponseError as error:
        return error
