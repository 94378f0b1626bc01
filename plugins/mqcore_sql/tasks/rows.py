"""The rows of one transaction: read in few statements, and written in few at its end."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from operator import ne

from mqcore.tasks.spi import (
    Change,
    Kind,
    Node,
    OutboxEntry,
    Schedule,
    changes,
    child_id,
    replacement_id,
    roots_of,
)
from mqcore_sql.database import Columns, Database
from mqcore_sql.tasks import statements as sql
from mqcore_sql.tasks.columns import COLUMNS, DEFAULTS, Values, columns_of, node_of, values_of
from mqcore_sql.tasks.limits import SqlLimits

__all__ = ["RowsChanged", "SqlRows"]

_AHEAD = 10_000
"""How many rows below a group are read ahead of the transitions, which may need fewer."""
_PLACES = range(len(COLUMNS))


class RowsChanged(Exception):
    """A row that was read is not there any more: the transaction has to be made again."""


class SqlRows:
    """The `Rows` of a transaction that is open. `write` writes what was changed."""

    def __init__(self, database: Database, now: float | None = None) -> None:
        """`now` is the time by a test's clock; without it `prepare` asks the database."""
        self.now = now or 0.0
        self._db = database
        self._read: dict[str, Node | None] = {}
        self._stored: dict[str, Values] = {}
        self._added: dict[str, Node] = {}
        self._saved: dict[str, Node] = {}
        self._entries: dict[str, OutboxEntry | None] = {}
        self._made: dict[str, None] = {}
        self._holders: dict[str, str | None] = {}
        self._claims: dict[str, str | None] = {}
        self.limits = SqlLimits(database)
        self._alive: dict[str, bool] = {}
        self._schedules: dict[str, Schedule | None] = {}
        self._planned: dict[str, Schedule] = {}

    # Reading ahead

    def prepare(self, given: Sequence[Change]) -> None:
        """Lock the roots of the changes, and read what the changes will need."""
        roots = roots_of(given)
        if roots and self._db.words["locked"]:
            self._lock(roots)
        if roots and not self.now:
            self.now = self._db.time()
        self._load([*roots, *_needed(given)])

        sent = (it for it in given if isinstance(it, (changes.Add, changes.Fire)))
        named = [*(row for it in sent for row in it.rows[:1]), *self._read.values()]
        self._hold(row.unique for row in named if row is not None)
        begun = (it for it in given if isinstance(it, changes.Begin))
        wanted = {limit.key for it in begun for limit in (it.slot, it.rate) if limit is not None}
        self.limits.lock({*wanted, *(row.slot for row in self._read.values() if row and row.slot)})

        fired = sorted({it.schedule for it in given if isinstance(it, changes.Fire)})
        for name in fired:  # in one order, as they are locked
            self.schedule(name)

        ends = (it.task for it in given if isinstance(it, (changes.End, changes.Gone)))
        steps = list(self._steps_after(ends))
        self._load(steps)
        self._load_below(node for step in steps if (node := self._read[step]) is not None)

    def _steps_after(self, tasks: Iterable[str]) -> Iterator[str]:
        """Yield the next step of each chain above these tasks."""
        for task in tasks:
            node = self._read.get(task)
            while node is not None and node.parent:
                parent = self._read.get(node.parent)
                if parent is not None and parent.kind is Kind.CHAIN:
                    yield child_id(parent.id, node.index + 1)
                node = parent

    def _lock(self, roots: Sequence[str]) -> None:
        """Lock and read the roots. The server's time comes with them."""
        self._read.update(dict.fromkeys(roots))
        for *values, now in self._db.query(sql.LOCK_ROOTS, ids=roots):
            self._keep(tuple(values))
            self.now = self.now or now / 1e6

    def _load(self, ids: Iterable[str]) -> None:
        """Read the rows that were not read yet, with one statement."""
        unread = [node for node in dict.fromkeys(ids) if node not in self._read]
        if unread:
            self._read.update(dict.fromkeys(unread))
            for values in self._db.query(sql.NODES, ids=unread):
                self._keep(values)

    def _keep(self, values: Values) -> None:
        self._stored[values[0]] = values
        self._read[values[0]] = node_of(values)

    def _load_below(self, nodes: Iterable[Node]) -> None:
        """Read what a release, a cancellation or a skip of these nodes goes through."""
        left, level = _AHEAD, list(nodes)
        while level:
            ids: list[str] = []
            for flow in level:
                if flow.size <= left:
                    ids += _below(flow)
                    left -= flow.size
            self._load(ids)
            level = [node for below in ids if (node := self._read[below]) is not None]

    # Nodes

    def get(self, node: str) -> Node | None:
        """Return the transaction's own copy of a row."""
        if node not in self._read:
            self._load([node])
        return self._read[node]

    def children(self, parent: str, start: int, stop: int) -> Sequence[Node]:
        """Return children by index. Their ids follow from it."""
        ids = [child_id(parent, index) for index in range(start, stop)]
        has_read = all(node in self._read for node in ids)
        self._load(ids)
        found = [node for below in ids if (node := self._read[below]) is not None]
        if not has_read:
            self._load_below(found)
        return found

    def add(self, node: Node) -> None:
        """Insert a copy."""
        self._read[node.id] = self._added[node.id] = node.copy()

    def save(self, node: Node) -> None:
        """Write a changed row at the end."""
        self._saved[node.id] = node

    # The outbox

    def put_entry(self, entry: OutboxEntry) -> None:
        """Write an outbox entry."""
        self._entries[entry.key] = entry
        self._made[entry.key] = None

    def entry(self, key: str) -> OutboxEntry | None:
        """Return an outbox entry."""
        if key in self._entries:
            return self._entries[key]
        found = self._db.query(sql.ENTRY, key=key)
        return OutboxEntry(*found[0]) if found else None

    def remove_entry(self, key: str) -> None:
        """Remove an outbox entry."""
        self._entries[key] = None

    def take_made(self) -> list[str]:
        """Return the keys of the entries that were made since the last call."""
        made, self._made = list(self._made), {}
        return made

    def has_entry(self, key: str) -> bool:
        """Whether an entry that was made is there at the end of the transaction."""
        return self._entries.get(key) is not None

    # Unique keys, workers and schedules

    def holder(self, unique: str) -> str | None:
        """Return the holder of a unique key."""
        if unique in self._claims:
            return self._claims[unique]
        self._hold([unique])
        return self._holders[unique]

    def _hold(self, keys: Iterable[str]) -> None:
        """Lock and read the holders of unique keys, in one order."""
        unread = sorted({key for key in keys if key and key not in self._holders})
        if unread:
            self._holders.update(dict.fromkeys(unread))
            self._holders.update(self._db.query(sql.HOLDERS, keys=unread))

    def claim(self, unique: str, node: str) -> None:
        """Claim a unique key."""
        self._claims[unique] = node

    def unclaim(self, unique: str, node: str) -> None:
        """Give a unique key back."""
        if self.holder(unique) == node:
            self._claims[unique] = None

    def limit(self, key: str) -> bytes | None:
        """Return what is stored of a rate or of slots."""
        return self.limits.get(key)

    def put_limit(self, key: str, value: bytes | None, until: float = math.inf) -> None:
        """Write what is stored of a rate or of slots."""
        self.limits.put(key, value, until)

    def first_waiter(self, key: str) -> tuple[str, float] | None:
        """Return the first in a line."""
        return self.limits.first(key)

    def add_waiter(self, key: str, node: str, since: float) -> None:
        """Put a task into a line."""
        self.limits.line(key)[node] = since

    def remove_waiter(self, key: str, node: str) -> None:
        """Take a task out of a line."""
        self.limits.line(key)[node] = None

    def is_alive(self, worker: str) -> bool:
        """Whether the last heartbeat is younger than its ttl."""
        if worker not in self._alive:
            found = self._db.query(sql.ALIVE, worker=worker, time=self.now)
            self._alive[worker] = bool(found)
        return self._alive[worker]

    def schedule(self, name: str) -> Schedule | None:
        """Return a schedule; no other transaction changes it meanwhile."""
        if name not in self._schedules:
            found = self._db.query(sql.SCHEDULE, name=name)
            self._schedules[name] = Schedule(*found[0]) if found else None
        return self._planned.get(name) or self._schedules[name]

    def put_schedule(self, schedule: Schedule) -> None:
        """Write a schedule."""
        self._planned[schedule.name] = schedule

    # Writing

    @property
    def saved(self) -> Iterable[Node]:
        """The rows that were changed."""
        return self._saved.values()

    def write(self) -> None:
        """Write everything. Raises `RowsChanged` when a row was removed meanwhile."""
        self._insert_nodes()
        self._update_nodes()
        self._write_entries()
        self._write_claims()
        self._write_schedules()
        self.limits.write()

    def _insert_nodes(self) -> None:
        """Insert rows, with the columns in which one of them is not as by default."""
        if not self._added:
            return
        rows = [values_of(node) for _, node in sorted(self._added.items())]
        columns = zip(*rows, strict=True)
        used = [
            place
            for place, column in enumerate(columns)
            if column.count(DEFAULTS[place]) < len(rows)
        ]
        self._db.insert("tasks", columns_of(used, rows))

    def _update_nodes(self) -> None:
        """Write the columns that were changed, with a statement for each set of columns."""
        changed: dict[tuple[bool, ...], list[Values]] = defaultdict(list)
        for node in self._saved.values():
            if node.id not in self._added:
                values = values_of(node)
                changed[tuple(map(ne, values, self._stored[node.id]))].append(values)

        for marks, rows in changed.items():
            if any(marks):
                columns = columns_of([0, *compress(_PLACES, marks)], rows)
                if self._db.update("tasks", columns) != len(rows):
                    raise RowsChanged

    def _write_entries(self) -> None:
        """Remove entries, and insert those that are made, also in place of an older one."""
        entries = sorted(self._entries.items())
        if removed := [key for key, entry in entries if entry is None]:
            self._db.change(sql.REMOVE_ENTRIES, keys=removed)
        if made := [entry for _, entry in entries if entry is not None]:
            columns = {
                name: (kind, [getattr(entry, name) for entry in made])
                for name, kind in _ENTRY.items()
            }
            self._db.insert("task_outbox", columns, replace=True)

    def _write_claims(self) -> None:
        freed = sorted(key for key in self._claims if self._holders.get(key) is not None)
        if freed:
            self._db.change(sql.REMOVE_CLAIMS, keys=freed)
        claimed = sorted((key, task) for key, task in self._claims.items() if task is not None)
        if claimed:
            keys, tasks = zip(*claimed, strict=True)
            self._db.insert("task_claims", {"key": ("text", keys), "task": ("text", tasks)})

    def _write_schedules(self) -> None:
        for name, schedule in self._planned.items():
            columns: Columns = {
                "name": ("text", [name]),
                "version": ("bigint", [schedule.version]),
                "next_at": ("double precision", [schedule.next_at]),
                "definition": ("{bytes}", [schedule.definition]),
            }
            if self._schedules[name] is None:
                self._db.insert("task_schedules", columns)
            else:
                self._db.update("task_schedules", columns)


