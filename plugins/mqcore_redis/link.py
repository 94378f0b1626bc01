"""One connection, used by everybody at once: commands of the same loop turn leave in one write, answers come in their order.

A caller that is cancelled or stops waiting takes nothing with it: its answer still arrives and is
thrown away. So a cancelled call never costs the connection, and a claim under way is never lost. A
silent peer is noticed by its silence: the oldest command must be answered while the watch looks
`patience` times.
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import InvalidResponse, RedisError

from mqcore.spi import ConnectionLost
from mqcore_redis.classify import is_answer, other_protocol

__all__ = ["PATIENCE", "Answer", "Link"]

Answer = Any
"""What the server said: bytes, a number, a list, None; or the exception that it, or the lost connection, stands for.
"""
PATIENCE = 7
"""Looks of the watch, one a second, that a command may go unanswered."""
GOODBYE = 0.4
"""Seconds that a close may take until the transport is gone too."""
_LOOK = 1.0
_QUIET = 3
"""Looks without any traffic after which the peer is asked whether it is there."""


class Link:
    """A connected connection.

    `broken` is called once, on the loop, when it fails; not after `close`.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        broken: Callable[[Exception], None],
        patience: int = PATIENCE,
    ) -> None:
        self.connection, self._broken, self._patience = connection, broken, patience
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._wanted = asyncio.Event()
        self._error: Exception | None = None
        self._quiet = 0
        self._tasks = [
            asyncio.create_task(work) for work in (self._send(), self._read(), self._watch())
        ]

    def call(self, *command: Any) -> asyncio.Future[Answer]:
        """Send a command; the future never raises, an error is its result."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        if self._error is not None:
            future.set_result(self._error)
            return future
        try:
            packed = hiredis.pack_command(command)
        except Exception as error:  # noqa: BLE001 - the answer of this command alone: others of its batch are on their way (G1)
            future.set_result(error)
            return future
        self._unsent.append(packed)
        self._waiting.append(future)
        self._wanted.set()
        return future

    async def everywhere(self, *commands: tuple[Any, ...]) -> list[list[Answer]]:
        """Send commands whose name may have several words; for each the answers of all masters, of which there is one."""
        answers = [self.call(*name.split(), *args) for name, *args in commands]
        return [[await answer] for answer in answers]

    async def close(self) -> None:
        """Let go within `GOODBYE` seconds; whoever still waits for an answer is told at once."""
        self._end(ConnectionLost("the connection to Redis was closed"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(RedisError, OSError):
            async with asyncio.timeout(GOODBYE):
                await self.connection.disconnect()

    def _end(self, error: Exception) -> bool:
        """Answer everybody with the error; False when that was done before."""
        if self._error is not None:
            return False
        self._error = error
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(error)
        return True

    def _fail(self, error: Exception) -> None:
        if self._end(error):
            self._broken(error)

    async def _send(self) -> None:
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                packed, self._unsent = self._unsent, []
                await self.connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as error:
            self._fail(error)

    async def _read(self) -> None:
        try:
            while True:
                try:
                    answer = await self.connection.read_response(
                        timeout=math.inf, disconnect_on_error=False
                    )
                except RedisError as error:
                    if not is_answer(error):
                        raise
                    answer = error
                self._quiet = 0
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(answer)
        except InvalidResponse as error:
            self._fail(other_protocol(error))
        except (RedisError, OSError, IndexError) as error:
            self._fail(error)

    async def _watch(self) -> None:
        """Count looks, not seconds: a handler that blocks the loop for long must not make the peer look silent."""
        oldest: asyncio.Future[Answer] | None = None
        looks = 0
        while self._error is None:
            await asyncio.sleep(_LOOK)
            first = self._waiting[0] if self._waiting else None
            looks = looks + 1 if first is not None and first is oldest else 0
            oldest = first
            self._quiet += 1
            if looks > self._patience:
                self._fail(
                    ConnectionLost(f"Redis has not answered for more than {self._patience} s")
                )
            elif first is None and self._quiet >= _QUIET:
                self.call("PING")
