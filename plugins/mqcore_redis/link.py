"""One connection that all callers share: commands of one loop turn leave in one write.

A script for which somebody waits is sent at once where it is alone. A script that the server has
forgotten is sent again as text: NOSCRIPT says that nothing ran.

Answers come in the order of the commands. A caller that is cancelled or stops waiting does not
disturb the others: its answer still arrives and is dropped. So a cancelled call never costs the
connection, and a claim under way is never lost. A silent server is noticed: the watch checks once a
second whether the oldest command has been answered.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, NoScriptError, ReadOnlyError, RedisError

from mqcore.spi import ConnectionLost
from mqcore_redis.classify import is_answer, other_protocol
from mqcore_redis.scripts import Call

__all__ = ["PATIENCE", "Answer", "Deadlines", "Link"]

Answer = Any
"""The server's answer: bytes, a number, a list or None. An error is an answer too."""
PATIENCE = 7
"""Checks of the watch, one a second, during which a command may be unanswered."""
GOODBYE = 0.4
"""Seconds that a close waits for the end of the transport."""
_CHECK = 1.0
_QUIET = 3
"""Checks without any traffic after which the watch sends a PING."""
_INCOMPLETE = object()


class Link(asyncio.Protocol):
    """A connected connection.

    redis-py connects and logs in. Then the link reads and writes the transport itself: redis-py's
    reader and writer are coroutines, which cost more than everything else in a command. `broken` is
    called on the loop when the connection fails, or the server answers that it is a replica now;
    not after `close`.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        broken: Callable[[Exception], None],
        patience: int = PATIENCE,
        heard: Callable[[bytes], None] | None = None,
    ) -> None:
        """`heard` gets what is published on the channels that this connection has subscribed to."""
        self._heard = heard
        self.connection, self._broken, self._patience = connection, broken, patience
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._waiting: deque[tuple[asyncio.Future[Answer], Call | None]] = deque()
        """The answers that are to come, and which script each of them is of."""
        self._is_paused = self._is_scheduled = False
        self._error: Exception | None = None
        self._quiet = 0
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=DefaultParser.parse_error,
            notEnoughData=_INCOMPLETE,
        )

        writer = cast("asyncio.StreamWriter", connection._writer)  # noqa: SLF001 - there is no public way to it
        self._transport = writer.transport
        self._replaced = self._transport.get_protocol()
        self._transport.set_protocol(self)
        self._watching = asyncio.create_task(self._watch())

    def call(self, *command: Any) -> asyncio.Future[Answer]:
        """Send a command. The future never raises: an error is its result."""
        future = self._put(self._loop.create_future(), command)
        self._schedule()
        return future

    def run(self, calls: Sequence[Call], *, at_once: bool = False) -> list[asyncio.Future[Answer]]:
        """Run scripts in their order.

        With `at_once` they are sent now, unless the answers to other commands are to come.
        """
        is_alone = not self._waiting
        futures = [self._put(self._loop.create_future(), (), call) for call in calls]
        (self._flush if at_once and is_alone else self._schedule)()
        return futures

    def _put(
        self, future: asyncio.Future[Answer], command: tuple[Any, ...], call: Call | None = None
    ) -> asyncio.Future[Answer]:
        if self._error is not None:
            future.set_result(self._error)
            return future

        try:
            packed = hiredis.pack_command(command) if call is None else call.packed()
        except Exception as error:  # noqa: BLE001 - the answer to this command alone: others of its batch are sent (G1)
            future.set_result(error)
            return future

        self._unsent.append(packed)
        self._waiting.append((future, call))
        return future

    async def everywhere(self, *commands: tuple[Any, ...]) -> list[list[Answer]]:
        """Send commands, whose names may have several words, to all masters: here there is one."""
        answers = [self.call(*name.split(), *args) for name, *args in commands]
        return [[await answer] for answer in answers]

    async def close(self) -> None:
        """Close within `GOODBYE` seconds. Callers that wait get `ConnectionLost`."""
        self._end(ConnectionLost("the connection to Redis was closed"))
        self._watching.cancel()
        try:
            await asyncio.gather(self._watching, return_exceptions=True)
            with suppress(RedisError, OSError):
                async with asyncio.timeout(GOODBYE):
                    await self.connection.disconnect()
        finally:  # also when the close is cancelled
            self._transport.abort()

    def _end(self, error: Exception) -> bool:
        """Answer all callers with the error; return False when that was done before."""
        if self._error is not None:
            return False

        self._error = error
        self._unsent.clear()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(error)
        return True

    def _fail(self, error: Exception) -> None:
        if self._end(error):
            self._broken(error)

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_scheduled = False
        if self._unsent and not self._is_paused:
            packed, self._unsent = self._unsent, []
            self._transport.write(packed[0] if len(packed) == 1 else b"".join(packed))

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Give each answer to its caller."""
        self._quiet = 0
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _INCOMPLETE:
                if isinstance(answer, Exception) and not is_answer(answer):
                    self._fail(answer)
                    return
                if self._heard is not None and isinstance(answer, list) and answer[0] == b"message":
                    self._heard(answer[2])
                    continue
                future, call = self._waiting.popleft()
                if future.done():
                    continue
                if call is not None and isinstance(answer, NoScriptError):
                    self._put(future, call.command(as_text=True))
                    self._schedule()
                    continue
                future.set_result(answer)
                if isinstance(answer, ReadOnlyError):
                    self._broken(answer)
        except InvalidResponse as error:
            self._fail(other_protocol(error))
        except IndexError as error:  # an answer to no command
            self._fail(error)

    def pause_writing(self) -> None:
        """Keep commands back: the server takes them more slowly than they come."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Send what was kept back."""
        self._is_paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail all callers. redis-py's own protocol waits for this call when it disconnects."""
        self._replaced.connection_lost(exc)
        self._fail(exc or RedisConnectionError("Connection closed by server."))

    async def _watch(self) -> None:
        """Notice a silent server.

        Checks are counted, not seconds: a handler that blocks the loop for long must not make the
        server look silent.
        """
        oldest: object = None
        checks = 0
        while self._error is None:
            await asyncio.sleep(_CHECK)
            first = self._waiting[0] if self._waiting else None
            checks = checks + 1 if first is not None and first is oldest else 0
            oldest = first
            self._quiet += 1

            if checks > self._patience:
                self._fail(
                    ConnectionLost(f"Redis has not answered for more than {self._patience} s")
                )
            elif first is None and self._quiet >= _QUIET:
                self.call("PING")


class Deadlines:
    """Answers None to calls that have no answer by their deadline; one timer serves all calls."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: list[tuple[float, Sequence[asyncio.Future[Answer]]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, deadline: float, futures: Sequence[asyncio.Future[Answer]]) -> None:
        """Answer None at `deadline`, by the loop's clock, unless there is an answer before."""
        self._calls.append((deadline, futures))
        if self._timer is None or deadline < self._timer.when():
            self._set(deadline)

    def _set(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Once a second at least: what was answered must not be kept in memory until its deadline.
        self._timer = self._loop.call_at(min(when, self._loop.time() + 1.0), self._sweep)

    def _sweep(self) -> None:
        now, calls, self._timer = self._loop.time(), self._calls, None
        self._calls = []
        for deadline, futures in calls:
            left = [future for future in futures if not future.done()]
            if deadline > now and left:
                self._calls.append((deadline, left))
            else:
                for future in left:
                    future.set_result(None)
        if self._calls:
            self._set(min(deadline for deadline, _ in self._calls))
