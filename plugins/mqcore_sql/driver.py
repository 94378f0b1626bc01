"""The seam of mqcore over the store: one thread, one connection, one generation.

`SqlDriver` has the calls, which run on the thread. `SqlBackend` adds what happens on the event
loop: consumers of this process are woken when it publishes, and a beat notices what was lost.
"""

import asyncio
import secrets
import time
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from typing import ClassVar, TypeVar, cast

from pydantic import BaseModel

from mqcore.spi import (
    Ack,
    Alterations,
    Binding,
    BlockingBackend,
    BlockingDriver,
    Capabilities,
    Capability,
    Clock,
    ConnectionLost,
    Delivery,
    Durability,
    Entry,
    ErrorKind,
    Failed,
    Level,
    Outcome,
    Outgoing,
    QueueCounts,
    QueueNotFound,
    QueueSpec,
    Settled,
    Settlement,
    Stored,
    Support,
    SystemClock,
    Transaction,
    Unknown,
)
from mqcore_sql import statements as sql
from mqcore_sql.database import CommitUnknown, Database
from mqcore_sql.enlisting import Enlister
from mqcore_sql.options import SqlOptions
from mqcore_sql.queues import Queues
from mqcore_sql.schema import prepare
from mqcore_sql.store import Consumer, Store

__all__ = ["SqlBackend", "SqlDriver"]

R = TypeVar("R")
_BEAT = 2.0
"""Seconds between two checks of the connection."""
_SILENCE = 9.0
"""Seconds without an answer after which a connection is cut. A file has nothing to cut."""
_FLOOR = 1.0
"""Seconds after which an idle consumer's queue is looked at, whatever was noticed."""
_CALM, _CALM_POLL = 5.0, 0.1
"""Seconds without a change after which to look for one less often, and how often then."""
_STEP, _LEAST_STEP = 10_000, 100
"""How many rows one transaction of a purge removes at most, and at least on a slow server."""
_SLOW = 1.0
"""Seconds of such a transaction after which the next one is half as large."""
_ANY_NUMBER = 1_000_000_000
"""The window has no bound in ids: they are on the disk."""


