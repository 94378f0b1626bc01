"""The task store in memory: `memory://NAME`, one table for all users of the name in this process.

It is the reference: the store contract compares every other store with it.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, ClassVar, TypeVar

from mqcore.spi import hookimpl
from mqcore.tasks.model.nodes import CancelFlag, Kind, Node, child_id, root_of
from mqcore.tasks.model.states import LIVE, State
from mqcore.tasks.store.seam import Announcement, Applied, Heartbeat, Pending, TaskStore
from mqcore.tasks.transitions.apply import apply_changes
from mqcore.tasks.transitions.walk import SLICE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.clock import Clock
    from mqcore.tasks.model.changes import Change
    from mqcore.tasks.model.outcomes import Outcome
    from mqcore.tasks.transitions.rows import OutboxEntry, Schedule

__all__ = ["MemoryTaskStore", "MemoryTransaction", "Tables", "mqcore_register_stores"]


@dataclass(frozen=True, eq=False)
class _Listener:
    """A user of the tables, which is called on its own event loop."""

    store: TaskStore
    loop: asyncio.AbstractEventLoop
    heard: Callable[[Announcement | None], None]


@dataclass
class Tables:
    """What a store holds."""

    nodes: dict[str, Node] = field(default_factory=dict)
    entries: dict[str, OutboxEntry] = field(default_factory=dict)
    claims: dict[str, str] = field(default_factory=dict)
    limits: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    """What is stored of rates and slots, and until when it has a meaning."""
    lines: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    """The tasks that wait for a slot of a key, sorted: since when, and which."""
    schedules: dict[str, Schedule] = field(default_factory=dict)
    beats: dict[str, Heartbeat] = field(default_factory=dict)
    open_nodes: dict[str, None] = field(default_factory=dict)
    """Live tasks and unsealed groups: what can be lost or running."""
    listeners: set[_Listener] = field(default_factory=set)
    lock: Lock = field(default_factory=Lock)
    """Event loops in several threads may share the tables of a name."""


V = TypeVar("V")

_named: dict[str, Tables] = {}
_named_lock = Lock()


class MemoryTransaction:
    """The `Rows` of one transaction. Nothing reaches the tables before `commit`."""

    def __init__(self, tables: Tables, now: float) -> None:
        self.now = now
        self._tables = tables
        self._read: dict[str, Node] = {}
        self._saved: dict[str, Node] = {}
        self._entries: dict[str, OutboxEntry | None] = {}
        self._claims: dict[str, str | None] = {}
        self._schedules: dict[str, Schedule] = {}
        self._limits: dict[str, tuple[bytes, float] | None] = {}
        self._lines: dict[str, list[tuple[float, str]]] = {}

    def get(self, node: str) -> Node | None:
        """Return the transaction's own copy of a row."""
        found = self._read.get(node)
        if found is None and (stored := self._tables.nodes.get(node)) is not None:
            found = self._read[node] = stored.copy()
        return found

    def children(self, parent: str, start: int, stop: int) -> Sequence[Node]:
        """Return children by index. Their ids follow from it, so there is no list of them."""
        found = (self.get(child_id(parent, index)) for index in range(start, stop))
        return [node for node in found if node is not None]

    def add(self, node: Node) -> None:
        """Insert a copy."""
        self._read[node.id] = self._saved[node.id] = node.copy()

    def save(self, node: Node) -> None:
        """Write a changed row at the commit."""
        self._saved[node.id] = node

    def put_entry(self, entry: OutboxEntry) -> None:
        """Write an outbox entry."""
        self._entries[entry.key] = entry

    def entry(self, key: str) -> OutboxEntry | None:
        """Return an outbox entry."""
        return self._entries[key] if key in self._entries else self._tables.entries.get(key)

    def remove_entry(self, key: str) -> None:
        """Remove an outbox entry."""
        self._entries[key] = None

    def holder(self, unique: str) -> str | None:
        """Return the holder of a unique key."""
        return self._claims[unique] if unique in self._claims else self._tables.claims.get(unique)

    def claim(self, unique: str, node: str) -> None:
        """Claim a unique key."""
        self._claims[unique] = node

    def unclaim(self, unique: str, node: str) -> None:
        """Give a unique key back."""
        if self.holder(unique) == node:
            self._claims[unique] = None

    def limit(self, key: str) -> bytes | None:
        """Return what is stored of a rate or of slots."""
        found = self._limits[key] if key in self._limits else self._tables.limits.get(key)
        return None if found is None else found[0]

    def put_limit(self, key: str, value: bytes | None, until: float = math.inf) -> None:
        """Write what is stored of a rate or of slots."""
        self._limits[key] = None if value is None else (value, until)

    def first_waiter(self, key: str) -> tuple[str, float] | None:
        """Return the first in a line."""
        line = self._line(key)
        return (line[0][1], line[0][0]) if line else None

    def add_waiter(self, key: str, node: str, since: float) -> None:
        """Put a task into a line."""
        bisect.insort(self._line(key), (since, node))

    def remove_waiter(self, key: str, node: str) -> None:
        """Take a task out of a line."""
        line = self._line(key)
        line[:] = [each for each in line if each[1] != node]

    def _line(self, key: str) -> list[tuple[float, str]]:
        """Return the transaction's own copy of a line."""
        if key not in self._lines:
            self._lines[key] = list(self._tables.lines.get(key, ()))
        return self._lines[key]

    def is_alive(self, worker: str) -> bool:
        """Whether the last heartbeat is younger than its ttl."""
        beat = self._tables.beats.get(worker)
        return beat is not None and self.now < beat.at + beat.ttl

    def schedule(self, name: str) -> Schedule | None:
        """Return a schedule."""
        return self._schedules.get(name) or self._tables.schedules.get(name)

    def put_schedule(self, schedule: Schedule) -> None:
        """Write a schedule."""
        self._schedules[schedule.name] = schedule

    @property
    def saved(self) -> Sequence[Node]:
        """The rows that were added or changed."""
        return list(self._saved.values())

    def commit(self) -> list[str]:
        """Write everything, and return the keys of the outbox entries that were made."""
        tables = self._tables
        tables.nodes.update(self._saved)
        for node in self._saved.values():
            is_live = node.kind is Kind.TASK and node.state in LIVE
            if is_live or not (node.is_sealed or node.has_ended):
                tables.open_nodes[node.id] = None
            else:
                tables.open_nodes.pop(node.id, None)

        _update(tables.entries, self._entries)
        _update(tables.claims, self._claims)
        _update(tables.limits, self._limits)
        _update(tables.lines, {key: line or None for key, line in self._lines.items()})
        tables.schedules.update(self._schedules)
        return [key for key, entry in self._entries.items() if entry is not None]


