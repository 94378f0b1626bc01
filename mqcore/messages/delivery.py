"""What crosses the seam: a message on its way out, a message handed in, and the three settlements.

    Outgoing ──publish──► broker ──receive──► Delivery ──settle──► Ack | Release | Move(Outgoing)

There is no fourth settlement. Retry, dead letter, quarantine and redrive are all Moves (G3): *store
the successor, then remove the source*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mqcore.messages.message import Message

__all__ = ["Ack", "Delivery", "Move", "Outgoing", "Release", "Route", "Settlement"]


@dataclass(frozen=True, slots=True)
class Route:
    """A router by name, and what its bindings compare: the routing key, or the headers."""

    router: str
    key: str = ""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to be stored.

    `to` is a queue's name or a `Route`. `delay` is in seconds from now, 0 for at once (G7). `ttl`
    is in seconds from now, not from the end of the delay; where it is None the message's own
    `expires_at` holds, which only a Move carries (G6). In a Move too, a `ttl` goes before
    `expires_at`. A Move without either never expires, and its target's `QueueSpec.ttl` adds
    nothing.

    A message whose ttl ends inside its delay never comes alive. It is handed out as expired: at its
    expiry, to a consumer that waits, where the limit `sweep` of EXPIRY is True; else when it falls
    due at the latest. It is counted until it is settled.
    """

    to: str | Route
    message: Message
    delay: float = 0.0
    ttl: float | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message handed to one consumer, to be settled by its `receipt`.

    `expires_in` is how many seconds the message has left when it is handed out, at most 0 when it
    has expired, None when it never does. A driver whose broker says it in the answer to a claim
    must subtract the time since the claim was *sent*: an answer may come late, and no handler
    starts after the expiry (G6). `redelivered`: it was handed out before.

    `takeovers` is the number of times that this stored copy was taken over: a consumer held it, and
    died or lost the claim without settling it (G4). A release is not a takeover. `counted` says
    whether the broker's own record adds the next takeover to the number. It is False where the
    broker has only a flag, "delivered before": core then stores a successor that carries the number
    (`Message.takeovers`) before it runs the message. `started` says whether one of those who held
    it had noted that its handler starts (`SupportsStart`).

    `unreadable` names what the driver cannot read of the message, empty when it could read all of
    it. Core dead-letters such a message as `undecodable` (G11).
    """

    message: Message
    receipt: bytes
    expires_in: float | None = None
    redelivered: bool = False
    takeovers: int = 0
    counted: bool = True
    started: bool = False
    unreadable: str = ""

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1 (G4)."""
        return self.message.attempt


@dataclass(frozen=True, slots=True)
class Ack:
    """Done: remove the message."""

    receipt: bytes


@dataclass(frozen=True, slots=True)
class Release:
    """Give it back as it was: not an attempt, with the same `takeovers` (G4).

    It goes to its old place where the backend can do that (G9), and comes again `redelivered`. The
    releasing consumer knows only of its own claim that no handler has started in it.
    """

    receipt: bytes


@dataclass(frozen=True, slots=True)
class Move:
    """Store the successor, then remove the source (G3).

    When the successor cannot be stored, the source stays leased.

    The successor is a message of its own: not `redelivered`, no `takeovers`, at the end of its
    level. It is never a duplicate of what was published before under the same name. Only a
    successor that was stored for this very source, by a Move that ended unknown, is not stored a
    second time where DEDUP is declared.
    """

    receipt: bytes
    to: Outgoing


Settlement = Ack | Release | Move
