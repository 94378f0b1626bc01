"""What this process held when its connection broke, and has not died of.

Where the connection is the lease (RabbitMQ) the broker cannot tell a lost connection from a death:
it says of all that was held that it was taken over. A process that gets such a message back knows
better about its own claim. Without that, a connection that is reset again and again would bring
innocent messages into the quarantine, and from there to the dead letters (G4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mqcore.messages.message import Message

__all__ = ["Survived"]

_BELIEVED = 60.0
"""Seconds after the first loss of a message that had been started.

Later its handler itself may be the cause: one that blocks the event loop loses the connection each
time, and would come back indefinitely.
"""
_FORGOTTEN = 600.0
"""Seconds after which a loss is forgotten."""
_MOST = 10_000
"""Losses that are remembered at most."""

_Name = tuple[str, tuple[str, int, str]]


class Survived:
    """The stored copies that were lost with a connection of this process, by queue and name."""

    def __init__(self) -> None:
        """Start with none."""
        self._lost: dict[_Name, tuple[float, float | None]] = {}
        """When each was lost last, and when it was first lost after its handler had started."""

    def add(self, queue: str, message: Message, now: float, *, started: bool) -> None:
        """Remember that a message was lost with the connection, by a process that lives."""
        name = (queue, message.copy_name)
        _, first = self._lost.pop(name, (now, None))
        self._lost[name] = now, now if started and first is None else first

        oldest = next(iter(self._lost))
        while len(self._lost) > _MOST or now - self._lost[oldest][0] > _FORGOTTEN:
            del self._lost[oldest]
            oldest = next(iter(self._lost))

    def explains(self, queue: str, message: Message, now: float) -> bool:
        """Whether one takeover of this copy was no death but our own lost connection."""
        last, first = self._lost.get((queue, message.copy_name), (None, None))
        return (
            last is not None
            and now - last <= _FORGOTTEN
            and (first is None or now - first <= _BELIEVED)
        )