def _update(table: dict[str, V], changed: dict[str, V | None]) -> None:
    for key, value in changed.items():
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value


class MemoryTaskStore(TaskStore):
    """A store whose tables live as long as the process."""

    scheme: ClassVar[str | tuple[str, ...]] = "memory"

    def __init__(
        self,
        url: str = "memory://",
        clock: Clock | None = None,
        *,
        tables: Tables | None = None,
        slice_size: int = SLICE,
    ) -> None:
        """Open nothing. `tables` replaces those of the URL's name."""
        super().__init__(url, clock, slice_size=slice_size)
        with _named_lock:
            self.tables = tables or _named.setdefault(url.partition("://")[2], Tables())

    async def open(self) -> None:
        """There is nothing to connect to."""

    async def close(self) -> None:
        """There is nothing to disconnect from; the tables stay."""

    async def apply(self, changes: Sequence[Change]) -> Applied:
        """Make the changes."""
        with self.tables.lock:
            transaction = MemoryTransaction(self.tables, self.clock.now())
            outcomes = self.make(transaction, changes)
            applied = Applied(outcomes, transaction.commit())
            if self.tables.listeners:
                self.announce(Announcement.of(transaction.saved))
        return applied

    def announce(self, announcement: Announcement) -> None:
        """Tell the other users of the tables, whose loops may run in other threads."""
        for each in self.tables.listeners:
            if each.store is not self:
                with suppress(RuntimeError):  # its loop is closed
                    each.loop.call_soon_threadsafe(each.heard, announcement)

    async def listen(self, heard: Callable[[Announcement | None], None]) -> None:
        """Hear what other users of the tables change."""
        loop = asyncio.get_running_loop()
        listener = _Listener(self, loop, heard)
        with self.tables.lock:
            self.tables.listeners.add(listener)
        heard(None)
        try:
            await loop.create_future()  # until it is cancelled
        finally:
            with self.tables.lock:
                self.tables.listeners.discard(listener)

    def make(self, rows: MemoryTransaction, changes: Sequence[Change]) -> list[Outcome]:
        """Run the transitions."""
        return apply_changes(rows, changes, self.slice_size)

    async def outbox(self, limit: int = 100, written_before: float = math.inf) -> Sequence[Pending]:
        """Return the oldest entries."""
        with self.tables.lock:
            entries = self.tables.entries.values()
            old = (entry for entry in entries if entry.written < written_before)
            return [self._pending(entry) for entry in itertools.islice(old, limit)]

    async def entries(self, keys: Sequence[str]) -> Sequence[Pending]:
        """Return these entries."""
        with self.tables.lock:
            entries = self.tables.entries
            return [self._pending(entries[key]) for key in keys if key in entries]

    def _pending(self, entry: OutboxEntry) -> Pending:
        node = self.tables.nodes.get(entry.node)
        return Pending(entry, node.copy() if node is not None else None)

    async def nodes(self, ids: Sequence[str]) -> Sequence[Node | None]:
        """Return copies of rows."""
        with self.tables.lock:
            found = map(self.tables.nodes.get, ids)
            return [node.copy() if node is not None else None for node in found]

    async def children(self, parent: str, start: int, stop: int) -> Sequence[Node]:
        """Return copies of rows, by index."""
        found = await self.nodes([child_id(parent, index) for index in range(start, stop)])
        return [node for node in found if node is not None]

    async def suspects(self, before: float, limit: int = 100) -> Sequence[str]:
        """Look at each open node."""
        with self.tables.lock:
            rows = MemoryTransaction(self.tables, self.clock.now())
            late = (
                node.id
                for node in map(self.tables.nodes.__getitem__, self.tables.open_nodes)
                if (node.seal_by < rows.now if not node.is_sealed else node.due < before)
                and not (node.state is State.RUNNING and rows.is_alive(node.worker))
            )
            return list(itertools.islice(late, limit))

    async def live(self, limit: int = 100) -> Sequence[str]:
        """Look at each open node."""
        with self.tables.lock:
            nodes = map(self.tables.nodes.__getitem__, self.tables.open_nodes)
            live = (node for node in nodes if node.state in LIVE and node.kind is Kind.TASK)
            return [node.id for node in sorted(live, key=lambda node: node.due)][:limit]

    async def heartbeat(self, beat: Heartbeat) -> Sequence[str]:
        """Store it, with the time of the clock."""
        with self.tables.lock:
            self.tables.beats[beat.worker] = replace(beat, at=self.clock.now())
            return [
                node.id
                for node in map(self.tables.nodes.__getitem__, self.tables.open_nodes)
                if node.worker == beat.worker and node.cancel is not CancelFlag.NO
            ]

    async def workers(self) -> Sequence[Heartbeat]:
        """Return the heartbeats."""
        with self.tables.lock:
            return sorted(self.tables.beats.values(), key=lambda beat: beat.worker)

    async def schedules(self) -> Sequence[Schedule]:
        """Return the schedules."""
        with self.tables.lock:
            return sorted(self.tables.schedules.values(), key=lambda schedule: schedule.name)

    async def ended(
        self, after: float, before: float, limit: int = 100, start: int = 0
    ) -> Sequence[str]:
        """Look at each root."""
        with self.tables.lock:
            found = [
                (node.ended, node.id)
                for node in self.tables.nodes.values()
                if node.has_ended and not node.parent and after <= node.ended < before
            ]
        found.sort(reverse=True)
        return [id_ for _, id_ in found[start : start + limit]]

    async def purge(self, ended_before: float, limit: int = 100) -> int:
        """Remove old trees."""
        with self.tables.lock:
            nodes = self.tables.nodes
            live = {root_of(node) for node in self.tables.open_nodes}
            old = [
                node.id
                for node in nodes.values()
                if node.has_ended
                and node.ended < ended_before
                and root_of(node.id) == node.id
                and node.id not in live
            ]
            roots = set(old[:limit])
            for node in [node for node in nodes if root_of(node) in roots]:
                del nodes[node]
            limits = self.tables.limits
            for key in [key for key, (_, until) in limits.items() if until < ended_before]:
                del limits[key]
            beats = self.tables.beats
            for beat in [it for it in beats.values() if it.at + it.ttl < ended_before]:
                del beats[beat.worker]
        return len(roots)

    async def clear(self) -> None:
        """Empty the tables."""
        tables = self.tables
        with tables.lock:
            for table in (tables.nodes, tables.entries, tables.claims, tables.schedules):
                table.clear()
            tables.limits.clear()
            tables.lines.clear()
            tables.beats.clear()
            tables.open_nodes.clear()


@hookimpl
def mqcore_register_stores() -> list[type[TaskStore]]:
    """Register `memory://`."""
    return [MemoryTaskStore]
