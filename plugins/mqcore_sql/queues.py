"""The rows of queues: reading, declaring, altering and deleting them, and the bindings to them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from mqcore.spi import (
    HIDDEN_ROLES,
    Alterations,
    Binding,
    ConfigurationError,
    QueueCounts,
    QueueNotFound,
    QueueSpec,
    check_router_kinds,
    check_spec,
    quarantine_of,
)
from mqcore_sql import statements as sql
from mqcore_sql.database import Database

__all__ = ["QueueRow", "Queues"]

_IDLE = 3_600_000_000
"""Microseconds that a temporary queue stays when its owner has died and no consumer claims."""


class QueueRow(NamedTuple):
    """A queue as it is stored."""

    id: int
    name: str
    role: Any
    ttl: float | None
    max_length: int | None
    overflow: Any
    dead_letter: str | None
    retention: float | None

    def spec(self) -> QueueSpec:
        """Return what the queue was declared with."""
        return QueueSpec(**{name: value for name, value in self._asdict().items() if name != "id"})


class Queues:
    """The queues of one connection. `owner` is who owns the temporary queues declared here."""

    def __init__(self, database: Database, owner: str) -> None:
        self._db = database
        self._owner = owner
        self.now = self.epoch = 0
        """The time and the period of the deduplication window, as they were read last."""

    # Reading

    def targets(self, names: Iterable[str]) -> dict[str, QueueRow]:
        """Return the queues that exist; a delete waits until the transaction has ended."""
        rows = self._db.query(sql.QUEUES, queues=list(dict.fromkeys(names)))
        if rows:
            self.now, self.epoch = rows[0][-2:]
        return {row[1]: QueueRow(*row[:-2]) for row in rows}

    def get(self, name: str) -> QueueRow:
        """Return a queue. Raises `QueueNotFound`."""
        queue = self.targets([name]).get(name)
        if queue is None:
            raise QueueNotFound(f"there is no queue {name!r} in this {self._db.product} database")
        return queue

    def exists(self, queue: QueueRow) -> None:
        """Raise `QueueNotFound` when the queue was deleted, also if another has its name."""
        if not self._db.query(sql.EXISTS, queue=queue.id):
            raise QueueNotFound(
                f"queue {queue.name!r} was deleted while it was consumed; declare it and subscribe "
                "again"
            )

    def counts(self, names: Sequence[str] | None) -> list[QueueCounts]:
        """Count the named queues that exist, or all but quarantines and temporary ones."""
        if names is None:
            rows = self._db.query(sql.QUEUES_ALL)
            chosen = [row[1] for row in rows if row[2] not in HIDDEN_ROLES]
        else:
            chosen = list(dict.fromkeys(names))
            wanted = [*chosen, *map(quarantine_of, chosen)]
            rows = self._db.query(sql.QUEUES_OF, queues=wanted)

        known = {row[1]: row for row in rows}
        numbers = {
            queue: tuple(map(int, found))
            for queue, *found in self._db.query(sql.COUNT, ids=[row[0] for row in rows])
        }
        return [self._count(known, numbers, name) for name in chosen if name in known]

    def _count(
        self, known: dict[str, tuple[Any, ...]], numbers: dict[int, tuple[int, ...]], name: str
    ) -> QueueCounts:
        row, quarantine = known[name], known.get(quarantine_of(name))
        queue, totals = QueueRow(*row[:-2]), row[-2:]
        family = [queue.id]
        if quarantine is not None and quarantine[2] == "quarantine":
            family.append(quarantine[0])

        found = [numbers.get(number, (0, 0, 0)) for number in family]
        ready, leased, delayed = (sum(column) for column in zip(*found, strict=True))
        published, settled = totals if self._db.counts_totals else (None, None)
        return QueueCounts(
            name=name,
            role=queue.role,
            ready=ready,
            leased=leased,
            delayed=delayed,
            published=published,
            settled=settled,
            dead_letter=queue.dead_letter,
            spec=queue.spec(),
        )

    def has_all(self, specs: Sequence[QueueSpec]) -> bool:
        """Return whether all queues exist. Raises `TopologyMismatch` when one differs."""
        rows = self._db.query(sql.QUEUES_OF, queues=[spec.name for spec in specs])
        known = {row[1]: QueueRow(*row[:-2]).spec() for row in rows}
        for spec in specs:
            if spec.name in known:
                check_spec(known[spec.name], spec)
        return all(spec.name in known for spec in specs)

    # Writing, inside a transaction

    def declare(self, specs: Sequence[QueueSpec]) -> None:
        """Create the queues that are missing. Raises `TopologyMismatch` when one differs."""
        for _, name in self._db.query(sql.IDLE_TEMPORARY, idle=_IDLE):
            self.delete(name)

        known = {
            name: queue.spec() for name, queue in self.targets(spec.name for spec in specs).items()
        }
        for spec in specs:
            if spec.name in known:
                check_spec(known[spec.name], spec)
                continue
            known[spec.name] = spec
            self._db.change(
                sql.ADD_QUEUE,
                **{name: value for name, value in asdict(spec).items() if name != "durability"},
                owner=self._owner if spec.role == "temporary" else None,
            )

    def alter(self, name: str, settings: Alterations) -> None:
        """Change settings. Raises `QueueNotFound`."""
        queue = self.get(name)._replace(**settings)
        self._db.change(
            sql.ALTER,
            queue=queue.id,
            ttl=queue.ttl,
            max_length=queue.max_length,
            overflow=queue.overflow,
            retention=queue.retention,
        )

    def family(self, name: str) -> list[QueueRow]:
        """Return a queue and its quarantine. Raises `QueueNotFound`."""
        queue, other = self.get(name), quarantine_of(name)
        quarantine = self.targets([other]).get(other)
        if quarantine is None or quarantine.role != "quarantine":
            return [queue]
        return [queue, quarantine]

    def delete(self, name: str, *, if_empty: bool = False, keeps_names: bool = False) -> bool:
        """Remove a queue, its quarantine and the bindings to it. Raises `QueueNotFound`.

        With `keeps_names` those of its messages stay. Another queue never finds them.
        """
        family = self.family(name)
        ids, names = [queue.id for queue in family], [queue.name for queue in family]
        self._db.query(sql.LOCK_QUEUES_TO_DELETE, ids=ids)
        if if_empty and self._db.query(sql.HOLDS_ANY, ids=ids):
            return False

        self._db.change(sql.DELETE_QUEUE, ids=ids)
        self._db.change(sql.DELETE_QUEUE_MESSAGES, ids=ids)
        for statement in () if keeps_names else sql.DELETE_QUEUE_NAMES:
            self._db.change(statement, ids=ids)
        self._db.change(sql.DELETE_QUEUE_BINDINGS, names=names)
        return True

    def leave(self) -> None:
        """Remove the temporary queues of this owner."""
        for _, name in self._db.query(sql.OWNED, owner=self._owner):
            self.delete(name)

    # Bindings

    def bindings(self, router: str | None = None) -> list[Binding]:
        """Return the bindings of one router, or all."""
        rows = (
            self._db.query(sql.BINDINGS)
            if router is None
            else self._db.query(sql.BINDINGS_OF, router=router)
        )
        found = (_binding(record) for (record,) in rows)
        return [binding for binding in found if binding is not None]

    def bind(self, bindings: Sequence[Binding]) -> None:
        """Add all, or none and raise `TopologyMismatch` when a router would have two kinds."""
        check_router_kinds(self.bindings(), bindings)
        for binding in bindings:
            self._db.change(
                sql.ADD_BINDING, record=_text(binding), router=binding.router, queue=binding.queue
            )

    def unbind(self, bindings: Iterable[Binding]) -> None:
        """Remove bindings. Those that do not exist are ignored."""
        for binding in bindings:
            self._db.change(sql.DELETE_BINDING, record=_text(binding))


def _text(binding: Binding) -> str:
    return json.dumps(asdict(binding), sort_keys=True)


def _binding(record: str) -> Binding | None:
    """Read a record; None for one that mqcore did not write, which must not stop all routing."""
    try:
        fields = json.loads(record)
        headers = tuple((str(name), str(value)) for name, value in fields.pop("headers"))
        return Binding(**fields, headers=headers)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigurationError):
        return None
