"""The states of a delivery while this process holds it, and every step between them. Pure data.

    buffered ─ start ─► running ─ settle ─► settling ─ confirm ─► settled
        │                  │                    │
        └───── lose ───────┴──────► lost ◄──────┘ refuse

A step that has no entry in `TRANSITIONS` does not happen: a second settlement is refused, and a
message that is being settled is not lost, because the answer to its settlement says what became of
it. The page *States of a delivery* shows the same table, and a test compares both.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["TRANSITIONS", "DeliveryState", "Step"]


class DeliveryState(Enum):
    """Where a delivery is."""

    BUFFERED = "buffered"
    """Received. No handler and no caller has it yet."""
    RUNNING = "running"
    """Handed to a handler, or to a caller of the pull API."""
    SETTLING = "settling"
    """Its result is decided, and the broker has not answered the settlement yet."""
    UNANSWERED = "unanswered"
    """The settlement was ended before the broker answered. Only the end of a receiver does that."""
    SETTLED = "settled"
    """The broker has done the settlement. Final."""
    LOST = "lost"
    """The claim ended without a settlement of ours, as far as we know. Final."""

    # A member is compared by identity. Enum's own hash runs in Python, several times a message.
    __hash__ = object.__hash__

    @property
    def is_final(self) -> bool:
        """Whether nothing can happen to the delivery here any more."""
        return self in _FINAL


_FINAL = frozenset({DeliveryState.SETTLED, DeliveryState.LOST})


class Step(Enum):
    """What happens to a delivery."""

    __hash__ = object.__hash__  # as above

    START = "start"
    """It is handed out."""
    SETTLE = "settle"
    """Its result is decided: ack, release or move."""
    CONFIRM = "confirm"
    """The broker answers that the settlement is done."""
    REFUSE = "refuse"
    """The broker answers that the claim was another consumer's already (G5)."""
    GIVE_UP = "give up"
    """The receiver ends before the broker has answered (G13)."""
    LOSE = "lose"
    """The lease ended, or the connection was lost where the connection is the lease (G5)."""


_STATE, _STEP = DeliveryState, Step

TRANSITIONS: dict[tuple[DeliveryState, Step], DeliveryState] = {
    (_STATE.BUFFERED, _STEP.START): _STATE.RUNNING,
    (_STATE.BUFFERED, _STEP.SETTLE): _STATE.SETTLING,
    (_STATE.BUFFERED, _STEP.LOSE): _STATE.LOST,
    (_STATE.RUNNING, _STEP.SETTLE): _STATE.SETTLING,
    (_STATE.RUNNING, _STEP.LOSE): _STATE.LOST,
    (_STATE.SETTLING, _STEP.CONFIRM): _STATE.SETTLED,
    (_STATE.SETTLING, _STEP.REFUSE): _STATE.LOST,
    (_STATE.SETTLING, _STEP.GIVE_UP): _STATE.UNANSWERED,
    (_STATE.UNANSWERED, _STEP.SETTLE): _STATE.SETTLING,
    (_STATE.UNANSWERED, _STEP.LOSE): _STATE.LOST,
}
