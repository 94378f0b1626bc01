"""`SqlInbox`: records which messages were handled in the transaction of the handler, by SQLAlchemy.

    look for the id ─► handler ─► acknowledge, where the queue is in the same database
                               ─► insert the id ─► commit

The look is a transaction of its own, so a handler that waits for something else holds no lock, and
on SQLite it does not read from an old snapshot. The insert is what decides: two deliveries of one
message cannot both commit.

`statements` of SQLAlchemy run on synchronous sessions; an `AsyncSession` runs them by `run_sync`.
SQLAlchemy is an extra. It is imported when an inbox is made.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Any

from mqcore.spi import (
    Backend,
    Clock,
    ConfigurationError,
    Inbox,
    InboxEntry,
    Recorded,
    SupportsJoin,
    SystemClock,
    Transaction,
)
from mqcore_sql.driver import SqlBackend
from mqcore_sql.write_lock import WriteLocks

if TYPE_CHECKING:
    from sqlalchemy import MetaData, Table, TextClause
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["SqlInbox", "inbox_table"]

_STEP = 1_000
"""How many ids one step removes."""
_LONGEST_NAME = 255


def inbox_table(
    metadata: "MetaData", name: str = "mq_inbox", *, schema: str | None = None
) -> "Table":
    """Return the table of an inbox, as a part of your metadata, for instance for Alembic."""
    from sqlalchemy import Column, Double, String, Table  # noqa: PLC0415 - SQLAlchemy is an extra

    return Table(
        name,
        metadata,
        Column("consumer", String(_LONGEST_NAME), primary_key=True),
        Column("queue", String(_LONGEST_NAME), primary_key=True),
        Column("id", String(_LONGEST_NAME), primary_key=True),
        Column("until", Double, nullable=False, index=True),
        schema=schema,
    )


class SqlInbox(Inbox):
    """An inbox in the database of the handlers' own sessions.

    `factories`: an `async_sessionmaker` for async handlers, a `sessionmaker` for blocking ones, or
    both. `table`, `schema`: the name of the table, `mq_inbox`, and its schema. `create`: whether
    the table is created when a worker starts and it is missing.
    """

    has_batches = True

    def __init__(
        self,
        *factories: "Callable[[], AsyncSession | Session]",
        table: str = "mq_inbox",
        schema: str | None = None,
        create: bool = True,
    ) -> None:
        """There is no I/O. Raises `ConfigurationError` for something that makes no sessions."""
        try:
            from sqlalchemy import MetaData  # noqa: PLC0415 - SQLAlchemy is an extra
        except ImportError as error:
            raise ConfigurationError(
                "SqlInbox needs SQLAlchemy: pip install 'mqcore[sqlalchemy]'"
            ) from error
        self._async, self._blocking = _sorted(factories)
        self._create = create
        self._table = inbox_table(MetaData(), table, schema=schema)
        self._look, self._insert, self._delete = _statements(self._table)
        listen_to_sessions()
        self._clock: Clock = SystemClock()
        self._joined: SupportsJoin | None = None

    def check(self, where: str, *, blocking: bool) -> None:
        """Raise `ConfigurationError` when there are no sessions for this kind of handler."""
        if (self._blocking if blocking else self._async) is None:
            kind, maker = (
                ("a blocking handler", "sessionmaker(engine)")
                if blocking
                else ("an async handler", "async_sessionmaker(engine)")
            )
            raise ConfigurationError(
                f"{where}: its inbox has no sessions for {kind}. Give it some: "
                f"SqlInbox(..., {maker})"
            )

    async def open(self, clock: Clock, backend: Backend) -> "SqlInbox":
        """Create the table when it is missing, and find out whether the queue is in this database.

        Returns a copy for one worker. Raises `ConfigurationError` when the table cannot be used.
        """
        return await copy(self).prepare(clock, backend)

    async def prepare(self, clock: Clock, backend: Backend) -> "SqlInbox":
        """As `open`, and change this object."""
        self._clock = clock
        await self._run(self._prepare)
        if isinstance(backend, SupportsJoin):
            is_foreign = await self._run(lambda session: backend.foreign(_within(session)))
            self._joined = None if is_foreign else backend
        return self

    def _prepare(self, session: "Session") -> None:
        from sqlalchemy import exc, inspect, select  # noqa: PLC0415 - SQLAlchemy is an extra

        name, table = self._table.fullname, self._table
        if self._create:
            try:
                table.create(session.connection(), checkfirst=True)
                session.commit()
            except exc.DBAPIError:  # another worker was faster, or it may not be created
                session.rollback()
                if not inspect(session.connection()).has_table(table.name, table.schema):
                    raise
        try:
            session.execute(select(*table.c).limit(1))
        except exc.DBAPIError as error:
            raise ConfigurationError(
                f"the inbox cannot read the table {name}: {_line(error)}. Create it as "
                "mqcore_sql.inbox.inbox_table(metadata) describes it, or choose another name: "
                "SqlInbox(..., table=...)"
            ) from error

    async def _run(self, work: "Callable[[Session], Any]") -> Any:
        """Run work in a session of its own, in a thread where only blocking sessions exist."""
        if self._async is not None:
            async with self._async() as session:
                result = await session.run_sync(work)
                await session.commit()
                return result

        from asyncio import to_thread  # noqa: PLC0415 - only here

        return await to_thread(self._run_blocking, work)

    def _run_blocking(self, work: "Callable[[Session], Any]") -> Any:
        with self._sessions() as session:
            result = work(session)
            session.commit()
            return result

    def _sessions(self) -> "Session":
        if self._blocking is None:
            raise ConfigurationError("this inbox has no sessions for blocking handlers")
        return self._blocking()

    # Transactions

    @asynccontextmanager
    async def batch(self, entries: Sequence[InboxEntry]) -> AsyncIterator["_AsyncTransaction"]:
        """Return a transaction of an `AsyncSession` for several messages."""
        if self._async is None:
            raise ConfigurationError("this inbox has no sessions for async handlers")
        async with self._async() as session:
            transaction = _Transaction(self, entries, session.sync_session)
            await session.run_sync(transaction.look)
            with transaction.guarded():
                yield _AsyncTransaction(transaction, session)

    @contextmanager
    def blocking_batch(self, entries: Sequence[InboxEntry]) -> Iterator["_Transaction"]:
        """Return a transaction of a `Session` for several messages."""
        with self._sessions() as session:
            transaction = _Transaction(self, entries, session)
            transaction.look(session)
            with transaction.guarded():
                yield transaction

    def transaction(self, entry: InboxEntry) -> "AbstractAsyncContextManager[_AsyncTransaction]":
        """Return a transaction of an `AsyncSession`."""
        return self.batch([entry])

    def blocking_transaction(self, entry: InboxEntry) -> "AbstractContextManager[_Transaction]":
        """Return a transaction of a `Session`."""
        return self.blocking_batch([entry])

    # Statements

    def known(self, session: "Session", entries: Sequence[InboxEntry]) -> dict[str, float]:
        """Return the ids that are in the table, and until when each is remembered."""
        given = {**_key(entries[0]), "the_ids": [entry.id for entry in entries]}
        del given["the_id"]
        return {row[0]: row[1] for row in session.execute(self._look, given)}

    def remembers(self, until: float | None) -> bool:
        """Return whether the window of an id has not ended."""
        return until is not None and until > self._clock.now()

    def insert(
        self, session: "Session", entries: Sequence[InboxEntry], known: Mapping[str, float]
    ) -> None:
        """Insert ids, in place of those whose window has ended. Raises `IntegrityError`."""
        connection = session.connection()
        entries = sorted(entries, key=lambda entry: entry.id)  # others wait, and in the same order
        old = [{**_key(each), "the_until": known[each.id]} for each in entries if each.id in known]
        if old:
            connection.execute(self._delete, old)
        now = self._clock.now()
        new = [{**_key(each), "the_until": now + each.window} for each in entries]
        if new:
            connection.execute(self._insert, new)

    @property
    def joined(self) -> SupportsJoin | None:
        """The broker, where its queues are in this database."""
        return self._joined

    # Retention

    async def forget(self) -> bool:
        """Remove up to 1,000 ids whose window has ended."""
        return bool(await self._run(self._forget))

    def _forget(self, session: "Session") -> bool:
        from sqlalchemy import bindparam, delete, select  # noqa: PLC0415 - SQLAlchemy is an extra

        columns = self._table.c
        keys = (columns.consumer, columns.queue, columns.id)
        found = session.execute(
            select(*(column.label(f"old_{column.name}") for column in (*keys, columns.until)))
            .where(columns.until <= self._clock.now())
            .order_by(columns.until, *keys)
            .limit(_STEP)
            .with_for_update(skip_locked=True)
        ).mappings()
        old = [dict(row) for row in found]
        if old:
            statement = delete(self._table).where(
                *(column == bindparam(f"old_{column.name}") for column in (*keys, columns.until))
            )
            session.connection().execute(statement, old)
        return len(old) == _STEP


class _Transaction:
    """The transaction of one run of a handler, in a synchronous session.

    It has the messages of a batch, or one. None has the id of another one.
    """

    def __init__(self, inbox: SqlInbox, entries: Sequence[InboxEntry], session: "Session") -> None:
        self.session = session
        self.handled: Sequence[bool] = ()
        self._inbox = inbox
        self._entries = entries
        self._known: Mapping[str, float] = {}
        self._may_commit = False
        self._joined = inbox.joined if entries[0].receipt else None
        self.locks = WriteLocks()

    @property
    def was_handled(self) -> bool:
        return self.handled[0]

    @property
    def acknowledges(self) -> bool:
        return self._joined is not None

    def holds_up(self, backend: Backend) -> str:
        """Return the path of the SQLite file that is locked, and that the backend is on."""
        file = backend.file_identity() if isinstance(backend, SqlBackend) else None
        return "" if file is None else self.locks.holding(file)

    def look(self, session: "Session") -> None:
        """Look for the ids in a transaction of its own."""
        self._known = self._inbox.known(session, self._entries)
        self.handled = [self._inbox.remembers(self._known.get(entry.id)) for entry in self._entries]
        session.rollback()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Refuse commits of the handler, whose writes would be stored without the id."""
        info = self.session.info
        info[_GUARD] = self
        try:
            yield
        finally:  # the factory may give the same session again
            info.pop(_GUARD, None)

    def check_commit(self, session: "Session") -> None:
        """Raise `ConfigurationError` for a commit that is not ours; a savepoint may end."""
        if not self._may_commit and not session.in_nested_transaction():
            first = self._entries[0]
            raise ConfigurationError(
                f"message {first.id} of queue {first.queue!r}: the handler committed "
                "ctx.session. Leave that to mqcore, which commits it together with the message's "
                "id when the handler has returned; for a part that may fail use begin_nested()"
            )

    def commit(self) -> Recorded:
        """Commit with the id of the only message."""
        return self.commit_items([0])[0]

    def commit_items(self, done: Sequence[int]) -> list[Recorded]:
        """Acknowledge where that is possible, insert the ids, and commit."""
        from sqlalchemy.exc import IntegrityError  # noqa: PLC0415 - SQLAlchemy is an extra

        session, entries = self.session, [self._entries[index] for index in done]
        session.flush()  # what fails here is the handler's own
        lost = self._acknowledge(session, entries)
        if lost is not None:
            session.rollback()
            return [Recorded.LOST if each is lost else Recorded.ROLLED_BACK for each in entries]

        try:
            self._inbox.insert(session, entries, self._known)
        except IntegrityError:
            session.rollback()
            return self._conflict(session, done)
        self._may_commit = True
        session.commit()
        recorded = Recorded.RECORDED if self._joined is None else Recorded.ACKNOWLEDGED
        return [recorded] * len(entries)

    def _acknowledge(self, session: "Session", entries: Sequence[InboxEntry]) -> InboxEntry | None:
        """Acknowledge in the transaction; return the first one whose claim is lost."""
        if self._joined is None or not entries:
            return None
        within = _within(session)
        for entry in entries:
            if not self._joined.acknowledge(within, entry.receipt):
                return entry
        return None

    def _conflict(self, session: "Session", done: Sequence[int]) -> list[Recorded]:
        """Return which ids another delivery has recorded meanwhile."""
        if len(self._entries) == 1:
            return [Recorded.DUPLICATE]
        self.look(session)
        return [
            Recorded.DUPLICATE if self.handled[index] else Recorded.ROLLED_BACK for index in done
        ]


