"""One connection to beanstalkd: commands go out in a pipeline, answers come back in order.

The protocol is lines of ASCII, some of them followed by data. It is described in `doc/protocol.txt`
of beanstalkd. Nothing here knows of mqcore's messages.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

from mqcore.spi import ConnectionLost

__all__ = ["BeanstalkError", "Connection", "Reply", "expect", "put", "reserve", "table"]

_WITH_DATA = {"OK", "RESERVED", "FOUND"}
"""Answers whose last word is the length of the data that follows."""

_ENDS = (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError)
"""How reading ends: the first two with the connection, the others if it is not beanstalkd."""


class BeanstalkError(Exception):
    """The server answered, and the answer is an error: its word, such as DRAINING, is `word`."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


class Reply(NamedTuple):
    """One answer: `RESERVED 7 2` has the word RESERVED, the number 7, and two bytes of data."""

    word: str
    number: int = 0
    data: bytes = b""


class Connection:
    """One connection. `lost` is called once when it ends without `close`.

    Several tasks may use one connection at the same time: what one call of `send` is given stays
    together in the pipeline. A `reserve` that waits holds up every command behind it, so whoever
    waits for jobs needs a connection of his own.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lost: Callable[[Exception], None],
    ) -> None:
        self._reader, self._writer, self._lost = reader, writer, lost
        self._waiting: deque[asyncio.Future[Reply]] = deque()
        self._ended: Exception | None = None
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, host: str, port: int, lost: Callable[[Exception], None]) -> "Connection":
        """Connect. Raises `OSError`."""
        return cls(*await asyncio.open_connection(host, port), lost)

    def send(self, *commands: bytes) -> list[asyncio.Future[Reply]]:
        """Write commands, and return a future of each answer.

        Raises `ConnectionLost` when nothing could be sent. It does not wait for the socket: what is
        outstanding is bounded by those who wait for the answers.
        """
        if self._ended is not None:
            raise ConnectionLost(str(self._ended)) from self._ended

        futures = [asyncio.get_running_loop().create_future() for _ in commands]
        self._waiting.extend(futures)
        self._writer.write(b"".join(commands))
        return futures

    async def ask(self, *commands: bytes) -> list[Reply]:
        """Write commands and wait for all answers.

        Raises `ConnectionLost` when the connection ends before.
        """
        return list(await asyncio.gather(*self.send(*commands)))

    def close(self, why: str = "the connection is closed; open it again") -> None:
        """End it at once. Whoever waits for an answer gets `ConnectionLost`."""
        self._end(ConnectionLost(why))
        self._reading.cancel()

    async def _read(self) -> None:
        try:
            while True:
                reply = await self._reply()
                future = self._waiting.popleft()
                if (
                    not future.done()
                ):  # its caller may have been cancelled: the answer comes all the same
                    future.set_result(reply)
        except _ENDS as error:
            ended = ConnectionLost(
                f"the connection to beanstalkd ended: {type(error).__name__}: {error}"
            )
            if self._end(ended):
                self._lost(ended)

    async def _reply(self) -> Reply:
        line = await self._reader.readuntil(b"\r\n")
        word, *rest = line.decode("ascii").split()
        if word not in _WITH_DATA:
            return Reply(word, int(rest[0]) if rest and rest[0].isdigit() else 0)

        data = await self._reader.readexactly(int(rest[-1]) + 2)
        return Reply(word, int(rest[0]), data[:-2])

    def _end(self, error: Exception) -> bool:
        """End it, unless that is done.

        An abort, not a close: unsent bytes must not be sent on a connection that is given up.
        """
        if self._ended is not None:
            return False
        self._ended = error
        with suppress(RuntimeError):  # the loop is closing
            self._writer.transport.abort()

        for future in self._waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # its caller may be gone: no warning about an unread exception
        self._waiting.clear()
        return True


def put(priority: int, delay: int, ttr: int, body: bytes) -> bytes:
    """Return the command that stores a job in the tube in use."""
    return b"put %d %d %d %d\r\n%b\r\n" % (priority, delay, ttr, len(body), body)


def reserve(wait: int) -> bytes:
    """Return the command that reserves the next job, waiting up to `wait` seconds for one."""
    return b"reserve-with-timeout %d\r\n" % wait


def expect(reply: Reply, *words: str) -> Reply:
    """Return the answer if it is one of these. Raises `BeanstalkError`."""
    if reply.word not in words:
        text = f"beanstalkd answered {reply.word}, and one of {', '.join(words)} was expected"
        raise BeanstalkError(reply.word, text)
    return reply


def table(reply: Reply) -> Mapping[str, str]:
    """Return the statistics of an `OK` answer: lines of `name: value`.

    Empty for another answer, such as NOT_FOUND.
    """
    lines = reply.data.decode().splitlines() if reply.word == "OK" else []
    pairs = (line.partition(": ") for line in lines)
    return {name: value.strip('"') for name, colon, value in pairs if colon}
