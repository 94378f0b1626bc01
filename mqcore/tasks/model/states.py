"""The states of a task, and the table of what may follow what.

A group and a chain have states too: `waiting` until their turn comes, `running` while they have
open members, then an ending. A diagram of the states can be made from `NEXT` and `NEXT_RUN`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from mqcore.errors import MqcoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ENDED", "LIVE", "NEXT", "NEXT_RUN", "IllegalTransition", "State"]


class State(StrEnum):
    """Where a task is in its life."""

    WAITING = "waiting"
    """A later step of a workflow, whose turn has not come."""
    SCHEDULED = "scheduled"
    """Its message is delayed."""
    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    """An attempt has failed, and the message of the next one is delayed."""
    DELEGATED = "delegated"
    """It was replaced by another call, and ends as that one ends."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SKIPPED = "skipped"
    """A later step of a workflow that ended before its turn came."""

    @property
    def has_ended(self) -> bool:
        """Whether it is a terminal state. Only a redrive goes on from there."""
        return self in ENDED


_ENDINGS = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})

ENDED = _ENDINGS | {State.SUCCEEDED, State.SKIPPED}
"""The terminal states. Inside a run nothing follows them (T1)."""

LIVE = frozenset({State.SCHEDULED, State.QUEUED, State.RUNNING, State.RETRYING})
"""The states of a task that has, or is about to have, a message in the broker."""

NEXT: Mapping[State, frozenset[State]] = {
    State.WAITING: frozenset(
        {State.SCHEDULED, State.QUEUED, State.RUNNING, State.CANCELLED, State.SKIPPED}
    ),
    State.SCHEDULED: _ENDINGS | {State.QUEUED, State.RUNNING},
    State.QUEUED: _ENDINGS | {State.RUNNING},
    # Another worker takes over a task whose worker died: running follows running.
    State.RUNNING: _ENDINGS | (LIVE - {State.SCHEDULED}) | {State.DELEGATED, State.SUCCEEDED},
    State.RETRYING: _ENDINGS | {State.RUNNING},
    State.DELEGATED: _ENDINGS | {State.SUCCEEDED},
    **dict.fromkeys(ENDED, frozenset()),
}
"""What may follow a state inside a run."""

NEXT_RUN: Mapping[State, frozenset[State]] = {
    State.FAILED: frozenset({State.QUEUED, State.RUNNING}),
    State.EXPIRED: frozenset({State.QUEUED, State.RUNNING}),
}
"""What may follow when a dead letter is redriven, which opens the next run of its row."""


class IllegalTransition(MqcoreError):
    """A task was about to change to a state that cannot follow its own: a defect in mqcore."""
