"""Connecting to a port that is open before the broker behind it listens."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import ErrorKind
from mqcore_rabbitmq import RabbitBackend, RabbitOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

TRIES = 40
AT_ONCE = 2.0
"""Seconds.

A reset takes microseconds; an unanswered connect fails after six seconds.
"""
AND_RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def resetting() -> Iterator[int]:
    """A port that accepts and resets at once, as a container's proxy does while it starts."""
    with socket.create_server(("127.0.0.1", 0), backlog=TRIES) as server:

        def reset() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AND_RESET)
                connection.close()

        threading.Thread(target=reset, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


async def test_a_reset_after_the_accept_is_raised_at_once(resetting: int) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{resetting}/"
    for _ in range(TRIES):
        backend = RabbitBackend(url, RabbitOptions())
        began = time.monotonic()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever the driver says, it has a kind
            await backend.open(lambda _: None)
        assert time.monotonic() - began < AT_ONCE
        assert backend.classify(caught.value) is ErrorKind.TRANSIENT


async def test_a_reset_while_connecting_is_raised_at_once(
    resetting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pika asks the socket for its peer, and raises into the event loop when there is none."""

    def reset(_: socket.socket) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(socket.socket, "getpeername", reset)
    backend = RabbitBackend(f"amqp://guest:guest@127.0.0.1:{resetting}/", RabbitOptions())
    began = time.monotonic()
    with pytest.raises(ConnectionResetError) as caught:
        await backend.open(lambda _: None)
    assert time.monotonic() - began < AT_ONCE
    assert backend.classify(caught.value) is ErrorKind.TRANSIENT
