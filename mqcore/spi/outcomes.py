"""What became of a request: an outcome for each item of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = [
    "DONE",
    "STALE",
    "STORED",
    "Done",
    "ErrorKind",
    "Failed",
    "Outcome",
    "Settled",
    "Stale",
    "Stored",
    "Unknown",
]


class ErrorKind(Enum):
    """What core must know about a driver's exception."""

    TRANSIENT = "transient"
    """It may work later, on this connection or the next. The call had no effect."""
    PERMANENT = "permanent"
    """The same call will fail again."""
    NOT_FOUND = "not_found"
    """The queue or router does not exist."""
    TOO_LARGE = "too_large"
    """The broker does not take a message of this size."""
    FULL = "full"
    """The queue has reached its `max_length`, or the broker has no room."""
    DENIED = "denied"
    """Wrong credentials or missing rights.

    Core raises it at once when the first connect fails so. After a reconnect it tries again at long
    intervals.
    """


@dataclass(frozen=True, slots=True)
class Stored:
    """The broker has confirmed the message.

    `duplicate`: this `Message.copy_name` was stored before, and still one copy is stored (DEDUP).
    """

    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The settlement took effect.

    Where a broker does not answer acknowledgements, it was written in order (see `SupportsProof`).
    """


@dataclass(frozen=True, slots=True)
class Stale:
    """The receipt is no longer valid: its lease ended, or its channel is gone.

    Nothing was changed. Without ATOMIC_MOVE, the successor of a Move may have been stored.
    """


@dataclass(frozen=True, slots=True)
class Failed:
    """The request certainly had no effect. A failed Move leaves its source leased (G3)."""

    kind: ErrorKind
    text: str = ""
    cause: Exception | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The request was sent and not answered: it may have taken effect, or may do so later."""

    text: str = ""
    cause: Exception | None = None


STORED, DONE, STALE = Stored(), Done(), Stale()
Outcome = Stored | Failed | Unknown
"""What became of a publish."""
Settled = Done | Stale | Failed | Unknown
"""What became of a settlement."""
