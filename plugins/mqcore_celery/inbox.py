"""What has come in for one connection of kombu, carried from the loop's thread to kombu's.

    loop: put ─► arriving ─ once for each turn ─► ready, and a signal   kombu: clear ─► take

The signal is readable like a socket, so Celery's event loop waits for it beside its others.
"""

from __future__ import annotations

import os
import select
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from mqcore_celery.consuming import Arrival

__all__ = ["Inbox", "Signal"]


class Signal:
    """A descriptor that is readable from `set` until `clear`: an eventfd, or a pipe elsewhere."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)
        self._is_set = False

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._read

    def set(self) -> None:
        """Make it readable; from any thread."""
        if not self._is_set:
            self._is_set = True
            with suppress(BlockingIOError):  # it is readable already
                os.write(self._write, (1).to_bytes(8, "little"))

    def clear(self) -> None:
        """Make it unreadable. What it announces is looked at afterwards, or a signal is lost."""
        with suppress(BlockingIOError):
            os.read(self._read, 4096)
        self._is_set = False

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is readable; False when the time is over. `timeout` is in seconds."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(None if timeout is None else max(timeout, 0.0) * 1000))

    def __del__(self) -> None:
        """Close the descriptor, when neither kombu's thread nor the loop can use it any more."""
        for number in {self._read, self._write}:
            os.close(number)


class Inbox:
    """The messages of all consumers of one connection, in the order in which they came."""

    def __init__(self) -> None:
        self.signal = Signal()
        self.error: Exception | None = None
        """Why the connection has ended, until it is raised."""
        self.ready: deque[Arrival] = deque()
        self._arriving: list[Arrival] = []

    def put(self, arrival: Arrival, loop: asyncio.AbstractEventLoop) -> None:
        """Add a message; on the loop.

        One signal is given for all of a turn of the loop: who waits gets them together.
        """
        self._arriving.append(arrival)
        if len(self._arriving) == 1:
            loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        arrived, self._arriving = self._arriving, []
        self.ready.extend(arrived)
        self.signal.set()

    def fail(self, error: Exception) -> None:
        """End the connection: the next that waits gets this error. From any thread."""
        self.error = error
        self.signal.set()