class SqlDriver(BlockingDriver):
    """The calls of one connection."""

    options: SqlOptions

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        self.options = cast("SqlOptions", options)
        self._clock: Clock = getattr(options, "clock", None) or SystemClock()
        self._db = self.make_database()
        self._queues = Queues(self._db, secrets.token_hex(8))
        self._store = Store(self._db, self._queues, self.options, self._clock)
        self._lost: Callable[[Exception], None] = lambda _: None
        self._capabilities: Capabilities
        self.enlister: Enlister
        self._watched: tuple[str, ...] = ()
        self._quiet_until = self._changed_at = -inf
        self.began: float | None = None
        """When the call that is running has begun, in real time."""

    @abstractmethod
    def make_database(self) -> Database:
        """Return the connection to the database of the URL, not yet open."""

    @abstractmethod
    def make_enlister(self) -> Enlister:
        """Return what writes in transactions of the application; the database is open."""

    # Opening

    def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Connect, and create or upgrade the tables."""
        self._db.open()
        prepare(self._db, migrate=self.options.migrate)
        self._db.prepared()
        self._store.prepare()
        self._store.forget_names()  # for names that are enlisted before the first publish
        self.enlister = self.make_enlister()
        self._lost = lost
        self._capabilities = self._probe()
        return self._capabilities

    def upgrade(self) -> tuple[int, int]:
        """Connect, create or upgrade the tables, and disconnect; return both versions."""
        try:
            self._db.open()
            return prepare(self._db, migrate=True)
        finally:
            self._db.close()

    def _probe(self) -> Capabilities:
        native, options = Level.NATIVE, self.options
        title, durability, reasons = self._db.server()
        window = {"window": options.dedup_window, "size": _ANY_NUMBER}
        supports = {
            Capability.DELAY: Support(native, {"granularity": 0.1, "max": options.max_delay}),
            Capability.PRIORITY: Support(native, {"levels": 11}),
            Capability.EXPIRY: Support(native, {"sweep": True}),
            Capability.DEDUP: Support(native, window),
            Capability.ATOMIC_MOVE: Support(native),
            Capability.LEASE: Support(native, {"exclusive": True}),
            Capability.ORDER: Support(native, {"release_in_place": True, "after_delay": "end"}),
            Capability.ROUTING: Support(Level.EMULATED),
            Capability.MAX_LENGTH: Support(native, {"modes": "reject,dead_letter"}),
            Capability.BROWSE: Support(native),
        }
        if durability > Durability.MEMORY:
            supports[Capability.DURABLE] = Support(native, reasons)
        return Capabilities(self._db.product.lower(), title, durability, supports)

    def close(self) -> None:
        """Remove the temporary queues of this instance, and disconnect."""
        self._lost = lambda _: None
        try:
            with suppress(Exception), self._store.writing(durable=False):
                self._queues.leave()
        finally:
            self._db.close()

    def abort(self) -> None:
        """Cut the connection."""
        self._db.abort()

    def waited(self) -> float:
        """Return for how many seconds the call that is running has run; from any thread."""
        began = self.began
        return 0.0 if began is None else time.monotonic() - began

    def beat(self) -> None:
        """Check that the connection lives, and clear old names of the deduplication window."""
        self._db.beat()
        self._store.forget_names()

    # Queues

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Create the queues that are missing."""
        for spec in queues:
            if spec.durability is not None:
                self._capabilities.require_durability(spec.durability)
        if self._queues.has_all(queues):
            return  # reading waits for no writer, as the transaction of an application may be one
        with self._changing():
            self._queues.declare(queues)

    def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        """Remove a queue with its quarantine and bindings."""
        with self._changing():
            return self._queues.delete(queue, if_empty=if_empty, keeps_names=True)

    def family(self, queue: str) -> list[int]:
        """Return the ids of a queue and its quarantine. Raises `QueueNotFound`."""
        return [each.id for each in self._queues.family(queue)]

    def forget_some(self, ids: Sequence[int], limit: int) -> int:
        """Forget names of deleted queues, at most `limit` in each table; return how many."""
        with self._store.writing():
            return max(
                self._db.change(statement, ids=list(ids), limit=limit)
                for statement in sql.FORGET_SOME_NAMES
            )

    def alter(self, queue: str, settings: Alterations) -> None:
        """Change settings of a queue."""
        with self._changing():
            self._queues.alter(queue, settings)

    def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings."""
        with self._changing():
            self._queues.bind(bindings)

    def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings."""
        with self._changing():
            self._queues.unbind(bindings)

    def bindings(self, router: str | None = None) -> Sequence[Binding]:
        """Return the bindings of one router, or all."""
        return self._queues.bindings(router)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Return a transaction in which no other process changes queues or bindings."""
        with self._store.writing():
            self._db.lock_topology()
            yield

    # Messages

    def publish(self, batch: Sequence[Outgoing], timeout: float) -> Sequence[Outcome]:  # noqa: ARG002 - the adapter keeps the deadline
        """Store a batch."""
        if not batch:
            return []
        try:
            outcomes = self._store.publish(batch)
        except Exception as error:  # noqa: BLE001 - it is the outcome
            return [self._outcome(error)] * len(batch)
        self._db.notify()
        return outcomes

    def settle(
        self,
        consumer: Consumer,
        batch: Sequence[Settlement],
        timeout: float,  # noqa: ARG002 - as publish
    ) -> Sequence[Settled]:
        """Settle a batch."""
        if not batch:
            return []
        try:
            settled = self._store.settle(consumer.queue, batch)
        except Exception as error:  # noqa: BLE001 - it is the outcome
            return [self._outcome(error)] * len(batch)
        if not all(isinstance(item, Ack) for item in batch):
            self._db.notify()  # what was released or moved is for others
        return settled

    def notify(self) -> None:
        """Tell other processes that messages were stored."""
        self._db.notify()

    def _outcome(self, error: Exception) -> Failed | Unknown:
        """Return the outcome of a transaction that raised."""
        self.report(error)
        if isinstance(error, CommitUnknown):
            return Unknown(str(error), error)
        return Failed(self.classify(error), str(error), error)

    # Consumers

    def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Consumer:  # noqa: ARG002 - the adapter counts
        """Start to consume. Raises `QueueNotFound`."""
        return Consumer(self._queues.get(queue), lease)

    def claim(self, consumer: Consumer, limit: int) -> Sequence[Delivery]:
        """Lease messages that are ready."""
        return self._store.claim(consumer, limit)

    def give_back(self, queue: str, receipts: Sequence[bytes]) -> None:
        """Return claims unmarked."""
        self._store.give_back(queue, receipts)
        self._db.notify()

    def unsubscribe(self, consumer: Consumer, receipts: Sequence[bytes]) -> None:
        """Return claims as taken over."""
        if receipts:
            self._store.lose(consumer.queue.name, receipts)
            self._db.notify()

    def held(self, consumer: Consumer, receipts: Sequence[bytes]) -> Collection[bytes]:
        """Return the claims that hold."""
        return self._store.held(consumer.queue, receipts)

    def pending(self, queues: Sequence[str]) -> Collection[str]:
        """Return the queues at which to claim: one statement for all, and only after a change.

        Without a change nothing becomes ready before a moment that is known, and is looked for
        after a second at the latest.
        """
        has_changed = self._db.changed()
        if not has_changed and self._waits(queues):
            return ()

        now, watched = self._clock.monotonic(), tuple(queues)
        if has_changed or self._store.is_dirty:
            self._changed_at = now
        self._store.is_dirty = False
        events = self._store.next_events(queues)
        self._watched = watched
        self._quiet_until = now + min([_FLOOR, *events.values()])
        return [name for name in queues if events.get(name, 0.0) <= 0]

    def is_quiet(self, queues: Sequence[str]) -> bool:
        """Return whether nothing has changed and nothing falls due; on the event loop."""
        return self._waits(queues) and not self._db.may_have_changed()

    def next_look(self, poll: float) -> float:
        """Return when to look for changes, at the latest when the next message falls due."""
        now = self._clock.monotonic()
        if now - self._changed_at < _CALM:
            return poll
        return min(_CALM_POLL, max(self._quiet_until - now, poll))

    def _waits(self, queues: Sequence[str]) -> bool:
        """Return whether these queues have nothing to claim unless another connection writes."""
        watched, is_early = (
            tuple(queues) == self._watched,
            self._clock.monotonic() < self._quiet_until,
        )
        return watched and is_early and not self._store.is_dirty

    def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        """Extend claims of any instance."""
        return self._store.renew(queue, receipts, lease)

    def note_start(self, queue: str, receipts: Sequence[bytes]) -> Sequence[bool]:
        """Note that handlers start with these claims."""
        return self._store.note_start(queue, receipts)

    # Operators

    def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Count the named queues, or all but quarantines and temporary ones."""
        return self._queues.counts(queues)

    def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        """Return a page of messages. Raises `QueueNotFound`."""
        return self._store.browse(queue, limit, after)

    def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:
        """Lease chosen entries. Raises `QueueNotFound`."""
        return self._store.take(queue, keys, lease)

    def sweep(self, queue: str, limit: int, lease: float) -> Sequence[Delivery]:
        """Lease expired messages. Raises `QueueNotFound`."""
        return self._store.sweep(queue, limit, lease)

    def purge(self, queue: str) -> int:
        """Remove what is not leased. Raises `QueueNotFound`."""
        return self._store.purge(queue)

    def newest(self) -> int:
        """Return the highest number of a message."""
        return int(self._db.query(sql.NEWEST)[0][0])

    def purge_some(self, ids: Sequence[int], last: int, limit: int) -> int:
        """Remove at most `limit` messages that are not leased, up to a number; return how many."""
        with self._store.writing():
            return self._db.change(sql.PURGE_SOME, ids=list(ids), id=last, limit=limit)

    def diagnose(self) -> Sequence[str]:
        """Return what an operator should know."""
        return self._db.problems()

    def report(self, error: Exception) -> None:
        """Report the connection as lost when an error says so."""
        began = error.__cause__ if isinstance(error, CommitUnknown) else error
        if began is not None and self._db.is_lost(began):
            self._lost(error)


