"""SQLite, by the standard library's `sqlite3`: connecting, and the statements of its own."""

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, ClassVar

from mqcore.spi import (
    Clock,
    ConfigurationError,
    ConnectionLost,
    Durability,
    ErrorKind,
)
from mqcore_sql.database import TABLES, Columns, CommitUnknown, Database
from mqcore_sql.options import SqliteOptions, file_of
from mqcore_sql.records import Claimed, Row
from mqcore_sql.sqlite_file import DatabaseFile, NoRoom
from mqcore_sql.statements import END_LEASES, HAS_LEASE, RANKS

__all__ = ["INSERT", "LAST_NUMBER", "REMEMBER", "SET_TIME", "SqliteDatabase", "placed"]

_OLDEST = (3, 35, 0)
"""The first version with RETURNING."""
_WAIT = 5.0
"""Seconds that SQLite waits for a lock of another program, which does not take turns with us."""
_CHECKPOINT, _PAGE = 4000, 4096
"""Pages after which the log goes into the file. With 1,000 every twentieth batch took 25 ms."""
_LEAST_LOG = 100
"""Pages of the log in any case. With a small reserve it stays below that, and acks find room."""
_LARGE_LOG = 64 * 1024 * 1024
LAST_NUMBER = """
    INSERT INTO {meta} (key, value) VALUES ('last', :number)
    ON CONFLICT (key) DO UPDATE SET value = value + excluded.value RETURNING value"""
_TIME = "SELECT key, value FROM {meta} WHERE key IN ('shift', 'time')"
SET_TIME = """
    INSERT INTO {meta} (key, value) VALUES ('shift', :shift), ('time', :time)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value"""
_TIME_EVERY = 1_000_000
"""Microseconds after which the time is written again."""
REMEMBER = """
    INSERT INTO {{names{current}}} (queue, name, number, at)
    SELECT :queue, :name, :number, {{now}}
    WHERE NOT EXISTS (SELECT 1 FROM {{names{other}}}
                      WHERE queue = :queue AND name = :name AND at > {{now}} - :window)
    ON CONFLICT (queue, name) DO UPDATE SET number = excluded.number, at = excluded.at
    WHERE at <= {{now}} - :window"""
_KNOWN = """
    SELECT 1 FROM {names0} WHERE queue = :queue AND name = :name AND number > :since
                                 AND at > {now} - :window
    UNION ALL
    SELECT 1 FROM {names1} WHERE queue = :queue AND name = :name AND number > :since
                                 AND at > {now} - :window"""
INSERT = """
    INSERT INTO {messages} (id, queue, rank, place, expires, meta, body)
    VALUES (:id, :queue, :rank, :place, :expires, :meta, :body)"""
_INSERT = re.sub(r":\w+", "?", INSERT)
_HAS_SOMETHING = f"""
    SELECT 1 WHERE EXISTS (SELECT 1 FROM {{messages}} WHERE queue = :queue AND rank IN {RANKS}
                                                     AND token IS NULL AND place <= {{now}})
                OR EXISTS (SELECT 1 FROM {{messages}} WHERE queue = :queue AND token IS NOT NULL
                                                     AND until <= {{now}})"""
_CLAIM = f"""
    UPDATE {{messages}} SET token = :token, until = {{now}} + :lease
    WHERE id IN (SELECT id FROM {{messages}} WHERE queue = :queue AND rank IN {RANKS}
                                              AND token IS NULL AND place <= {{now}}
                 ORDER BY rank, place, id LIMIT :limit)
    RETURNING id, rank, place, expires, redelivered, takeovers, started, meta, body, {{now}}"""
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR}
_KINDS = {
    sqlite3.SQLITE_FULL: ErrorKind.FULL,
    sqlite3.SQLITE_TOOBIG: ErrorKind.TOO_LARGE,
    **dict.fromkeys(
        (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH), ErrorKind.DENIED
    ),
    **dict.fromkeys((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, *_CORRUPT), ErrorKind.TRANSIENT),
}
_checked: set[tuple[int, int]] = set()
"""Files that this process has checked for damage: it takes seconds for each gigabyte."""


