"""The seam of a task store: what a plugin implements to hold the table of tasks.

A store is registered as a backend is, by a hook of its own. `mqcore.tasks.store.plugins` has an
example. `mqcore contract run-store URL` tests a store case by case against what is written here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from mqcore.clock import SystemClock
from mqcore.errors import MqcoreError
from mqcore.tasks.model.states import State
from mqcore.tasks.transitions.rows import OutboxEntry, Schedule
from mqcore.tasks.transitions.walk import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mqcore.clock import Clock
    from mqcore.tasks.model.changes import Change
    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.model.outcomes import Outcome

__all__ = [
    "Announcement",
    "Applied",
    "Heartbeat",
    "OutboxEntry",
    "Pending",
    "Schedule",
    "StoreError",
    "SupportsAnnouncements",
    "TaskStore",
]


class StoreError(MqcoreError):
    """The task store, or the connection to it, failed.

    The changes may have been made. Every change is safe to repeat.
    """


@dataclass(frozen=True, slots=True)
class Applied:
    """What a transaction did: an outcome for each change, and the outbox entries it made."""

    outcomes: Sequence[Outcome]
    keys: Sequence[str] = ()
    """The keys of the entries, in any order."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An outbox entry, with the row of its node. The row is None when it was removed since."""

    entry: OutboxEntry
    node: Node | None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life of a worker: it counts as alive for `ttl` seconds after it.

    `info` is what inspection shows: queues, slots, counters.
    """

    worker: str
    ttl: float = 15.0
    info: bytes = b""
    at: float = 0.0
    """The store's time when it came; what a caller gives is not read."""


class TaskStore(ABC):
    """One table of tasks, as one event loop uses it.

    Every method runs on the loop that called `open`, and calls may overlap. A method that cannot
    reach the store raises `StoreError`. Rows that are returned are copies.

    A transition is the same in every store. A store that can hold a transaction open calls
    `mqcore.tasks.transitions.apply.apply_changes` inside it, with its rows as `Rows`. One that
    cannot must act exactly so.
    """

    scheme: ClassVar[str | tuple[str, ...]]
    """The URL schemes of this class. Each is also an entry point in the group `mqcore.stores`."""

    def __init__(self, url: str, clock: Clock | None = None, *, slice_size: int = SLICE) -> None:
        """Store what is needed to connect. Must not do I/O; the URL may hold secrets.

        A store whose server has a clock uses that one for the times that processes compare, unless
        the given clock is not real. `slice_size` is how many members of a group one transaction
        treats.
        """
        self.url = url
        self.clock = clock or SystemClock()
        self.slice_size = slice_size

    @abstractmethod
    async def open(self) -> None:
        """Connect, and create the tables if they are missing."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect. May be called again, and after a failed `open`."""

    @abstractmethod
    async def apply(self, changes: Sequence[Change]) -> Applied:
        """Make the changes in one transaction, in their order.

        Either all of it is committed, outbox entries included, or nothing. It returns after the
        commit, so a message that is published afterwards always finds its row. The roots of
        `roots_of(changes)` are locked first, in that order. When the call is cancelled or raises,
        the transaction may have been committed; it is never half made.
        """

    @abstractmethod
    async def outbox(self, limit: int = 100, written_before: float = math.inf) -> Sequence[Pending]:
        """Return the oldest outbox entries, for a relay. Reading removes nothing.

        Several relays may get the same entry. They publish one message id, or start one slice, and
        the second is without effect.
        """

    @abstractmethod
    async def entries(self, keys: Sequence[str]) -> Sequence[Pending]:
        """Return these outbox entries, without those that are removed by now."""

    @abstractmethod
    async def nodes(self, ids: Sequence[str]) -> Sequence[Node | None]:
        """Return a row, or None, for each id."""

    @abstractmethod
    async def children(self, parent: str, start: int, stop: int) -> Sequence[Node]:
        """Return the members or steps with `start <= index < stop`, by index."""

    @abstractmethod
    async def suspects(self, before: float, limit: int = 100) -> Sequence[str]:
        """Return the nodes for which `Recover(node, before)` seems to be necessary.

        These are tasks that are scheduled, queued or retrying and should have been ready before
        that time, running ones of workers without a recent heartbeat that began before it, and
        unsealed groups whose time to be sealed is over.
        """

    @abstractmethod
    async def live(self, limit: int = 100) -> Sequence[str]:
        """Return the tasks that are scheduled, queued, running or retrying, the first due first."""

    @abstractmethod
    async def heartbeat(self, beat: Heartbeat) -> Sequence[str]:
        """Store a worker's heartbeat; return those tasks it runs that are to be cancelled."""

    @abstractmethod
    async def workers(self) -> Sequence[Heartbeat]:
        """Return the last heartbeat of each worker, by name."""

    @abstractmethod
    async def schedules(self) -> Sequence[Schedule]:
        """Return all schedules, by name."""

    @abstractmethod
    async def ended(
        self, after: float, before: float, limit: int = 100, start: int = 0
    ) -> Sequence[str]:
        """Return the roots that ended in that time, `before` excluded, newest first.

        Of one time by id, descending. `start` is how many are left out.
        """

    @abstractmethod
    async def purge(self, ended_before: float, limit: int = 100) -> int:
        """Remove trees whose root ended before that time, except those in which a task is live.

        Returns how many trees were removed, at most `limit`. Heartbeats whose time was over before
        that time are removed too.
        """

    @abstractmethod
    async def clear(self) -> None:
        """Remove everything that the store holds. Only tests call it."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """The rows that one transaction, or several, have changed."""

    ended: Sequence[str] = ()
    """The ids of those that have ended."""
    moved: Sequence[str] = ()
    """The ids of those that have begun or gone on. What only waits for its turn is not named."""

    @classmethod
    def of(cls, rows: Iterable[Node]) -> Announcement:
        """Return the announcement of rows that were saved."""
        ended, moved = list[str](), list[str]()
        for row in rows:
            if row.has_ended:
                ended.append(row.id)
            elif row.state not in _WAITING:
                moved.append(row.id)
        return cls(ended, moved)


_WAITING = frozenset({State.WAITING, State.SCHEDULED, State.QUEUED})


@runtime_checkable
class SupportsAnnouncements(Protocol):
    """A store that announces to other processes which rows have changed.

    It is optional, and only spares time: who waits for rows looks at them from time to time in any
    case. So an announcement may be lost, come twice, or name rows that have not changed.
    """

    async def listen(self, heard: Callable[[Announcement | None], None]) -> None:
        """Call `heard` on the loop for what other users of the store change, until cancelled.

        It is called with None when something may have been missed: first of all when the listening
        has begun, and later too. All rows that are waited for are read again then. Raises
        `StoreError` when the connection is lost; the caller calls it again.
        """