class SqlBackend(BlockingBackend):
    """What both databases do on the event loop."""

    Driver: ClassVar[type[SqlDriver]]

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        self._beating: asyncio.Task[None] | None = None
        self._enlister: Enlister | None = None
        self._notifying: asyncio.Task[None] | None = None

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Connect, and begin to check the connection."""
        capabilities = await super().open(lost)
        self._enlister = cast("SqlDriver", self._driver).enlister
        self._beating = asyncio.create_task(self._beat())
        return capabilities

    async def close(self) -> None:
        """Stop the checks, and disconnect."""
        for task in (self._beating, self._notifying):
            if task is not None:
                task.cancel()
        self._beating = self._notifying = None
        await super().close()

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Store a batch, and wake the consumers of this process."""
        outcomes = await super().publish(batch, timeout=timeout)
        queues = {
            str(out.to)
            for out, outcome in zip(batch, outcomes, strict=True)
            if isinstance(outcome, Stored) and out.delay <= 0
        }
        for queue in queues:
            self.wake(queue)
        return outcomes

    # Many messages

    async def purge(self, queue: str) -> int:
        """Remove what is not leased, in short transactions. Raises `QueueNotFound`.

        A call that is interrupted has removed a part; calling it again removes the rest. What is
        published meanwhile may be removed or not.
        """
        removed = await self._empty(queue)
        return removed + await self._ask(lambda driver: driver.purge(queue))

    async def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        """Remove a queue with its quarantine and bindings. Raises `QueueNotFound`.

        Its messages go first, in short transactions: a call that is interrupted leaves the queue
        with the rest of them. The names of its messages go last; what is left of them after an
        interruption ends with the deduplication window.
        """
        ids = await self._ask(lambda driver: driver.family(queue))
        if not if_empty:
            await self._empty(queue)
        if not await self._ask(lambda driver: driver.delete(queue, if_empty=if_empty)):
            return False
        with suppress(Exception):  # the queue is gone, which is what was asked for
            await self._in_steps(lambda driver, limit: driver.forget_some(ids, limit))
        return True

    async def _empty(self, queue: str) -> int:
        """Remove the messages that are there now, so that few are left for one transaction."""
        ids = await self._ask(lambda driver: driver.family(queue))
        last = await self._ask(SqlDriver.newest)
        return await self._in_steps(lambda driver, limit: driver.purge_some(ids, last, limit))

    async def _in_steps(self, step: Callable[[SqlDriver, int], int]) -> int:
        """Repeat a step until it finds less than its limit, which follows the pace of the server.

        One transaction for all would be cut by the watchdog, and hold up others meanwhile.
        """
        total, limit = 0, _STEP
        while True:
            began = time.monotonic()
            found = await self._ask(partial(_limited, step, limit))
            total += found
            if found < limit:
                return total
            is_slow = time.monotonic() - began > _SLOW
            limit = max(limit // 2, _LEAST_STEP) if is_slow else limit

    async def _ask(self, work: Callable[[SqlDriver], R]) -> R:
        return await self.run(lambda driver: work(cast("SqlDriver", driver)))

    # Transactions of the application

    def file_identity(self) -> tuple[int, int] | None:
        """Return device and inode of the file whose write lock a publish needs; None elsewhere."""
        return None

    def foreign(self, transaction: Transaction) -> str:
        """Return why a transaction is not in this database, or an empty text."""
        return self._enlisting().foreign(transaction)

    def enlist(self, transaction: Transaction, batch: Sequence[Outgoing]) -> Sequence[Outcome]:
        """Store a batch in a transaction of the application."""
        return self._enlisting().enlist(transaction, batch)

    def acknowledge(self, transaction: Transaction, receipt: bytes) -> bool:
        """Acknowledge a message in a transaction of the application; False when it is lost."""
        return self._enlisting().acknowledge(transaction, receipt)

    def _enlisting(self) -> Enlister:
        if self._enlister is None:
            raise ConnectionLost("the database was not connected yet; open it first")
        return self._enlister

    def committed(self, queues: Sequence[str]) -> None:
        """Wake the consumers of this process, and notify others."""
        for queue in queues:
            self.wake(queue)
        if self._driver is not None and (self._notifying is None or self._notifying.done()):
            self._notifying = asyncio.create_task(self._notify())

    async def _notify(self) -> None:
        with suppress(Exception):  # it is a hint
            await self.run(lambda driver: cast("SqlDriver", driver).notify())

    async def run(
        self,
        work: Callable[[BlockingDriver], R],
        timeout: float | None = None,
        undo: Callable[[BlockingDriver, R], object] | None = None,
    ) -> R:
        """Run `work(driver)` on the thread; an error that says so ends the connection."""
        return await super().run(partial(_reported, work), timeout, undo)

    async def _beat(self) -> None:
        """Check the connection, and cut it when a call has had no answer for too long (G14)."""
        beat: asyncio.Task[None] | None = None
        try:
            while True:
                await self.clock.sleep(_BEAT)
                driver = cast("SqlDriver | None", self._driver)
                if driver is not None and driver.waited() > _SILENCE:
                    driver.abort()
                if beat is None or beat.done():
                    beat = asyncio.create_task(self._beat_once())
        finally:
            if beat is not None:
                beat.cancel()

    async def _beat_once(self) -> None:
        with suppress(Exception):  # a loss is reported by the driver
            await self.run(lambda driver: cast("SqlDriver", driver).beat())


def _limited(step: Callable[[SqlDriver, int], int], limit: int, driver: SqlDriver) -> int:
    return step(driver, limit)


def _reported(work: Callable[[BlockingDriver], R], driver: BlockingDriver) -> R:
    ours = cast("SqlDriver", driver)
    ours.began = time.monotonic()
    try:
        return work(driver)
    except Exception as error:
        ours.report(error)
        raise
    finally:
        ours.began = None


def kind_of(database: type[Database], error: BaseException) -> ErrorKind:
    """Return the kind of an error of the driver or of its client library."""
    if isinstance(error, CommitUnknown) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, QueueNotFound):
        return ErrorKind.NOT_FOUND
    if isinstance(error, ConnectionLost):
        return ErrorKind.TRANSIENT
    return database.kind(error)