class SqliteDatabase(Database):
    """One connection to a file."""

    product = "SQLite"
    words: ClassVar[dict[str, str]] = {
        "now": ":now",
        "number": "INTEGER",
        "counted": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "bytes": "BLOB",
        "exact": "",
        "empty": "x''",
        "keyed": "WITHOUT ROWID",
        "storage": "",
        **dict.fromkeys(("shared", "locked", "bounded", "alone", "skipping"), ""),
    }
    counts_totals = True

    def __init__(self, url: str, options: SqliteOptions) -> None:
        super().__init__(options.prefix)
        self.file = DatabaseFile(file_of(url), options.reserve)
        self._options = options
        self._clock: Clock = options.clock
        self._connection: sqlite3.Connection | None = None
        self._synchronous = ""
        self._now: int | None = None
        self._last = self._shift = 0
        self._has_time = False
        self._version: int | None = None
        self._log_seen: tuple[int, int] | None = None

    @staticmethod
    def any_of(name: str) -> str:
        """Return a comparison with the elements of a JSON text."""
        return f"IN (SELECT value FROM json_each(:{name}))"

    # Opening

    def open(self) -> None:
        """Open or create the file."""
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ConfigurationError(
                f"SQLite {sqlite3.sqlite_version} is too old: mqcore needs 3.35 or newer, which "
                "comes with Python"
            )
        self.file.open()
        with self.file.turn(), self._explained():
            self._connection = sqlite3.connect(
                self.file.path, _WAIT, isolation_level=None, check_same_thread=False
            )
            mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            pages = min(_CHECKPOINT, max(self._options.reserve // _PAGE, _LEAST_LOG))
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            self._connection.execute(f"PRAGMA journal_size_limit = {_LARGE_LOG}")
            self._check_damage(self._connection)
            self._connection.execute("SELECT 1 FROM sqlite_master").fetchone()  # opens the log
        if mode != "wal":
            raise ConfigurationError(
                f"SQLite cannot keep a write-ahead log for {self.file.path} (its journal mode is "
                f"{mode!r}). Network file systems cannot: use a local disk"
            )
        self.file.remember()

    def _check_damage(self, connection: sqlite3.Connection) -> None:
        """Refuse a damaged file: SQLite would confirm what it writes into it."""
        identity = self.file.identity()
        if identity is None or identity in _checked:
            return
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise ConfigurationError(
                f"the database {self.file.path} is damaged ({found}). Nothing was changed. Copy "
                "what can be read with sqlite3's .recover into another file"
            )
        _checked.add(identity)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = _code(error)
            if code == sqlite3.SQLITE_NOTADB:
                what = "is not an SQLite database; nothing was changed"
            elif code == sqlite3.SQLITE_CORRUPT:
                what = f"is damaged ({error}); nothing was changed"
            elif code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
                what = f"cannot be opened for writing ({error})"
            else:
                raise
            raise ConfigurationError(f"{self.file.path} {what}") from error

    def close(self) -> None:
        """Close the connection and the lock file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        self.file.close()

    def server(self) -> tuple[str, Durability, dict[str, float | str | bool]]:
        """Return what a confirmed message survives, by the option `synchronous`."""
        synchronous = self._options.synchronous
        durability = Durability.MACHINE if synchronous == "full" else Durability.PROCESS
        title = f"SQLite {sqlite3.sqlite_version}"
        return title, durability, {"journal_mode": "wal", "synchronous": synchronous}

    def prepared(self) -> None:
        """Read how far the time of the file is ahead of the clock."""
        self._has_time = True
        self._read_time()

    # Schema

    @contextmanager
    def migration(self) -> Iterator[None]:
        """Migrate in one transaction, in turn with other processes."""
        with self.transaction():
            yield

    def create(self, statements: str) -> None:
        """Run a migration: several statements, in the transaction that is open."""
        for statement in self.text(statements).split(";"):
            self._opened.execute(statement)

    def has_tables(self) -> list[str]:
        """Return those of `TABLES` that exist."""
        names = [self.table(name) for name in TABLES]
        statement = "SELECT name FROM sqlite_master WHERE type = 'table' AND name {any:names}"
        found = {name for (name,) in self.query(statement, names=names)}
        return [name for name in TABLES if self.table(name) in found]

    # Statements

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """Write in turn. What need not be durable does not wait for the disk."""
        connection = self._opened
        with self.file.turn():
            self._set_synchronous(self._options.synchronous if durable else "normal")
            self._begin(connection)
            try:
                self._now = self._last = self._begin_time()
                yield
                self._commit(connection)
            except sqlite3.Error as error:
                self._roll_back(connection)
                if _code(error) == sqlite3.SQLITE_FULL:  # the log gives its space to the next try
                    with suppress(sqlite3.Error):
                        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                raise
            finally:
                self._now = None
                self._roll_back(connection)

    def _begin(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if _code(error) == sqlite3.SQLITE_BUSY:
                text = (
                    f"{error}: a connection that does not take turns has written to "
                    f"{self.file.path} and not committed for {_WAIT:g} s. Commit it. If it is your "
                    "application's own, pass its engine to mqcore_sql.share"
                )
                error.args = (text,)
            raise

    @staticmethod
    def _roll_back(connection: sqlite3.Connection) -> None:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.rollback()

    def _begin_time(self) -> int:
        """Return the time of a transaction.

        The time of the file is the same for all processes. It goes on from where it was when the
        clock is set back: a process that knew the later time would end the leases of the others.
        """
        now = self.now()
        if not self._has_time:
            return now
        time = self._read_time()
        behind = max(time - round(self._clock.now() * 1e6) - self._shift, 0)
        self._shift += behind
        if behind or self.now() - time > _TIME_EVERY:
            self._run(SET_TIME, {"shift": self._shift, "time": self.now()})
        return self.now()

    def _read_time(self) -> int:
        """Read the time that the file has reached, and how far it is ahead of the clock."""
        found = dict(self.query(_TIME))
        self._shift = found.get("shift", 0)
        return int(found.get("time", 0))

    def _commit(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY):
                raise
            raise CommitUnknown(f"SQLite has not confirmed a commit: {error}") from error

    def _set_synchronous(self, word: str) -> None:
        if self._options.synchronous == "off":
            word = "off"
        if word != self._synchronous:
            self._opened.execute(f"PRAGMA synchronous = {word}")
            self._synchronous = word

    def query(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        return self._run(statement, values).fetchall()

    def change(self, statement: str, **values: Any) -> int:
        """Run a statement and return how many rows it has changed."""
        return self._run(statement, values).rowcount

    def insert(self, table: str, columns: Columns, *, replace: bool = False) -> None:
        """Insert rows with one statement that is run for each."""
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {{{table}}} ({', '.join(columns)}) VALUES ({marks})"
        if replace:
            statement += self.replacing(columns)
        rows = zip(*(values for _, values in columns.values()), strict=True)
        self._opened.executemany(self.text(statement), rows)

    def update(self, table: str, columns: Columns) -> int:
        """Write columns with one statement that is run for each row."""
        key, *names = columns
        changes = ", ".join(f"{name} = ?" for name in names)
        statement = self.text(f"UPDATE {{{table}}} SET {changes} WHERE {key} = ?")
        given = [values for _, values in columns.values()]
        rows = zip(*given[1:], given[0], strict=True)
        return self._opened.executemany(statement, rows).rowcount

    def _run(self, statement: str, values: dict[str, Any]) -> sqlite3.Cursor:
        for name, value in values.items():
            if type(value) is list:
                values[name] = json.dumps(value)
        values["now"] = self.now()
        return self._opened.execute(self.text(statement), values)

    def time(self) -> float:
        """Return the time of the file."""
        return self.now() / 1e6

    def now(self) -> int:
        """Return the time: inside a transaction that of its begin, and never an earlier one."""
        if self._now is not None:
            return self._now
        return max(round(self._clock.now() * 1e6) + self._shift, self._last)

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ConnectionLost(f"{self.file.path} is closed; open it first")
        return self._connection

    # Messages

    def empty_names(self, number: int) -> None:
        """Empty a table of names; without a condition SQLite frees its pages at once."""
        self._opened.execute(self.text(f"DELETE FROM {{names{number}}}"))

    def check_room(self) -> None:
        """Refuse to take the reserve of the disk."""
        self.file.check_room(self._content)

    def _content(self) -> int:
        """Return how many bytes the file has once the log is written into it."""
        (pages,), (size,) = (
            self._opened.execute(f"PRAGMA {name}").fetchone()
            for name in ("page_count", "page_size")
        )
        return int(pages * size)

    def store(self, rows: Sequence[Row], current: int, window: int) -> set[int]:
        """Remember the names, and insert the rows whose names are new."""
        if not rows:
            return set()
        ((last,),) = self.query(LAST_NUMBER, number=len(rows))
        numbers = count(last - len(rows) + 1)
        remember = self.text(REMEMBER.format(current=current, other=1 - current))
        execute, now = self._opened.execute, self.now()

        stored, inserts = set(), []
        for index, (row, number) in enumerate(zip(rows, numbers, strict=False)):
            if row.name is not None:
                values = {"queue": row.queue, "name": row.name, "number": number}
                values |= {"now": now, "window": window}
                if execute(remember, values).rowcount < 1:
                    continue
            stored.add(index)
            inserts.append((number, *placed(row, now)))
        self._opened.executemany(self.text(_INSERT), inserts)
        return stored

    def known(self, names: Sequence[tuple[int, bytes, int]], window: int) -> set[int]:
        """Look each name up in both tables."""
        return {
            index
            for index, (queue, name, since) in enumerate(names)
            if self.query(_KNOWN, queue=queue, name=name, since=since, window=window)
        }

    def claim(
        self, queue: int, limit: int, token: int, lease: int, *, alone: bool
    ) -> list[Claimed]:
        """Look first, without waiting for a turn; then lease."""
        if alone and self.query(HAS_LEASE, queue=queue):
            return []
        if not self.query(_HAS_SOMETHING, queue=queue):
            shift = self._shift
            self._read_time()  # another process may have found that the clock was set back
            if shift == self._shift or not self.query(_HAS_SOMETHING, queue=queue):
                return []
        # A power cut that undoes the claim ends its owner as well.
        with self.transaction(durable=False):
            self.change(END_LEASES, queue=queue)
            if alone and self.query(HAS_LEASE, queue=queue):
                return []
            rows = self.query(_CLAIM, queue=queue, limit=limit, token=token, lease=lease)
        return sorted(map(Claimed._make, rows), key=lambda row: (row.rank, row.place, row.id))

    # Watching

    def changed(self) -> bool:
        """Compare the number of commits by other connections."""
        self._log_seen = self.file.log_state()
        (version,) = self._opened.execute("PRAGMA data_version").fetchone()
        before, self._version = self._version, version
        if before != version:
            self._read_time()
        return bool(before != version)

    def may_have_changed(self) -> bool:
        """Compare the state of the log: each commit writes to it."""
        return self.file.log_state() != self._log_seen

    def notify(self) -> None:
        """Do nothing: others see a new data version."""

    def beat(self) -> None:
        """Raise when the file was deleted or replaced, and replace a lock file that was."""
        self.file.renew_lock()
        self.file.check()

    def problems(self) -> list[str]:
        """Report a disk that is nearly full, and a log that a reader keeps from shrinking."""
        found = []
        try:
            self.check_room()
        except NoRoom as error:
            found.append(str(error))
        state = self.file.log_state()
        if state is not None and (size := state[1]) > 2 * _LARGE_LOG:
            found.append(
                f"{self.file.log} has {size:,} bytes: a program reads {self.file.path} in one long "
                "transaction. End it, so that SQLite can use the log again from its beginning"
            )
        return found

    def is_lost(self, error: BaseException) -> bool:
        """Return whether the file is gone or damaged."""
        if isinstance(error, sqlite3.Error) and _code(error) in _CORRUPT:
            if (identity := self.file.identity()) is not None:
                _checked.discard(identity)  # the next open checks it
            return True
        return isinstance(error, ConnectionLost) and self._connection is not None

    @staticmethod
    def kind(error: BaseException) -> ErrorKind:
        """Return the kind of an error of `sqlite3`."""
        if isinstance(error, NoRoom):
            return ErrorKind.FULL
        if not isinstance(error, sqlite3.Error):
            return ErrorKind.PERMANENT
        return _KINDS.get(_code(error), ErrorKind.PERMANENT)


def _code(error: sqlite3.Error) -> int:
    """Return the primary result code of an error, 0 for one of the Python module itself."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def placed(row: Row, now: int) -> tuple[int, int, int, int | None, str, bytes]:
    """Return the columns of a row that is stored now."""
    expires = row.expires if row.ttl is None else now + row.ttl
    place = now + row.delay
    if row.delay > 0 and expires is not None:
        place = min(place, expires)  # what expires inside its delay is handed out then (G6)
    return row.queue, row.rank, place, expires, row.meta, row.body
