"""What a store answers to a change. Each change names the outcomes that it may have."""

from __future__ import annotations

from dataclasses import dataclass

from mqcore.tasks.model.nodes import Node
from mqcore.tasks.model.states import State

__all__ = [
    "Added",
    "Asked",
    "Busy",
    "Cancelled",
    "Closed",
    "Conflict",
    "Done",
    "Ended",
    "Exists",
    "Fired",
    "Later",
    "Lost",
    "Ok",
    "Outcome",
    "Refused",
    "Stale",
    "Started",
    "Terminal",
    "Unknown",
]


@dataclass(frozen=True, slots=True)
class Ok:
    """The change was made."""


@dataclass(frozen=True, slots=True)
class Added:
    """The rows were inserted, and the first one was released."""


@dataclass(frozen=True, slots=True)
class Exists:
    """The rows had been inserted before. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """The unique key belongs to another open task. Nothing was changed."""

    holder: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The group takes no further members: it was sealed, cancelled, or given up as abandoned."""


@dataclass(frozen=True, slots=True)
class Started:
    """The attempt is running, under the token of the change."""

    node: Node


@dataclass(frozen=True, slots=True)
class Terminal:
    """The task has ended before.

    When it has failed or expired, its message must be dead-lettered (again): the process that ended
    it may have died before that.
    """

    state: State


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The task was cancelled and must not run, or not go on. Its message is acknowledged."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The message belongs to an earlier run of the task. It is acknowledged."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The store has no row with this id."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The task ended by this change."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The change came too late, or from an attempt that no longer holds the task."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Another copy of the message is running, and its worker is alive. Postpone this copy."""


@dataclass(frozen=True, slots=True)
class Later:
    """The task must wait before it starts.

    `delay` is how long, in seconds: postpone its message. None means that it is in line for a slot:
    its message is acknowledged, and another one is published when a slot is free.
    """

    delay: float | None


@dataclass(frozen=True, slots=True)
class Asked:
    """The cancellation is stored, and the node has not ended yet.

    Something in it is running, or its turn has not come.
    """


@dataclass(frozen=True, slots=True)
class Done:
    """There is nothing left to do."""


@dataclass(frozen=True, slots=True)
class Fired:
    """The schedule has moved on to its next instant, and its task was added."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Another scheduler was first."""


Outcome = (
    Ok
    | Added
    | Exists
    | Conflict
    | Closed
    | Started
    | Terminal
    | Cancelled
    | Stale
    | Unknown
    | Ended
    | Refused
    | Busy
    | Asked
    | Done
    | Fired
    | Later
    | Lost
)
