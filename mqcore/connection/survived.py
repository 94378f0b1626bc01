"""Messages that this process held when its connection broke, while the process lived on.

Where the connection is the lease (RabbitMQ), the broker cannot tell a lost connection from a dead
process: it reports every message that was held as taken over. A process that gets such a message
back knows that it did not die. Without this record, a connection that is reset again and again
would move harmless messages into the quarantine, and from there to the dead letters (G4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mqcore.messages.message import Message

__all__ = ["Survived"]

_BELIEVED = 60.0
"""Seconds after the first loss of a started message for which losses are excused.

After that its handler may be the cause: a handler that blocks the event loop loses the connection
each time, and its message would come back indefinitely.
"""
_FORGOTTEN = 600.0
"""Seconds after which a loss is forgotten."""
_MOST = 10_000
"""How many losses are remembered at most."""

_Name = tuple[str, tuple[str, int, str]]


class Survived:
    """The messages that were lost with a connection of this process, by queue and copy."""

    def __init__(self) -> None:
        """Start with none."""
        self._lost: dict[_Name, tuple[float, float | None]] = {}
        """For each: when it was last lost, and when it was first lost with a started handler."""

    def add(self, queue: str, message: Message, now: float, *, started: bool) -> None:
        """Remember that a message was lost with the connection of this process."""
        name = (queue, message.copy_name)
        _, first = self._lost.pop(name, (now, None))
        self._lost[name] = now, now if started and first is None else first

        oldest = next(iter(self._lost))
        while len(self._lost) > _MOST or now - self._lost[oldest][0] > _FORGOTTEN:
            del self._lost[oldest]
            oldest = next(iter(self._lost))

    def explains(self, queue: str, message: Message, now: float) -> bool:
        """Whether a takeover of this message was caused by a lost connection, not by a death."""
        last, first = self._lost.get((queue, message.copy_name), (None, None))
        return (
            last is not None
            and now - last <= _FORGOTTEN
            and (first is None or now - first <= _BELIEVED)
        )
