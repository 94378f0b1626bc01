"""A TCP proxy between a client and its server that can be cut: how an instance dies in tests.

Closing an instance is a conversation; a process that is killed sends nothing. So each instance
connects to its own port here, and what it sends is forwarded unchanged. `kill` resets both ends at
once. All proxies run in one thread with its own event loop, independent of the loops of the tests.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from concurrent.futures import Future
from functools import cache
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Coroutine

__all__ = ["Proxy"]

T = TypeVar("T")
_HERE = "127.0.0.1"
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: the connection is reset, not closed."""


class Proxy:
    """A port on 127.0.0.1 that forwards to a server. Raises `OSError` when no port is free.

    While the server refuses connections, a connection to the proxy is accepted and then reset.
    """

    def __init__(self, host: str, port: int, *, at: int = 0) -> None:
        """Listen at port `at`, or at any free one."""
        self._goal = (host, port)
        self._ends: set[_End] = set()
        self._server: asyncio.Server
        self.port = _run(self._listen(at)).result()

    def cut(self) -> None:
        """Reset all connections on both sides; new ones are accepted."""
        _run(self._cut()).result()

    def kill(self) -> None:
        """Reset all connections on both sides, and accept no more."""
        _run(self._kill()).result()

    def mute(self) -> None:
        """Hold back what the server sends. What the instance sends is forwarded."""
        _run(self._mute(held=True)).result()

    def unmute(self) -> None:
        """Forward what was held back, and everything from now on."""
        _run(self._mute(held=False)).result()

    def close(self) -> None:
        """As `kill`, without waiting for it."""
        _run(self._kill())

    async def _listen(self, at: int) -> int:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _End(self._ends, self._goal), _HERE, at)
        return cast("int", self._server.sockets[0].getsockname()[1])

    async def _mute(self, *, held: bool) -> None:
        for end in list(self._ends):
            end.hold(held=held)

    async def _kill(self) -> None:
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        # Connections accepted in this turn of the loop need an open server.
        await asyncio.sleep(0)
        self._server.close()
        await self._cut()

    async def _cut(self) -> None:
        for end in list(self._ends):
            end.reset()


class _End(asyncio.Protocol):
    """One end of a connection: what arrives here is sent at the other.

    The end at the server has no `goal`.
    """

    def __init__(
        self, ends: set[_End], goal: tuple[str, int] | None, other: _End | None = None
    ) -> None:
        self._ends, self._goal, self._other = ends, goal, other
        self._transport: asyncio.Transport
        self._connecting: asyncio.Task[None] | None = None
        self._over = False
        self._early = bytearray()
        """What came before the connection to the server.

        Before Python 3.11.3, a transport that is paused in `connection_made` reads all the same.
        """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ends.add(self)
        if self._goal is not None:
            self._transport.pause_reading()
            self._connecting = asyncio.get_running_loop().create_task(self._connect(self._goal))

    async def _connect(self, goal: tuple[str, int]) -> None:
        """Connect to the server; where it refuses, reset the client."""
        try:
            _, self._other = await asyncio.get_running_loop().create_connection(
                lambda: _End(self._ends, None, self), *goal
            )
        except OSError:
            self.reset()
        else:
            if self._over:
                self._other.reset()
            else:
                self._other._transport.write(bytes(self._early))  # noqa: SLF001 - the other end of the same connection
                self._early.clear()
                self._transport.resume_reading()

    def hold(self, *, held: bool) -> None:
        """Stop reading, or read again, at the end that is at the server."""
        if self._goal is None and not self._transport.is_closing():
            (self._transport.pause_reading if held else self._transport.resume_reading)()

    def data_received(self, data: bytes) -> None:
        if self._other is not None:
            self._other._transport.write(data)  # noqa: SLF001 - as above
        else:
            self._early += data

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other._transport.pause_reading()  # noqa: SLF001 - as above

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other._transport.resume_reading()  # noqa: SLF001 - as above

    def connection_lost(self, error: Exception | None) -> None:
        self._over = True
        self._ends.discard(self)
        if self._other is not None:
            other, self._other = self._other, None
            if error is None:
                other._transport.close()  # noqa: SLF001 - as above
            else:
                other.reset()

    def reset(self) -> None:
        """Reset the connection."""
        if not self._transport.is_closing():
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._transport.abort()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all proxies, which runs as long as the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="mqcore-proxies", daemon=True).start()
    return loop


def _run(work: Coroutine[object, object, T]) -> Future[T]:
    return asyncio.run_coroutine_threadsafe(work, _loop())