class _AsyncTransaction:
    """The same in an `AsyncSession`."""

    def __init__(self, transaction: _Transaction, session: "AsyncSession") -> None:
        self.session = session
        self._transaction = transaction

    @property
    def was_handled(self) -> bool:
        return self._transaction.was_handled

    @property
    def handled(self) -> Sequence[bool]:
        return self._transaction.handled

    @property
    def acknowledges(self) -> bool:
        return self._transaction.acknowledges

    def holds_up(self, backend: Backend) -> str:
        return self._transaction.holds_up(backend)

    async def commit(self) -> Recorded:
        return await self.session.run_sync(lambda _: self._transaction.commit())

    async def commit_items(self, done: Sequence[int]) -> Sequence[Recorded]:
        return await self.session.run_sync(lambda _: self._transaction.commit_items(done))


class _Within:
    """The transaction of a connection of SQLAlchemy, as a backend uses it."""

    def __init__(self, connection: "Connection") -> None:
        self.dialect = connection.dialect.name
        self._connection = connection

    def execute(self, statement: str, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        result = self._connection.execute(_text(statement), values)
        return result.all() if result.returns_rows else ()


def _within(session: "Session") -> Transaction:
    return _Within(session.connection())


@cache
def _text(statement: str) -> "TextClause":
    from sqlalchemy import text  # noqa: PLC0415 - SQLAlchemy is an extra

    return text(statement)


_GUARD = "mqcore_once"
"""The key of a transaction in its session's `info`."""


@cache
def listen_to_sessions() -> None:
    """Let the sessions of this process ask their transaction before they commit, once.

    They also tell it which connections they use. A listener of each session would take longer than
    the transaction.
    """
    from sqlalchemy import event  # noqa: PLC0415 - SQLAlchemy is an extra
    from sqlalchemy.orm import Session  # noqa: PLC0415 - as above

    def before_commit(session: Session) -> None:
        if (transaction := session.info.get(_GUARD)) is not None:
            transaction.check_commit(session)

    def after_begin(session: Session, part: Any, connection: "Connection") -> None:
        if (transaction := session.info.get(_GUARD)) is not None and not part.nested:
            transaction.locks.begin(connection)

    event.listen(Session, "before_commit", before_commit)
    event.listen(Session, "after_begin", after_begin)


def _statements(table: "Table") -> "tuple[Any, Any, Any]":
    """Return the statements that look for ids, insert one, and delete an old one."""
    from sqlalchemy import bindparam, delete, insert, select  # noqa: PLC0415 - SQLAlchemy is an extra

    names = ("consumer", "queue", "id")
    ids: Any = bindparam("the_ids", expanding=True)
    where = [table.c[name] == bindparam(f"the_{name}") for name in names]
    values: dict[str, Any] = {name: bindparam(f"the_{name}") for name in (*names, "until")}
    old = delete(table).where(*where, table.c.until == bindparam("the_until"))
    look = select(table.c.id, table.c.until).where(*where[:2], table.c.id.in_(ids))
    return look, insert(table).values(values), old


def _key(entry: InboxEntry) -> dict[str, Any]:
    return {"the_consumer": entry.consumer, "the_queue": entry.queue, "the_id": entry.id}


def _sorted(
    factories: "tuple[Callable[[], AsyncSession | Session], ...]",
) -> "tuple[Callable[[], AsyncSession] | None, Callable[[], Session] | None]":
    """Return the factory of async sessions and that of blocking ones."""
    from sqlalchemy.orm import Session  # noqa: PLC0415 - SQLAlchemy is an extra

    kinds: dict[str, type] = {"blocking": Session}
    with suppress(ImportError):  # without greenlet there are no async sessions
        from sqlalchemy.ext.asyncio import AsyncSession  # noqa: PLC0415 - as above

        kinds["async"] = AsyncSession

    found: dict[str, Any] = {}
    for factory in factories:
        session = factory() if callable(factory) else factory
        kind = next((name for name, each in kinds.items() if isinstance(session, each)), None)
        if kind is None or not callable(factory) or kind in found:
            raise ConfigurationError(
                "SqlInbox takes an async_sessionmaker, a sessionmaker, or one of each, not "
                f"{type(factory).__name__}"
            )
        found[kind] = factory
    if not found:
        raise ConfigurationError(
            "SqlInbox needs the factory of your sessions: SqlInbox(async_sessionmaker(engine))"
        )
    return found.get("async"), found.get("blocking")


def _line(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())[:200]
