"""The changes that a store can make. Nothing else changes a row.

A store makes all changes of one `apply` in one transaction, in their order. Each change is safe to
repeat: a caller that does not know whether its transaction was committed applies it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqcore.tasks.model.nodes import root_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mqcore.tasks.model.limits import RateLimit, SlotLimit
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.model.states import State

__all__ = [
    "Add",
    "Back",
    "Begin",
    "Cancel",
    "Change",
    "End",
    "Fire",
    "Gone",
    "More",
    "Progress",
    "Recover",
    "Replace",
    "Sent",
    "Spread",
    "roots_of",
]


@dataclass(frozen=True, slots=True)
class Add:
    """Insert the rows of a tree, unless its root exists, and release the root.

    The root comes first. With `waits`, a task whose unique key belongs to another one is in line
    for it, and is published when that has ended. Outcomes: `Added`, `Exists`, `Conflict`.
    """

    rows: Sequence[Node]
    waits: bool = False


@dataclass(frozen=True, slots=True)
class More:
    """Insert further members of an unsealed group, with everything below them.

    With `seal` they are the last ones. Outcomes: `Ok`, `Closed`.
    """

    group: str
    rows: Sequence[Node]
    seal: bool = False


@dataclass(frozen=True, slots=True)
class Begin:
    """Start an attempt: a message of the task was received.

    `run` is how often the message was redriven. A higher one than the row's opens the next run of
    a failed or expired row. `missing` is the row as the message describes it, for a redriven
    message whose row was removed at the end of its retention.

    `is_redelivered`: the message was handed out before, so the attempt that the row shows has lost
    it, and this one takes over. A message that comes for the first time is a further copy if the
    task is running in a living worker: `Busy`.

    `rate` and `slot` are what the task may have to wait for (`Later`).

    Outcomes: `Started`, `Terminal`, `Cancelled`, `Stale`, `Unknown`, `Busy`, `Later`, `Conflict`
    (the unique key belongs to another task meanwhile).
    """

    task: str
    run: int
    attempt: int
    token: str
    worker: str
    missing: Node | None = None
    is_redelivered: bool = True
    rate: RateLimit | None = None
    slot: SlotLimit | None = None


@dataclass(frozen=True, slots=True)
class End:
    """End the running attempt and the task with it. Outcomes: `Ended`, `Refused`."""

    task: str
    run: int
    token: str
    state: State
    result: bytes | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Gone:
    """End a task whose message ended without a run here: it expired, crashed or was not valid.

    Outcomes: `Ended`, `Refused`, `Busy`.
    """

    task: str
    run: int
    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Back:
    """Leave the running attempt: the task goes on later, at a retry or after a postponement.

    `state` is `retrying` or `queued`, `delay` the wait in seconds. Outcomes: `Ok`, `Refused`,
    `Cancelled`.
    """

    task: str
    run: int
    token: str
    state: State
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Replace:
    """End the running attempt; the task ends as the tree of these rows ends.

    The first row has the id `replacement_id(task)`. Outcomes: `Ok`, `Refused`, `Cancelled`.
    """

    task: str
    run: int
    token: str
    rows: Sequence[Node]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel a node with everything below it.

    What is not running ends immediately, except a waiting step, which ends when its turn comes.
    Outcomes: `Cancelled`, `Asked`, `Terminal`, `Unknown`.
    """

    node: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """Store the progress of an attempt, if its number is higher. Outcomes: `Ok`, `Refused`."""

    task: str
    run: int
    token: str
    number: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Spread:
    """Treat the next slice of a large group's members: release, cancel or skip them.

    `start` is the start of the outbox entry. Outcomes: `Ok`, `Done` (no slice starts there, because
    another process was first).
    """

    group: str
    start: int


@dataclass(frozen=True, slots=True)
class Recover:
    """Publish a task whose message seems to be lost again, or give up an abandoned group.

    The store checks again whether that is so. A task whose message still waits in the outbox is
    left alone, and one that was to start before now ends as expired. After each further copy it
    takes longer until the task counts as lost. Outcomes: `Ok`, `Refused`.
    """

    node: str
    before: float
    """A task that should have been ready before this time counts as lost."""


@dataclass(frozen=True, slots=True)
class Fire:
    """Move a schedule on to its next instant and add the rows of its task, if the version is right.

    Version 0 creates the schedule. `next_at` is None for a paused one; `definition` replaces the
    stored one unless it is None. Outcomes: `Fired`, `Lost`.
    """

    schedule: str
    version: int
    next_at: float | None
    rows: Sequence[Node] = ()
    definition: bytes | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """Remove outbox entries whose messages the broker has confirmed. Outcome: `Ok`."""

    keys: Sequence[str]


Change = (
    Add
    | More
    | Begin
    | End
    | Gone
    | Back
    | Replace
    | Cancel
    | Progress
    | Spread
    | Recover
    | Fire
    | Sent
)


def roots_of(changes: Sequence[Change]) -> list[str]:
    """Return the roots that the changes may touch, sorted: a transaction locks them in this order.

    The root is locked first because an ending locks upward and a cancellation downward. Without
    that PostgreSQL reported 62 deadlocks in 200 nested workflows.
    """
    return sorted({root_of(node) for change in changes for node in _nodes(change)})


def _nodes(change: Change) -> Iterator[str]:
    match change:
        case Add(rows=rows) | Fire(rows=rows):
            yield from (row.id for row in rows[:1])
        case More(group=node) | Spread(group=node) | Cancel(node=node) | Recover(node=node):
            yield node
        case Sent():
            pass
        case _:
            yield change.task
