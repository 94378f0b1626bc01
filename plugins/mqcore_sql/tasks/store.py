"""The seam of a task store over a database: what the event loop asks for, done on one thread.

    apply, apply, apply ── one turn of the loop ──► one transaction ──► an outcome for each

While a transaction runs, the next ones are gathered, so a busy process commits seldom.
"""

import asyncio
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import ClassVar, TypeVar

from mqcore.tasks.spi import (
    SLICE,
    Announcement,
    Applied,
    CallNotBegun,
    CallNotEnded,
    CallThread,
    Change,
    Clock,
    ConfigurationError,
    Heartbeat,
    IllegalTransition,
    Node,
    OutboxEntry,
    Outcome,
    Pending,
    Schedule,
    StoreError,
    TaskStore,
    apply_changes,
    changes,
    child_id,
)
from mqcore_sql.database import TASK_TABLES, CommitUnknown, Database
from mqcore_sql.schema import prepare
from mqcore_sql.tasks import statements as sql
from mqcore_sql.tasks.columns import Values, node_of
from mqcore_sql.tasks.rows import RowsChanged, SqlRows

__all__ = ["SqlTaskStore"]

R = TypeVar("R")
_MOST = 1_000
"""How many changes and new rows of several callers are made in one transaction."""
_PATIENCE = 30.0
"""Seconds after which a call that has no answer is given up."""
_CLOSE = 2.0
"""Seconds that the thread has to disconnect."""
_TRIES = 10
"""How often a transaction is made that was certainly rolled back because it met another one."""
_ENTRY_COLUMNS = 5
_NOT_DURABLE = (changes.Begin, changes.Progress, changes.Sent)
"""What a power cut may undo on SQLite: it has ended the worker as well, and they are repeated."""


@dataclass
class _Call:
    """Changes of one caller, which waits for their outcomes."""

    changes: Sequence[Change]
    applied: asyncio.Future[Applied]

    @property
    def size(self) -> int:
        """How much the transaction has to do, roughly."""
        return sum(max(len(getattr(change, "rows", ())), 1) for change in self.changes)