_ENTRY = {
    "key": "text",
    "node": "text",
    "run": "integer",
    "start": "integer",
    "written": "double precision",
}


def _needed(given: Sequence[Change]) -> Iterator[str]:
    """Yield the rows that changes certainly read: those they name, and all above them."""
    for change in given:
        match change:
            case changes.Add() | changes.Fire() | changes.Sent():
                pass  # the root of new rows is read when it is locked
            case changes.More(group=group, rows=rows):
                yield from _path(group)
                yield from (row.id for row in rows)
            case changes.Spread(group=node) | changes.Cancel(node=node):
                yield from _path(node)
            case changes.Recover(node=node):
                yield from _path(node)
            case _:
                yield from _path(change.task)


def _path(node: str) -> Iterator[str]:
    """Yield a node and all above it, by their ids."""
    yield node
    for place in range(len(node) - 1, 0, -1):
        if node[place] in ".~":
            yield node[:place]


def _below(node: Node) -> Iterable[str]:
    """Return the ids of those that go on with a node, or end with it."""
    if node.kind is Kind.TASK or node.has_ended:
        return ()
    if node.kind is Kind.REPLACED:
        return (replacement_id(node.id),)
    start = node.done if node.kind is Kind.CHAIN else 0
    return (child_id(node.id, index) for index in range(start, node.size))