class SqlTaskStore(TaskStore):
    """What both databases do. A subclass says how to connect."""

    product: ClassVar[str]

    def __init__(
        self, url: str, clock: Clock | None = None, *, slice_size: int = SLICE, migrate: bool = True
    ) -> None:
        super().__init__(url, clock, slice_size=slice_size)
        self._migrate = migrate
        self._thread: CallThread | None = None
        self._db: Database | None = None
        self._waiting: list[_Call] = []
        self._flushing: asyncio.Task[None] | None = None

    @abstractmethod
    def make_database(self) -> Database:
        """Return a connection that is not yet open."""

    @staticmethod
    @abstractmethod
    def has_met_another(error: Exception) -> bool:
        """Whether a transaction was rolled back because another one was in its way."""

    def announce(self, announcement: Announcement) -> None:
        """Announce changed rows to other processes, where that takes a statement."""

    # Connecting

    async def open(self) -> None:
        """Connect, and create or upgrade the tables."""
        await self.close()
        self._thread = CallThread(f"mqcore-{type(self).__name__}", self.clock)
        try:
            await self._run("open", lambda _: None)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect. A thread that does not answer is left behind."""
        thread, self._thread = self._thread, None
        if self._flushing is not None:
            self._flushing.cancel()
        waiting, self._waiting = self._waiting, []
        _fail(waiting, self._closed())
        if thread is None:
            return

        ended = thread.post(self._disconnect)
        thread.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE):
                await asyncio.shield(ended)

    def _disconnect(self) -> None:
        database, self._db = self._db, None
        if database is not None:
            database.close()

    def _connected(self) -> Database:
        """Return the connection, and connect first if there is none; on the thread."""
        if self._db is None:
            database = self.make_database()
            try:
                database.open()
                prepare(database, migrate=self._migrate)
                if self.clock.real:
                    database.prepared()
            except BaseException:
                database.close()
                raise
            self._db = database
        return self._db

    async def _run(self, what: str, work: Callable[[Database], R]) -> R:
        """Run `work(database)` on the thread."""
        if self._thread is None:
            raise self._closed()
        given_up = Event()
        try:
            return await self._thread.run(
                lambda: self._repeated(what, work, given_up), timeout=_PATIENCE
            )
        except (CallNotBegun, CallNotEnded) as error:
            given_up.set()
            if isinstance(error, CallNotEnded) and (database := self._db) is not None:
                database.abort()
            raise StoreError(
                f"{what}: {self.product} has not answered in {_PATIENCE:g} s. Another transaction "
                "may hold a lock, or the server cannot be reached. Repeat the call: every change "
                "is safe to repeat"
            ) from error

    def _repeated(self, what: str, work: Callable[[Database], R], given_up: Event) -> R:
        """Do the work; again if it was certainly undone, and its caller still waits."""
        for left in reversed(range(_TRIES)):
            was_open = self._db is not None
            try:
                return work(self._connected())
            except (IllegalTransition, ConfigurationError):
                raise
            except Exception as error:
                is_lost = self._was_lost(error)
                is_certain = not isinstance(error, CommitUnknown)
                has_reason = (is_lost and was_open) or self._is_in_the_way(error)
                if not (left and is_certain and has_reason) or given_up.is_set():
                    raise self._explained(what, error) from error
        raise AssertionError  # pragma: no cover - the last try returns or raises

    def _is_in_the_way(self, error: Exception) -> bool:
        return isinstance(error, RowsChanged) or self.has_met_another(error)

    def _was_lost(self, error: Exception) -> bool:
        """Return whether the connection is lost. The next call connects again."""
        cause = error.__cause__ if isinstance(error, CommitUnknown) else error
        if self._db is None or cause is None or not self._db.is_lost(cause):
            return False
        self._disconnect()
        return True

    def _explained(self, what: str, error: Exception) -> StoreError:
        """Return the error of a call that failed."""
        if isinstance(error, CommitUnknown):
            result = "The changes may have been made"
        else:
            result = "Nothing was changed"
        return StoreError(
            f"{what} in the task store has failed: {self.product} answered {error}. {result}. "
            "Repeat the call when the database can be used: every change is safe to repeat, and "
            "the store connects again by itself"
        )

    def _closed(self) -> StoreError:
        return StoreError(f"the task store in {self.product} is closed; open it first")

    # Changes

    async def apply(self, changes: Sequence[Change]) -> Applied:
        """Make the changes, in one transaction with those of other callers in this turn."""
        if self._thread is None:
            raise self._closed()
        if not changes:
            return Applied([])

        call = _Call(list(changes), asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return await call.applied

    async def _flush(self) -> None:
        """Make what waits, one transaction after the other."""
        while self._waiting:
            calls, size = [self._waiting[0]], self._waiting[0].size
            for call in self._waiting[1:]:
                if (size := size + call.size) > _MOST:
                    break
                calls.append(call)
            del self._waiting[: len(calls)]

            try:
                await self._make(calls)
            finally:
                _fail(calls, self._closed())  # without effect, unless this task was cancelled

    async def _make(self, calls: Sequence[_Call]) -> None:
        """Make the changes of several callers, and answer each of them."""
        given = [call.changes for call in calls]
        try:
            answers, changed = await self._run(
                "apply", lambda database: self._transact(database, given)
            )
        except IllegalTransition as error:
            if len(calls) > 1:  # of one of them; the others have nothing to do with it
                for call in calls:
                    await self._make([call])
                return
            _fail(calls, error)
        except Exception as error:  # noqa: BLE001 - it is the answer of each call
            _fail(calls, error)
        else:
            self.announce(changed)
            for call, applied in zip(calls, answers, strict=True):
                if not call.applied.done():
                    call.applied.set_result(applied)

    def _transact(
        self, database: Database, given: Sequence[Sequence[Change]]
    ) -> tuple[list[Applied], Announcement]:
        """Make the changes of several callers in one transaction."""
        every = [change for changes in given for change in changes]
        is_durable = not all(isinstance(change, _NOT_DURABLE) for change in every)
        made: list[tuple[list[Outcome], list[str]]] = []

        with database.transaction(durable=is_durable):
            rows = SqlRows(database, None if self.clock.real else self.clock.now())
            rows.prepare(every)
            for changes in given:
                outcomes = apply_changes(rows, changes, self.slice_size)
                made.append((outcomes, rows.take_made()))
            rows.write()
        applied = [
            Applied(outcomes, [key for key in keys if rows.has_entry(key)])
            for outcomes, keys in made
        ]
        return applied, Announcement.of(rows.saved)

    def _now(self, database: Database) -> float:
        """Return the time of the transaction: the server's, unless the clock is one of a test."""
        return database.time() if self.clock.real else self.clock.now()

    # Reading

    async def outbox(self, limit: int = 100, written_before: float = math.inf) -> Sequence[Pending]:
        """Return the oldest entries."""
        values = {"limit": limit, "before": written_before}
        rows = await self._run("outbox", lambda database: database.query(sql.OUTBOX, **values))
        return list(map(_pending, rows))

    async def entries(self, keys: Sequence[str]) -> Sequence[Pending]:
        """Return these entries."""
        given = list(keys)
        rows = await self._run("entries", lambda database: database.query(sql.ENTRIES, keys=given))
        found = {row[0]: _pending(row) for row in rows}
        return [found[key] for key in given if key in found]

    async def nodes(self, ids: Sequence[str]) -> Sequence[Node | None]:
        """Return rows."""
        given = list(ids)
        rows = await self._run("nodes", lambda database: database.query(sql.NODES, ids=given))
        found = {row[0]: row for row in rows}
        return [node_of(found[node]) if node in found else None for node in given]

    async def children(self, parent: str, start: int, stop: int) -> Sequence[Node]:
        """Return rows by index."""
        found = await self.nodes([child_id(parent, index) for index in range(start, stop)])
        return [node for node in found if node is not None]

    async def suspects(self, before: float, limit: int = 100) -> Sequence[str]:
        """Look at the open tasks that are late, and at the groups that are not sealed."""

        def find(database: Database) -> list[str]:
            values = {"before": before, "limit": limit, "time": self._now(database)}
            return [
                node
                for statement in (sql.LATE, sql.ABANDONED)
                for (node,) in database.query(statement, **values)
            ][:limit]

        return await self._run("suspects", find)

    async def live(self, limit: int = 100) -> Sequence[str]:
        """Read the index of live tasks."""
        rows = await self._run("live", lambda database: database.query(sql.ALL_LIVE, limit=limit))
        return [node for (node,) in rows]

    async def heartbeat(self, beat: Heartbeat) -> Sequence[str]:
        """Store it, with the time of the store."""

        def write(database: Database) -> list[str]:
            with database.transaction(durable=False):
                values = {"worker": beat.worker, "ttl": beat.ttl, "info": beat.info}
                database.change(sql.BEAT, time=self._now(database), **values)
                rows = database.query(sql.ASKED, worker=beat.worker)
            return [node for (node,) in rows]

        return await self._run("heartbeat", write)

    async def workers(self) -> Sequence[Heartbeat]:
        """Return the heartbeats."""
        rows = await self._run("workers", lambda database: database.query(sql.WORKERS))
        return [Heartbeat(*row) for row in sorted(rows)]

    async def schedules(self) -> Sequence[Schedule]:
        """Return the schedules."""
        rows = await self._run("schedules", lambda database: database.query(sql.SCHEDULES))
        return [Schedule(*row) for row in sorted(rows, key=lambda row: str(row[0]))]

    async def ended(
        self, after: float, before: float, limit: int = 100, start: int = 0
    ) -> Sequence[str]:
        """Return the roots by the time when they ended."""
        values = {"after": after, "before": before, "limit": limit, "start": start}
        rows = await self._run("ended", lambda database: database.query(sql.ENDED_ROOTS, **values))
        return [root for (root,) in rows]

    # Removing

    async def purge(self, ended_before: float, limit: int = 100) -> int:
        """Remove old trees, as a whole."""

        def remove(database: Database) -> int:
            with database.transaction():
                old = database.query(sql.OLD, before=ended_before, limit=limit)
                roots = [root for (root,) in old if not database.query(sql.IS_OPEN, root=root)]
                for root in roots:
                    for statement in sql.REMOVE_TREE:
                        database.change(statement, root=root)
                database.change(sql.REMOVE_OLD_LIMITS, before=ended_before)
                database.change(sql.REMOVE_BEATS, before=ended_before)
            return len(roots)

        return await self._run("purge", remove)

    async def clear(self) -> None:
        """Empty the tables of tasks."""

        def remove(database: Database) -> None:
            with database.transaction():
                for table in TASK_TABLES:
                    database.change(sql.CLEAR.format(f"{{{table}}}"))

        await self._run("clear", remove)


def _fail(calls: Sequence[_Call], error: Exception) -> None:
    for call in calls:
        if not call.applied.done():
            call.applied.set_exception(error)


def _pending(row: Values) -> Pending:
    entry, values = OutboxEntry(*row[:_ENTRY_COLUMNS]), row[_ENTRY_COLUMNS:]
    return Pending(entry, None if values[0] is None else node_of(values))
